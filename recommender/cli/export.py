"""`recommender export`: a torch network becomes a model file. Torch is imported for the export itself only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from recommender import export as exporting
from recommender.cli.lazy import fail
from recommender.cli.running import load_settings
from recommender.export import ExportError, ExportOptions


def export(
    network: Annotated[
        str, typer.Option(help="reference, sasrec, gru4rec, tisasrec, two-tower, or your own as module:factory.")
    ] = "reference",
    num_recommendations: Annotated[
        int | None,
        typer.Option(help="How many recommendations a request without a limit gets; by default the configured number."),
    ] = None,
    items: Annotated[int | None, typer.Option(help="Size of the catalogue; by default 10000.")] = None,
    dim: Annotated[int | None, typer.Option(help="Size of an item embedding; by default 32.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    layers: Annotated[int | None, typer.Option(help="Layers of a sequential network; by default 2.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of a sequential network; by default 2.")] = None,
    longest_history: Annotated[
        int | None, typer.Option(help="Most recent items that a sequential network reads; by default 200.")
    ] = None,
    padding_id: Annotated[
        int | None, typer.Option(help="An id that means padding to your network; no item has it.")
    ] = None,
    padding_side: Annotated[str, typer.Option(help="right or left: where your network expects its padding.")] = "right",
    max_k: Annotated[int | None, typer.Option(help="Largest limit that a request may have; by default 1000.")] = None,
    coarse: Annotated[
        str, typer.Option(help="int8 adds a table in 8 bits, none does not, auto adds it to large catalogues.")
    ] = "auto",
    head: Annotated[
        str, typer.Option(help="plain for GPUs: one product, one selection. blocks is quicker on CPUs.")
    ] = "blocks",
    checkpoint: Annotated[Path | None, typer.Option(help="A state_dict written by torch.save.")] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="The items' keys: a text file, line i the key of item i.")
    ] = None,
    fallback: Annotated[
        Path | None,
        typer.Option(help="What to recommend where nothing is known: a key (or id) a line, best first."),
    ] = None,
    parity: Annotated[
        Path | None, typer.Option(help="JSONL of histories with what was recommended where the model was trained.")
    ] = None,
    never_recommend: Annotated[
        Path | None, typer.Option(help="Items that no answer may hold: a key (or id) a line.")
    ] = None,
    users: Annotated[int | None, typer.Option(help="How many users your network knows, if it does not say.")] = None,
    first_user: Annotated[int | None, typer.Option(help="The first user's number, 0 or 1; by default 1.")] = None,
    unknown_user: Annotated[
        str | None, typer.Option(help="By what unknown users are ranked for: row, history or fallback.")
    ] = None,
    user_vocabulary: Annotated[
        Path | None, typer.Option(help="The users' keys: a text file, the first user's key first.")
    ] = None,
    types: Annotated[
        int | None, typer.Option(help="How many event types your network knows, if it does not say.")
    ] = None,
    first_type: Annotated[int | None, typer.Option(help="The first type's number, 0 or 1; by default 1.")] = None,
    unknown_type: Annotated[
        int | None, typer.Option(help="The number for types that it does not know; by default they are refused.")
    ] = None,
    default_type: Annotated[
        int | None, typer.Option(help="The type of histories without types; by default they are refused.")
    ] = None,
    type_vocabulary: Annotated[
        Path | None, typer.Option(help="The keys of the types: a text file, the first type's key first.")
    ] = None,
    default_time: Annotated[
        int | None, typer.Option(help="The time, in Unix ms, of histories without times; by default they are refused.")
    ] = None,
    sorted_times: Annotated[
        bool | None, typer.Option("--sorted-times", help="Refuse histories with descending times.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="JSON of the features that your network's forward takes, by name.")
    ] = None,
    items_table: Annotated[
        Path | None, typer.Option(help="A table of the items' attributes, by key or by id, for filters.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the network's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    embedding_space: Annotated[
        str | None, typer.Option(help="Names the space of item vectors; versions of one space share new items.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file; by default {K}_model.onnx in the weights folder.")
    ] = None,
) -> None:
    """Export a torch network as a model file with its card, checked against the network itself."""
    settings = load_settings(num_recommendations=num_recommendations)
    try:
        export_model = exporting.export_model
    except ModuleNotFoundError as error:
        fail(
            f"export needs {error.name}, which serving does not: run `uv run --group model recommender export …`, "
            "or install recommender[model]",
            2,
        )
    k = settings.models.num_recommendations
    console = Console(stderr=True)
    told: list[str] = []
    try:
        options = ExportOptions(
            network=network,
            items=items,
            dim=dim,
            seed=seed,
            layers=layers,
            heads=heads,
            longest_history=longest_history,
            num_recommendations=k,
            max_k=max_k,
            padding_id=padding_id,
            padding_side=padding_side,  # type: ignore[arg-type]  # the options check it
            output=output or settings.models.weights_dir / f"{k}_model.onnx",
            checkpoint=checkpoint,
            vocabulary=vocabulary,
            fallback=fallback,
            never_recommend=never_recommend,
            parity=parity,
            users=users,
            first_user=first_user,
            unknown_user=unknown_user,  # type: ignore[arg-type]  # the network's users check it
            user_vocabulary=user_vocabulary,
            types=types,
            first_type=first_type,
            unknown_type=unknown_type,
            default_type=default_type,
            type_vocabulary=type_vocabulary,
            default_time=default_time,
            sorted_times=sorted_times,
            features=features,
            items_table=items_table,
            name=name,
            version=version,
            embedding_space=embedding_space,
            coarse=coarse,  # type: ignore[arg-type]  # the options check it
            head=head,  # type: ignore[arg-type]  # the options check it
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("exporting", total=1.0)
            export_model(
                options, lambda stage, share: bar.update(task, description=stage, completed=share), told.append
            )
    except ExportError as error:
        fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        fail("there is not enough memory for a network of this size: lower --items or --dim", 2)
    for sentence in told:
        typer.echo(sentence)
