"""Show a run as a table in the terminal, and as one self-contained HTML file with plots."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from bench.load.plan import GOOD, HURRIED, LEAVING, SLOW
from bench.load.run import Part, Run

KINDS = {GOOD: "as most", LEAVING: "cancelling", HURRIED: "with a short deadline", SLOW: "reading nothing"}
_HEADS = (
    "part", "requests", "offered/s", "answered/s", "errors", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms",
    "rows/run", "queue ms", "engine ms", "server cores",
)  # fmt: skip
_SHADES = {0.5: "#56b4e9", 0.9: "#0072b2", 0.99: "#d55e00", 0.999: "#8c2d04"}
"""Okabe and Ito's colours, which people with any colour vision can distinguish."""
_ERROR = "#cc3311"
_LATE = 0.25
"""From what share of p99 on the generator's own lateness is worth a warning."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { padding: .25rem .4rem; font-size: .9rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left } .facts td:last-child { text-align: left; white-space: normal }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem } svg { width: 100%;
  height: auto } .met { color: #117733 } .missed { color: #cc3311; font-weight: 600 } .note { color: #555 }
code { background: #f4f4f4; padding: .1rem .3rem }
"""


def rows(parts: Sequence[Part]) -> list[tuple[str, ...]]:
    """The parts of a run as cells of a table."""
    return [
        (
            part.name, f"{part.requests:,}", _number(part.offered), _number(part.answered), _percent(part.error_rate),
            *(_ms(part.quantile(q)) for q in (0.5, 0.9, 0.99, 0.999, 1.0)),
            _number(part.told.batch_size, 1), _ms(part.told.queue), _ms(part.told.inference),
            _number(part.told.cpu, 2),
        )
        for part in parts
    ]  # fmt: skip


def table(parts: Sequence[Part], title: str = "") -> Table:
    """The same for a terminal."""
    shown = Table(title=title or None, title_justify="left")
    for number, head in enumerate(_HEADS):
        shown.add_column(head, justify="left" if number == 0 else "right", no_wrap=True)
    for part, cells in zip(parts, rows(parts), strict=True):
        shown.add_row(*cells, style="red" if part.failed else "")
    return shown


def parts(run: Run) -> list[Part]:
    """Rows of a run's table: its phases, the whole, and each other kind of caller."""
    phases = run.phases()
    whole = [run.whole()] if len(phases) > 1 else []
    others = [run.whole(kind) for kind in (LEAVING, HURRIED, SLOW) if (run.outcomes.kind == kind).any()]
    named = [Part(**{**vars(part), "name": KINDS[kind]}) for part, kind in zip(others, _others(run), strict=True)]
    return [*phases, *whole, *named]


def notes(run: Run) -> list[str]:
    """Conditions that a reader must know to trust the figures."""
    plan = run.plan
    said = [
        f"{'Open' if plan.open_loop else 'Closed'} loop; {plan.method}"
        + (f" calls of {plan.rows} histories" if plan.method == "batch" else "")
        + f" over {plan.connections} connections; latency runs from "
        + ("the intended send" if plan.open_loop else "the send")
        + ". Latencies are of requests that were answered.",
        (
            f"The generator took {run.generator_cpu * 1e6:,.0f} µs of CPU a request, on the same machine if the "
            f"server is local, and was {run.lag * 1e3:,.2f} ms late at p99."
        ),
    ]
    if run.plan.open_loop and run.lag > _LATE * run.whole().quantile(0.99):
        said.append(
            "The generator was late by a good part of p99: the machine is short of CPU, and the latencies are as much "
            "the generator's as the server's. Take a lower rate, another machine for the generator, fewer neighbours."
        )
    if not run.scrapes:
        said.append("Batches, queue and engine are not told: the server has no metrics endpoint (--metrics).")
    if run.outcomes.row_errors:
        said.append(
            f"{run.outcomes.row_errors:,} histories were refused within batch calls; such a call counts as failed."
        )
    return said


def html(
    run: Run,
    *,
    title: str,
    facts: Mapping[str, str],
    checks: Sequence[tuple[str, bool]] = (),
    limit_ms: float | None = None,
) -> str:
    """The whole report; `checks` are sentences and whether they hold, `limit_ms` is drawn where latency is."""
    held = "".join(
        f'<li class="{"met" if held else "missed"}">{"held" if held else "missed"}: {escape(said)}</li>'
        for said, held in checks
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in _HEADS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows(parts(run))
    )
    told = "".join(f"<tr><td>{escape(name)}</td><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
    ends = ", ".join(f"{count:,} {name}" for name, count in run.statuses().items())
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes(run))
    drawn = "".join(f"<div>{plot}</div>" for plot in plots(run, limit_ms))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><ul>{held}</ul>"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div><p>How requests ended: {escape(ends)}.</p>{said}'
        f'<h2>Plots</h2><div class="plots">{drawn}</div><h2>Facts</h2><table class="facts">{told}</table></html>'
    )


