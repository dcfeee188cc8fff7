"""`recommender models adapt`: give an ONNX file that another exporter wrote our inputs and outputs, and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings
from recommender.export.errors import ExportError


def adapt(
    file: Annotated[Path, typer.Argument(help="An ONNX file that scores all items for a history.")],
    *,
    output: Annotated[Path, typer.Option(help="The model file to write, …/model.onnx.")],
    padding_id: Annotated[int, typer.Option(help="The id that means padding to it.")] = 0,
    padding_side: Annotated[
        str | None, typer.Option(help="right or left; by default right if it takes lengths, else left.")
    ] = None,
    first_item: Annotated[
        int | None, typer.Option(help="Its id of item 0; by default 1 if 0 is padding, else 0.")
    ] = None,
    mask_id: Annotated[
        int | None, typer.Option(help="An id that it wants behind the history, as BERT4Rec does.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="How many ids it takes, if the file does not say.")] = None,
    items: Annotated[int | None, typer.Option(help="Size of the catalogue, if its scores do not show it.")] = None,
    first_column: Annotated[
        int | None, typer.Option(help="The column of item 0 in its scores; by default its id.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="The items' keys: line i the key of item i.")] = None,
    fallback: Annotated[
        Path | None, typer.Option(help="What to recommend where nothing is known: a key (or id) a line.")
    ] = None,
    never_recommend: Annotated[
        Path | None, typer.Option(help="Items that no answer may hold: a key (or id) a line.")
    ] = None,
    parity: Annotated[Path | None, typer.Option(help="JSONL of histories with what was recommended.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    num_recommendations: Annotated[
        int | None,
        typer.Option(help="How many recommendations a request without a limit gets; by default the configured number."),
    ] = None,
    max_k: Annotated[int | None, typer.Option(help="Largest limit that a request may have; by default 1000.")] = None,
) -> None:
    """Rewrite a foreign ONNX file with our inputs, an exact top-K and a card; it ranks by the scores it had."""
    settings = load_settings(num_recommendations=num_recommendations)
    try:
        from recommender.importers.adapt.adapt import AdaptOptions  # noqa: PLC0415 (needs onnx, which serving does not)
        from recommender.importers.adapt.adapt import adapt as write  # noqa: PLC0415
        from recommender.importers.adapt.foreign import Declared  # noqa: PLC0415
    except ModuleNotFoundError as error:
        fail(f"adapt needs {error.name}, which serving does not: install recommender[model]", 2)
    if padding_side not in (None, "right", "left"):
        fail(f"padding_side is {padding_side!r}; give right or left", 2)
    told: list[str] = []
    try:
        declared = Declared(
            padding_id=padding_id,
            padding_side=padding_side,  # type: ignore[arg-type]  # one of the two
            first_item=first_item,
            mask_id=mask_id,
            width=width,
            items=items,
            first_column=first_column,
        )
        options = AdaptOptions(
            file=file,
            output=output,
            declared=declared,
            vocabulary=vocabulary,
            fallback=fallback,
            never_recommend=never_recommend,
            parity=parity,
            name=name or file.stem,
            version=version,
            num_recommendations=settings.models.num_recommendations,
            max_k=max_k,
        )
        write(options, told.append)
    except ExportError as error:
        fail(str(error), 2)
    for sentence in told:
        typer.echo(sentence)
