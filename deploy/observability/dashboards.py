"""The Grafana dashboards, as code: `just dashboards` writes their JSON, `just dashboards-check` compares.

Each panel says in its description what one learns from it. `$job` and `$instance` narrow every query;
`$__rate_interval` is Grafana's, a few scrapes long.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphDrawStyle, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableOption
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
HERE = 'job=~"$job",instance=~"$instance"'
WINDOW = "[$__rate_interval]"
SECONDS, SHARE, PER_SECOND, SHORT, BYTES = "s", "percentunit", "reqps", "short", "bytes"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends, drawn as lines, a stack of areas, a heatmap or a number."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = SHORT
    kind: str = "lines"
    width: int = 8
    most: float | None = None


def rate(metric: str, *labels: str) -> str:
    """How fast a counter grows."""
    return f"rate({metric}{{{','.join((HERE, *labels))}}}{WINDOW})"


def total(metric: str, *labels: str, by: str = "") -> str:
    """The same over all servers, by some labels."""
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, *labels)})"


def quantile(q: float, metric: str, *labels: str) -> str:
    """A quantile over all servers."""
    return f"histogram_quantile({q}, {total(f'{metric}_bucket', *labels, by='le')})"


def quantiles(metric: str, *labels: str) -> list[tuple[str, str]]:
    """Median, 95th and 99th percentile."""
    return [(quantile(q, metric, *labels), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def mean(metric: str, *labels: str) -> str:
    """The mean of a histogram over all servers."""
    return f"{total(f'{metric}_sum', *labels)} / {total(f'{metric}_count', *labels)}"


CALLS = "rpc_server_call_duration_seconds"
OK = 'rpc_response_status_code="OK"'
RECOMMEND = 'rpc_method=~".*/Recommend"'
QUEUE, RUN, ROWS = "recommender_queue_time_seconds", "recommender_inference_time_seconds", "recommender_batch_size"
REQUESTS = "recommender_requests_total"
ANSWERED = 'recommender_outcome="answered"'
FALLBACKS = total("recommender_fallbacks_total")
JOB = '{job=~"$job"}'

SERVICE = {
    "Traffic": (
        Panel(
            "Calls", "Calls a second by method.", [(total(f"{CALLS}_count", by="rpc_method"), "{{rpc_method}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Calls by status", "OK apart from what failed, and by whose fault: INVALID_ARGUMENT is the caller's.",
            [(total(f"{CALLS}_count", by="rpc_response_status_code"), "{{rpc_response_status_code}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Requests by outcome", "A call of many counts each of its requests.",
            [(total(REQUESTS, by="recommender_outcome"), "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Failed by our fault", "Of all calls, against the objective of 0.1 %.",
            [(f"recommender:calls_failed:ratio_rate5m{JOB}", "{{job}}")], SHARE,
        ),
        Panel(
            "Slower than the objective", "Of answered Recommend calls, over 50 ms, against the objective of 1 %.",
            [(f"recommender:calls_slow:ratio_rate5m{JOB}", "{{job}}")], SHARE,
        ),
        Panel(
            "Answered from the fallback list", "Of all that was answered: users of whom nothing is known.",
            [(f"{FALLBACKS} / ({FALLBACKS} + {total(REQUESTS, ANSWERED)})", "share")], SHARE,
        ),
    ),
    "Latency": (
        Panel("Recommend, answered", "From arrival to status.", quantiles(CALLS, RECOMMEND, OK), SECONDS),
        Panel("Waiting for a slot", "From admission to the start of the batch.", quantiles(QUEUE), SECONDS),
        Panel("Running", "One run of the engine.", quantiles(RUN), SECONDS),
        Panel(
            "Where the time of a call goes",
            "Means, stacked: waiting, running, and the rest, which is the wire, checks and the fan-out.",
            [
                (mean(QUEUE), "waiting"),
                (mean(RUN), "running"),
                (f"clamp_min({mean(CALLS, RECOMMEND, OK)} - {mean(QUEUE)} - {mean(RUN)}, 0)", "the rest"),
            ], SECONDS, "stack", 12,
        ),
        Panel(
            "Recommend, all of it", "How many calls took how long.",
            [(total(f"{CALLS}_bucket", RECOMMEND, by="le"), "{{le}}")], SECONDS, "heatmap", 12,
        ),
    ),
    "Overload": (
        Panel(
            "Backlog", "Requests that wait, of the number that may.",
            [(f"recommender:backlog:ratio{{{HERE}}}", "{{instance}}")], SHARE, most=1,
        ),
        Panel(
            "Refused and expired",
            "At the door because the backlog is full or the deadline hopeless; expired while waiting.",
            [(total(REQUESTS, 'recommender_outcome=~"refused_.*|expired"', by="recommender_outcome"),
              "{{recommender_outcome}}")], PER_SECOND, "stack",
        ),
        Panel(
            "Engine busy",
            "Share of the time that the engine's slots run: near 100 % there is no more to have from batching.",
            [(f"recommender:engine_busy:ratio_rate1m{{{HERE}}}", "{{instance}}")],
            SHARE, most=1,
        ),
        Panel(
            "Waiting and running", "Requests now.",
            [
                (f"sum(recommender_backlog_length{{{HERE}}})", "waiting"),
                (f"sum(recommender_running{{{HERE}}})", "running"),
            ],
        ),
        Panel(
            "Cancelled", "Callers who left before their answer: their own deadlines are shorter than ours.",
            [(total(REQUESTS, 'recommender_outcome="cancelled"'), "cancelled")], PER_SECOND,
        ),
        Panel(
            "Event loop late", "By how much, p99. Late means that something blocks it, or that CPUs are missing.",
            [(quantile(0.99, "recommender_event_loop_lag_seconds"), "p99")], SECONDS,
        ),
    ),
}  # fmt: skip

ENGINE = {
    "Batching": (
        Panel(
            "Rows a run", "Many, where many wait: that is what batching is for.",
            [(f"recommender:batch_rows:mean_rate1m{{{HERE}}}", "{{instance}}")],
        ),
        Panel(
            "Sizes of batches", "How many runs had how many rows.",
            [(total(f"{ROWS}_bucket", by="le"), "{{le}}")], SHORT, "heatmap",
        ),
        Panel(
            "Why batches close",
            "full: larger ones might pay off. drained: nobody else was waiting. "
            "alike: the others' histories are of another length.",
            [(total("recommender_batches_total", by="recommender_batch_close_reason"),
              "{{recommender_batch_close_reason}}")], SHORT, "stack",
        ),
        Panel(
            "Runs", "Engine runs a second.", [(total(f"{RUN}_count"), "runs")],
        ),
        Panel(
            "Inference a row", "Mean time of a run over its rows: falls as batches grow, until the cores are busy.",
            [(f"{total(f'{RUN}_sum')} / {total(f'{ROWS}_sum')}", "a row")], SECONDS,
        ),
        Panel(
            "Padding a row", "Cells without an item, for each row: what unequal histories cost.",
            [(f"{total('recommender_cells_padded_total')} / {total(f'{ROWS}_sum')}", "cells")],
        ),
        Panel(
            "Batches halved", "Batches that failed, and were halved to find the row at fault.",
            [(total("recommender_batch_splits_total"), "halved")],
        ),
    ),
    "Models": (
        Panel(
            "Version", "Which server serves what, on which execution provider.",
            [(
                f"recommender_model_info{{{HERE}}}",
                "{{instance}}: {{recommender_model}} {{recommender_execution_provider}}",
            )], kind="number",
        ),
        Panel(
            "Requests by model", "Answered, by model and version.",
            [(total(REQUESTS, ANSWERED, by="recommender_model"), "{{recommender_model}}")],
            PER_SECOND, "stack",
        ),
        Panel(
            "Failed by the engine", "The log has the reason and the request_id.",
            [(total(REQUESTS, 'recommender_outcome="failed"', by="recommender_model"), "{{recommender_model}}")],
            PER_SECOND,
        ),
        Panel(
            "Reloads", "Attempts to bring a version in, by what came of them, in ten minutes.",
            [(f"sum by (recommender_outcome) (increase(recommender_model_reloads_total{{{HERE}}}[10m]))",
              "{{recommender_outcome}}")], SHORT, "stack",
        ),
        Panel(
            "Versions refused", "1 as long as a version is wanted that may not serve: the log says why.",
            [(f"recommender_model_refused{{{HERE}}}", "{{instance}} {{recommender_model_reference}}")],
        ),
        Panel(
            "Sources that cannot be asked", "1 while new versions cannot be looked for.",
            [(f"recommender_model_source_failing{{{HERE}}}", "{{instance}} {{recommender_model_reference}}")],
        ),
    ),
    "Process": (
        Panel(
            "CPU", "Cores in use, user and system.",
            [(f"sum by (instance) ({rate('process_cpu_time_seconds_total')})", "{{instance}}")],
        ),
        Panel("Memory", "Resident.", [(f"process_memory_usage_bytes{{{HERE}}}", "{{instance}}")], BYTES),
        Panel("Up since", "Age of each process.", [(f"process_uptime_seconds{{{HERE}}}", "{{instance}}")], SECONDS),
    ),
}  # fmt: skip

DASHBOARDS = {"service": ("Recommender: service", SERVICE), "engine": ("Recommender: engine", ENGINE)}


def build(name: str) -> str:
    """The JSON of a dashboard."""
    title, rows = DASHBOARDS[name]
    built = (
        dashboard.Dashboard(title)
        .uid(f"recommender-{name}")
        .tags(["recommender"])
        .refresh("15s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "label_values(recommender_model_info, job)"))
        .with_variable(_variable("instance", 'label_values(recommender_model_info{job=~"$job"}, instance)'))
    )
    for row, panels in rows.items():
        built = built.with_row(dashboard.Row(row))
        for panel in panels:
            built = built.with_panel(_drawn(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    variable = dashboard.QueryVariable(name).datasource(SOURCE).query(query).all_value(".*").current(everything)
    return variable.multi(True).include_all(True)  # noqa: FBT003 (the builder's own)


def _drawn(panel: Panel) -> timeseries.Panel | heatmap.Panel | stat.Panel:
    drawn: timeseries.Panel | heatmap.Panel | stat.Panel
    if panel.kind == "heatmap":
        drawn = heatmap.Panel().color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues"))
    elif panel.kind == "number":
        drawn = stat.Panel()
    else:
        drawn = timeseries.Panel().unit(panel.unit).min(0).draw_style(GraphDrawStyle.LINE)
        if panel.kind == "stack":
            drawn = drawn.fill_opacity(40).stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
        if panel.most is not None:
            drawn = drawn.max(panel.most)
    drawn = drawn.title(panel.title).description(panel.description).datasource(SOURCE).span(panel.width).height(8)
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("ABCDEF"[number])
        if panel.kind == "heatmap":
            query = query.format(PromQueryFormat.HEATMAP)
        drawn = drawn.with_target(query.instant() if panel.kind == "number" else query.range())
    return drawn


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
