"""Write the Grafana dashboards of panels.py as JSON: `just dashboards`; `just dashboards-check` compares.

python -m deploy.observability.dashboards [--check]
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig, ReduceDataOptions, StackingConfig
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphTresholdsStyleMode,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.observability.panels import ANNOTATIONS, DASHBOARDS, Annotation, Panel

FOLDER = Path(__file__).parent / "dashboards"
TAG = "recommender"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def build(name: str) -> str:
    """The JSON of a dashboard."""
    title, rows = DASHBOARDS[name]
    built = (
        dashboard.Dashboard(title)
        .uid(f"recommender-{name}")
        .tags([TAG])
        .refresh("15s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_links())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "label_values(recommender_model_info, job)"))
        .with_variable(_variable("instance", 'label_values(recommender_model_info{job=~"$job"}, instance)'))
    )
    for annotation in ANNOTATIONS:
        built = built.annotation(_annotation(annotation))
    for row, panels in rows.items():
        built = built.with_row(dashboard.Row(row))
        for panel in panels:
            built = built.with_panel(_drawn(panel))
    encoded = json.loads(JSONEncoder().encode(built.build()))
    for number, annotation in enumerate(ANNOTATIONS):
        # The SDK does not know the field: without it Grafana shows the annotation's name alone.
        encoded["annotations"]["list"][number]["titleFormat"] = annotation.title
    return json.dumps(encoded, sort_keys=True, indent=2) + "\n"


def _links() -> dashboard.DashboardLink:
    """To the other dashboards, with the same servers and the same time."""
    return (
        dashboard.DashboardLink("Recommender dashboards")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)  # noqa: FBT003 (the builder's own)
        .keep_time(True)  # noqa: FBT003
    )


def _annotation(annotation: Annotation) -> dashboard.AnnotationQuery:
    query = dashboard.AnnotationQuery().name(annotation.name).datasource(SOURCE).enable(True)  # noqa: FBT003
    return query.expr(annotation.query).icon_color(annotation.colour)


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    variable = dashboard.QueryVariable(name).datasource(SOURCE).query(query).all_value(".*").current(everything)
    return variable.multi(True).include_all(True)  # noqa: FBT003


def _drawn(panel: Panel) -> timeseries.Panel | heatmap.Panel | stat.Panel:
    drawn: timeseries.Panel | heatmap.Panel | stat.Panel
    if panel.kind == "heatmap":
        colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues")
        drawn = heatmap.Panel().color(colours).y_axis(heatmap.YAxisConfig().unit(panel.unit))
    elif panel.kind in ("number", "names"):
        drawn = stat.Panel().unit(panel.unit).reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        if panel.kind == "names":
            drawn = drawn.text_mode(BigValueTextMode.NAME).graph_mode(BigValueGraphMode.NONE)
    else:
        drawn = _lines(panel)
    if panel.levels:
        drawn = drawn.thresholds(_thresholds(panel))
    drawn = drawn.title(panel.title).description(panel.description).datasource(SOURCE).span(panel.width).height(8)
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("ABCDEF"[number])
        if panel.kind == "heatmap":
            query = query.format(PromQueryFormat.HEATMAP)
        drawn = drawn.with_target(query.instant() if panel.kind == "names" else query.range())
    return drawn


def _lines(panel: Panel) -> timeseries.Panel:
    drawn = timeseries.Panel().unit(panel.unit).draw_style(GraphDrawStyle.LINE)
    if panel.below == "transparent":
        drawn = drawn.min(0)
    if panel.kind == "stack":
        drawn = drawn.fill_opacity(40).stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if panel.most is not None:
        drawn = drawn.max(panel.most)
    if panel.levels:
        drawn = drawn.thresholds_style(GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    return drawn


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color=panel.below), *(Threshold(value=at, color=to) for at, to in panel.levels)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def main() -> int:
    """Write or compare; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    check = parser.parse_args().check
    drift = 0
    for name in DASHBOARDS:
        path, text = FOLDER / f"{name}.json", build(name)
        if check:
            there = path.read_text(encoding="utf-8") if path.exists() else ""
            drift += there != text
            lines = (there.splitlines(keepends=True), text.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, str(path), "code"))
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
