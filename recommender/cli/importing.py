"""`recommender import`: a model that another library trained becomes a model file. Torch is imported when called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from recommender import importers
from recommender.cli.lazy import fail
from recommender.cli.running import load_settings, logged, run
from recommender.importers import LIBRARIES, ExportError, ImportOptions
from recommender.importers.interactions import Interactions
from recommender.settings.settings import Settings

if TYPE_CHECKING:
    from recommender.importers.evaluation import Evaluation


def import_(
    library: Annotated[str, typer.Argument(help="rectools, recbole, implicit or vectors.")],
    source: Annotated[
        Path | None, typer.Argument(help="The saved model, or the folder that the script of --script wrote.")
    ] = None,
    *,
    output: Annotated[Path | None, typer.Option(help="The model file to write, …/model.onnx.")] = None,
    python: Annotated[Path | None, typer.Option(help="The Python of the library's own environment.")] = None,
    script: Annotated[
        bool, typer.Option("--script", help="Print the script that this Python would run, and end.")
    ] = False,
    interactions: Annotated[
        Path | None, typer.Option(help="What it was trained on: histories to compare, and the fallback list.")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Interactions to measure it on, offline and through a server.")
    ] = None,
    item_keys: Annotated[
        Path | None, typer.Option(help="The items' keys, if the model keeps none: line i the key of item i.")
    ] = None,
    user_keys: Annotated[
        Path | None, typer.Option(help="The users' keys, if the model keeps none: line i the key of user i.")
    ] = None,
    never_recommend: Annotated[
        Path | None, typer.Option(help="Items that no answer may hold: a key (or id) a line.")
    ] = None,
    bias: Annotated[Path | None, typer.Option(help="vectors: a number for each item, added to its score.")] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="vectors: a .pt2 or .onnx that makes a user's vector of a history, else the mean."),
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="vectors: the file has the similarity of items, [items, items].")
    ] = False,
    longest_history: Annotated[
        int | None, typer.Option(help="vectors: the most recent items that the encoder reads.")
    ] = None,
    padding_id: Annotated[
        int | None, typer.Option(min=0, help="vectors: the encoder's id for padding; by default 0.")
    ] = None,
    padding_side: Annotated[
        str | None, typer.Option(help="vectors: where the encoder wants padding, right or left; by default right.")
    ] = None,
    first_item: Annotated[
        int | None, typer.Option(min=0, help="vectors: the encoder's id of item 0; by default 1 if 0 is padding.")
    ] = None,
    mask_id: Annotated[
        int | None, typer.Option(min=0, help="vectors: an id that the encoder wants behind the history.")
    ] = None,
    num_recommendations: Annotated[
        int | None,
        typer.Option(help="How many recommendations a request without a limit gets; by default the configured number."),
    ] = None,
    max_k: Annotated[int | None, typer.Option(help="Largest limit that a request may have; by default 1000.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the library's and class's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    timeout: Annotated[float, typer.Option(help="Seconds that the library may take.")] = 3600.0,
) -> None:
    """Import a model that another library trained.

    The model file ranks as the library does, or it is not written.
    """
    if library not in (*LIBRARIES, "vectors"):
        fail(f"{library} is not a known library; give {', '.join(LIBRARIES)} or vectors", 2)
    if script:
        if library not in LIBRARIES:
            fail(f"{library} needs no script: its files are read here", 2)
        typer.echo(importers.script_of(library), nl=False)
        return
    if source is None or output is None:
        fail("give what to import, SOURCE, and the model file to write, --output", 2)
    if padding_side not in (None, "right", "left"):
        fail(f"padding_side is {padding_side!r}; give right or left", 2)
    settings = load_settings(num_recommendations=num_recommendations)
    try:
        import_model = importers.import_model
    except ModuleNotFoundError as error:
        fail(f"import needs {error.name}, which serving does not: install recommender[model]", 2)
    console = Console(stderr=True)
    told: list[str] = []
    try:
        options = ImportOptions(
            library=library,
            source=source,
            output=output,
            python=python,
            interactions=interactions,
            item_keys=item_keys,
            user_keys=user_keys,
            never_recommend=never_recommend,
            bias=bias,
            encoder=encoder,
            similarity=similarity,
            longest_history=longest_history,
            padding_id=padding_id,
            padding_side=padding_side,  # type: ignore[arg-type]  # one of the two
            first_item=first_item,
            mask_id=mask_id,
            name=name,
            version=version,
            num_recommendations=settings.models.num_recommendations,
            max_k=max_k,
            timeout=timeout,
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("importing", total=1.0)
            import_model(
                options, lambda stage, share: bar.update(task, description=stage, completed=share), told.append
            )
    except ExportError as error:
        fail(str(error), 2)
    for sentence in told:
        typer.echo(sentence)
    if evaluate is not None:
        _evaluate(output, evaluate, settings)


def _evaluate(path: Path, interactions: Path, settings: Settings) -> None:
    """Print how good the file is, offline and through a server."""
    from recommender.importers.evaluation import evaluate  # noqa: PLC0415 (what an import alone does not need)

    async def main() -> Evaluation:
        return await evaluate(path, Interactions.read(interactions), settings)

    try:
        found = run(logged(settings, main(), level="warning"))
    except ExportError as error:
        fail(str(error), 2)
    for line in found.lines():
        typer.echo(line)
