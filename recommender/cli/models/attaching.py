"""`recommender models card`: give any ONNX file of the contract a card, with its keys, lists and answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings, logged, run
from recommender.domain import Feature, Model, Ranking, Times, Types, Users
from recommender.engine.contract import Contract
from recommender.engine.drawing import drawn_query
from recommender.engine.engine import OnnxEngine, open_engine
from recommender.engine.onnx_file import OnnxFile, read_onnx_file
from recommender.engine.sessions import as_model_error
from recommender.errors import ModelError, StartError
from recommender.export.errors import ExportError
from recommender.export.lists import Lists
from recommender.export.networks.features import Declared, read_features_file
from recommender.models.artifact import Artifact, open_artifact
from recommender.models.card import (
    Card,
    CardTimes,
    CardTypes,
    CardUsers,
    Files,
    Golden,
    card_files,
    card_path,
    file_sha256,
)
from recommender.models.description import describe
from recommender.models.features import by_name
from recommender.models.loader import loader, open_model
from recommender.models.parity import read_parity
from recommender.settings.settings import Settings

_GOLDEN = 3
_MEASURED = 12
_LONGEST = 16
_FLOOR = 2.0**-19
"""The least tolerance, as a share of the largest score of the answers."""


def card(
    file: Annotated[Path, typer.Argument(help="An ONNX file of the contract.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    items: Annotated[int | None, typer.Option(help="Size of the catalogue, if the file does not say.")] = None,
    history_items: Annotated[int | None, typer.Option(help="How many ids histories hold, if not as many.")] = None,
    longest_history: Annotated[int | None, typer.Option(help="The most recent items that it reads.")] = None,
    default_k: Annotated[
        int | None, typer.Option(help="How many recommendations a request without a limit gets.")
    ] = None,
    max_k: Annotated[int | None, typer.Option(help="Largest limit that a request may have.")] = None,
    padding_id: Annotated[int | None, typer.Option(help="An id that means padding to it; no item has it.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="The items' keys: line i the key of item i.")] = None,
    fallback: Annotated[
        Path | None, typer.Option(help="What to recommend where nothing is known: a key (or id) a line.")
    ] = None,
    never_recommend: Annotated[
        Path | None, typer.Option(help="Items that it never recommends: a key (or id) a line.")
    ] = None,
    users: Annotated[int | None, typer.Option(help="How many users it knows, if it takes users.")] = None,
    first_user: Annotated[int, typer.Option(help="The first user's number, 0 or 1.")] = 1,
    unknown_user: Annotated[
        str, typer.Option(help="By what unknown users are ranked for: row, history or fallback.")
    ] = "row",
    user_vocabulary: Annotated[
        Path | None, typer.Option(help="The users' keys: a text file, the first user's key first.")
    ] = None,
    types: Annotated[int | None, typer.Option(help="How many types of events it knows, if it reads types.")] = None,
    first_type: Annotated[int, typer.Option(help="The first type's number, 0 or 1.")] = 1,
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
        bool, typer.Option("--sorted-times", help="Refuse histories with descending times.")
    ] = False,
    features: Annotated[Path | None, typer.Option(help="JSON of its inputs that are features, by name.")] = None,
    items_table: Annotated[
        Path | None, typer.Option(help="A table of the items' attributes, by key or by id, for filters.")
    ] = None,
    parity: Annotated[Path | None, typer.Option(help="JSONL of histories with what was recommended.")] = None,
) -> None:
    """Write the card of a model file, with its keys and lists, after trying it as a server would."""
    settings = load_settings(num_recommendations=1 if default_k is None else default_k)
    written: Files = {}
    told: str | None = None
    try:
        given = {"items": items, "default_k": default_k, "max_k": max_k, "longest_history": longest_history}
        given["users"], given["history_types"] = users, types
        declared = Declared() if features is None else read_features_file(features, file)
        model, content = _facts(settings, file, given, declared.features)
        count = model.items
        if count is None:
            raise ModelError(f"{file} does not say how many items it has; give --items")
        readable = history_items or count
        lists = Lists.read(vocabulary, fallback, count, never_recommend, max(count, readable))
        lists.check_fallback(lists.never)
        taken = _users(model, first_user, unknown_user)
        known = None if taken is None else Users(taken.count, taken.first, taken.unknown)
        lists = lists.with_users(user_vocabulary, known)
        events = _types(model, {"first": first_type, "unknown": unknown_type, "default": default_type})
        known_types = None if events is None else Types(**events.model_dump())
        lists = lists.with_types(type_vocabulary, known_types).with_table(items_table, count)
        timed = _times(model, file, CardTimes(default=default_time, sorted_times=sorted_times))
        known_times = None if timed is None else Times(**timed.model_dump())
        beside: Files = {file.with_name(each): "external_data" for each in sorted(content.elsewhere)}
        written = lists.write(file) | declared.write(file)
        described = Card(
            name=name or file.stem,
            version=version,
            network=file.stem,
            items=count,
            history_items=history_items,
            embedding_size=0,
            default_k=model.default_k,
            max_k=model.max_k,
            longest_history=model.longest_history,
            padding_id=padding_id,
            users=taken,
            history_types=events,
            history_times=timed,
            features=declared.cards,
            never_recommended=tuple(sorted(lists.never)),
            score_tolerance=0.0,
            opset=content.opset,
            exported_by="recommender models card",
            exported_at=datetime.now(UTC).replace(microsecond=0),
            exported_with={each: version_of(each) for each in ("onnxruntime", "recommender")},
            files=card_files({file: "model", **beside, **written}),
            golden=(),
            parity=()
            if parity is None
            else read_parity(
                parity,
                replace(lists.names(count, readable, known, known_types, known_times), features=declared.by_name()),
            ),
        )
        written[card_path(file)] = "model"
        told = run(logged(settings, _attach(settings, file, described), level="warning"))
    except (StartError, ExportError, ValueError) as error:
        fail(str(error).removesuffix("."), 2)
    finally:
        if told is None:
            for path in written:
                path.unlink(missing_ok=True)
    typer.echo(told)


def _facts(
    settings: Settings, file: Path, given: Mapping[str, int | None], features: tuple[Feature, ...]
) -> tuple[Model, OnnxFile]:
    """The facts that the file and the options give about the model, and the files it is made of."""
    artifact = Artifact(file, file_sha256(file), None)
    more = {f"recommender.{key}": str(value) for key, value in given.items() if value is not None}

    def told(contract: Contract, metadata: Mapping[str, str], width: int | str | None) -> Model:
        return replace(describe(artifact, contract, {**metadata, **more}, width), features=features)

    engine = open_engine(settings.engine, file, told)
    engine.close()
    return engine.model, read_onnx_file(file)


def _users(model: Model, first: int, unknown: str) -> CardUsers | None:
    """The users of a model that takes any. Raises ValueError if these words do not describe them."""
    if model.users is None:
        return None
    return CardUsers.model_validate({"count": model.users.count, "first": first, "unknown": unknown})


def _types(model: Model, described: Mapping[str, int | None]) -> CardTypes | None:
    """The types of a model that reads any. Raises ValueError if these words do not describe them."""
    if model.history_types is None:
        return None
    return CardTypes.model_validate({"count": model.history_types.count, **described})


def _times(model: Model, file: Path, described: CardTimes) -> CardTimes | None:
    """How a model that reads times reads them. Raises ModelError if it reads none, and anything is said of them."""
    if model.history_times is None and described != CardTimes():
        raise ModelError(f"{file} has no input history_times: leave --default-time and --sorted-times out")
    return None if model.history_times is None else described


async def _attach(settings: Settings, file: Path, described: Card) -> str:
    """Write the card, complete it with the model's answers, and try the version.

    Raises ModelError if it may not serve.
    """
    path = card_path(file)
    path.write_text(described.model_dump_json(indent=2) + "\n", encoding="utf-8")
    engine = open_model(settings.engine, open_artifact(file))
    try:
        with as_model_error(file):
            golden, tolerance = await _answers(engine)
    finally:
        engine.close()
    complete = described.model_copy(update={"golden": golden, "score_tolerance": tolerance})
    path.write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    served = await loader(settings).load(open_artifact(file))
    await served.batcher.close()
    served.close_engine()
    return f"{path}: {served.label} may serve, {served.model.items:,} items, checked alone and in company"


async def _answers(engine: OnnxEngine) -> tuple[tuple[Golden, ...], float]:
    """Golden answers, and how far scores of a history differ between a run by itself and a batch."""
    model = engine.model
    drawn = random.Random(1)  # noqa: S311 (fixed histories, and no secret)
    longest = min(model.longest_history or _LONGEST, _LONGEST)
    histories = [tuple(drawn.choices(range(model.readable or 1), k=1 + place % longest)) for place in range(_MEASURED)]
    known = [tuple(model.some_item if item == model.padding_id else item for item in history) for history in histories]
    queries = [drawn_query(model, history, model.default_k, drawn) for history in known]
    if model.users is not None:
        queries.insert(0, drawn_query(model, (), model.default_k, drawn)._replace(user=model.users.first))
    together = await engine.run(queries)
    alone = [(await engine.run([query]))[0] for query in queries]
    golden = tuple(
        Golden(
            item_ids=query.history,
            user=query.user,
            history_types=query.history_types,
            history_times=query.history_times,
            features=by_name(model.features, query.features),
            recommendations=tuple(ranking.item_ids),
            scores=tuple(ranking.scores),
        )
        for query, ranking in zip(queries[:_GOLDEN], alone, strict=False)
    )
    return golden, _tolerance(alone, together)


def _tolerance(alone: Sequence[Ranking], together: Sequence[Ranking]) -> float:
    apart = largest = 0.0
    for one, other in zip(alone, together, strict=True):
        apart = max((abs(a - b) for a, b in zip(one.scores, other.scores, strict=False)), default=apart)
        largest = max(largest, *map(abs, one.scores)) if one.scores else largest
    return float(f"{max(4 * apart, _FLOOR * largest):.6g}")