def plots(run: Run, limit_ms: float | None = None) -> list[str]:
    """The plots of a run, an SVG each."""
    slices = [part for part in run.slices() if part.requests]
    if not slices:
        return []
    # By rate: the phases where there are several, else the seconds of a ramp.
    phases = run.phases()
    by_rate = phases if len(phases) > 1 else slices
    xs = [part.offered if run.plan.open_loop else part.answered for part in by_rate]
    places = sorted(range(len(by_rate)), key=lambda place: xs[place])
    by_rate, xs = [by_rate[place] for place in places], [xs[place] for place in places]
    rate = "requests/s " + ("offered" if run.plan.open_loop else "answered")
    return [
        _latency("Latency over time", "seconds", [part.begin for part in slices], slices, limit_ms),
        _rates(slices),
        _latency("Latency by rate", rate, xs, by_rate, limit_ms, dots=True),
        _batches(rate, xs, by_rate),
        _split(slices, "Mean time of a call in the server, by part", "seconds", [part.begin for part in slices]),
        _split(by_rate, "Mean time of a call in the server, by part and rate", rate, xs),
    ]


def save_plots(run: Run, folder: Path, name: str, limit_ms: float | None = None) -> None:
    """Write each plot as a file, `name-1.svg` and so on, in a folder that is created if necessary."""
    for number, plot in enumerate(plots(run, limit_ms), 1):
        save(folder / f"{name}-{number}.svg", plot)


def save(path: Path, page: str) -> None:
    """Write the report, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _others(run: Run) -> list[int]:
    return [kind for kind in (LEAVING, HURRIED, SLOW) if (run.outcomes.kind == kind).any()]


def _latency(
    title: str, x_name: str, xs: Sequence[float], of: Sequence[Part], limit_ms: float | None, *, dots: bool = False
) -> str:
    figure, axes = _figure(title, x_name, "latency in ms, from the intended send")
    for q, shade in _SHADES.items():
        ys = [part.quantile(q) * 1e3 for part in of]
        axes.plot(xs, ys, "o-" if dots or len(xs) == 1 else "-", color=shade, label=f"p{q * 100:g}", markersize=3.5)
    if limit_ms is not None:
        axes.axhline(limit_ms, color=_ERROR, linestyle=":", label=f"objective: {limit_ms:g} ms")
    axes.set_yscale("log")
    plain = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_locator(mpl.ticker.LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(plain)
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.legend(ncols=2, frameon=False)
    return _svg(figure)


def _rates(of: Sequence[Part]) -> str:
    figure, axes = _figure("Requests", "seconds", "requests/s")
    xs = [part.begin for part in of]
    axes.plot(xs, [part.offered for part in of], color="#999", label="offered", linestyle="--")
    axes.plot(xs, [part.answered for part in of], color="#0072b2", label="answered")
    axes.plot(xs, [part.failed / part.seconds for part in of], color=_ERROR, label="failed")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def _batches(x_name: str, xs: Sequence[float], of: Sequence[Part]) -> str:
    figure, axes = _figure("Batch size by rate", x_name, "mean rows per run")
    known = [(x, part.told.batch_size) for x, part in zip(xs, of, strict=True) if math.isfinite(part.told.batch_size)]
    if known:
        axes.plot(*zip(*known, strict=True), "o-", color="#009e73", markersize=3.5)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    else:
        _nothing(axes)
    return _svg(figure)


def _split(of: Sequence[Part], title: str, x_name: str, xs: Sequence[float]) -> str:
    figure, axes = _figure(title, x_name, "ms")
    known = [(x, part.told) for x, part in zip(xs, of, strict=True) if math.isfinite(part.told.queue + part.told.call)]
    if not known:
        _nothing(axes)
        return _svg(figure)
    at = [x for x, _ in known]
    queue = [told.queue * 1e3 for _, told in known]
    engine = [told.inference * 1e3 for _, told in known]
    rest = [max(told.call - told.queue - told.inference, 0.0) * 1e3 for _, told in known]
    names, shades = ("queue", "engine", "the rest of the server"), ("#e69f00", "#0072b2", "#bbbbbb")
    if len(at) == 1:
        below = 0.0
        for name, shade, values in zip(names, shades, (queue, engine, rest), strict=True):
            axes.bar(["all"], values, bottom=below, label=name, color=shade, width=0.3)
            below += values[0]
    else:
        axes.stackplot(at, queue, engine, rest, labels=names, colors=shades, alpha=0.9)
    # The legend has its own line above the areas.
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend(frameon=False, loc="upper left", ncols=len(names))
    return _svg(figure)


def _figure(title: str, x_name: str, y_name: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    return figure, axes


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not told by the server", ha="center", va="center", transform=axes.transAxes, color="#888")


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _number(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds * 1e3:,.2f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{share:.2%}"
