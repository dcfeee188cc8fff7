"""`recommender profile`: measure a model on this machine, and recommend settings."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings, run
from recommender.engine import profile as profiling
from recommender.engine.engine import OnnxEngine
from recommender.engine.machine import available_cpus
from recommender.engine.profile import Advice, Point, in_ms
from recommender.models.artifact import open_artifact
from recommender.models.checks import check_answers
from recommender.models.loader import open_model
from recommender.models.sources.file import find_model
from recommender.settings.engine import LARGEST_BATCH, MOST_THREADS
from recommender.settings.requests import LONGEST_HISTORY

_COLUMNS = ("threads", "history", "batch", "runs", "p50 ms", "p99 ms", "µs a row", "rows a second")


def profile(
    model: Annotated[Path, typer.Argument(help="Model file to measure.")],
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", min=0.01, max=86_400_000, help="Latency objective, engine and wait.")
    ] = 20.0,
    threads: Annotated[str, typer.Option(help="Thread counts, as 1,2,4; empty: up to all CPUs.")] = "",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4,16,64,128",
    histories: Annotated[str, typer.Option(help="Items of a history; the settings are for the longest.")] = "1,20,100",
    seconds: Annotated[float, typer.Option(min=0.0, max=86_400, help="How long each combination is measured.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or coreml.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the measurements and the advice here, as JSON.")] = None,
) -> None:
    """Measure a model on this machine and recommend settings.

    Runs batches of several sizes, histories and thread counts; ends with settings that hold the latency objective.
    """
    settings = load_settings(device=device)
    counts, rows, lengths = (
        _counts(threads, "--threads", MOST_THREADS),
        _counts(batches, "--batches", LARGEST_BATCH),
        _counts(histories, "--histories", LONGEST_HISTORY),
    )
    counts = counts or list(profiling.thread_counts(available_cpus()))
    out = Console()

    async def main() -> list[profiling.Point]:
        artifact = open_artifact(find_model(settings.models.weights_dir, settings.models.num_recommendations, model))

        async def opened(count: int) -> OnnxEngine:
            engine = open_model(settings.engine, artifact, count)
            await check_answers(engine, artifact)
            return engine

        with Progress(console=out, transient=True) as progress:
            task = progress.add_task(f"Measuring {artifact.name}", total=profiling.steps(counts, rows, lengths))
            return await profiling.profile(
                opened,
                threads=counts,
                rows=rows,
                histories=lengths,
                seconds=seconds,
                done=lambda: progress.advance(task),
            )

    try:
        points = run(main())
    except MemoryError:
        fail("measuring takes more memory than there is: lower --batches or --histories", 2)
    advice = profiling.advise(points, p99_ms / 1e3, lengths[-1])
    table = Table(*(Column(name, justify="right") for name in _COLUMNS), title=f"{model} on this machine")
    for point in points:
        table.add_row(*_cells(point), style="bold green" if point is advice.point else None)
    out.print(table)
    out.print("\n".join(advice.lines), highlight=False, soft_wrap=True)
    if output is not None:
        output.write_text(json.dumps(_facts(model.name, points, advice, p99_ms), indent=1), encoding="utf-8")
        out.print(f"\nMeasurements: {output}", highlight=False, soft_wrap=True)


def _facts(model: str, points: Sequence[Point], advice: Advice, p99_ms: float) -> Mapping[str, object]:
    """What `--output` writes."""
    return {
        "model": model,
        "machine": f"{available_cpus()} CPUs ({platform.machine()}, {platform.system()})",
        "p99_ms": p99_ms,
        "advice": advice.lines,
        "measurements": [
            {
                "threads": point.threads,
                "history": point.history,
                "batch": point.rows,
                "runs": len(point.seconds),
                "p50_ms": point.quantile(0.5) * 1e3,
                "p99_ms": point.quantile(0.99) * 1e3,
                "rows_a_second": point.throughput,
            }
            for point in points
        ],
    }


def _cells(point: Point) -> tuple[str, ...]:
    """A measurement as the table shows it, in the order of _COLUMNS."""
    half = point.quantile(0.5)
    return (
        str(point.threads),
        str(point.history),
        str(point.rows),
        str(len(point.seconds)),
        in_ms(half),
        in_ms(point.quantile(0.99)),
        f"{half / point.rows * 1e6:,.1f}",
        f"{point.throughput:,.0f}",
    )


def _counts(text: str, option: str, most: int) -> list[int]:
    """Parse whole numbers from 1 to `most`. Raises BadParameter."""
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",") if part.strip()]
    if 0 in counts:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 1,2,4", param_hint=option)
    if max(counts, default=0) > most:
        raise typer.BadParameter(f"{max(counts)} is more than {most}, the most that a server takes", param_hint=option)
    return sorted(set(counts))
