"""The export, stage by stage: network, encoder, graph, draft file, check, card, and only then the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from torch import nn

from recommender.domain import Feature, Ranking
from recommender.errors import ModelError
from recommender.export.artifact import drafts, publish, write_model
from recommender.export.check import ModelFile, check_model
from recommender.export.encoder import OPSET, add_encoder, export_encoder
from recommender.export.errors import ExportError
from recommender.export.graph import build_graph, describe
from recommender.export.head.codes import CODES, Codes
from recommender.export.head.head import coarse_pays
from recommender.export.lists import Lists
from recommender.export.networks.inputs import Beside, History, rows_of
from recommender.export.networks.load import load_network
from recommender.export.options import MAX_K, ExportOptions
from recommender.export.subject import Subject
from recommender.export.summary import summary
from recommender.export.table import Layout, hide, pack
from recommender.export.ties import check_ties
from recommender.export.truth import Scores
from recommender.models.card import Card, CardTimes, CardTypes, CardUsers, Expected, Given, Golden, Origin, card_files
from recommender.models.features import in_order
from recommender.models.parity import disparity, read_parity, refusal, wanted

_GOLDEN = 3
"""Histories with items of which the card has golden answers."""

Progress = Callable[[str, float], None]


def export_model(
    options: ExportOptions,
    progress: Progress = lambda _stage, _share: None,
    tell: Callable[[str], None] = lambda _sentence: None,
    *,
    network: nn.Module | None = None,
    origin: Origin | None = None,
) -> Path:
    """Export a network as a model file with its card next to it and return the file's path.

    A given `network` replaces that of the options, which then only name it; `origin` says where it was trained.

    `progress` is called with the current step and the share of the whole that is done, 0 to 1; `tell` at the end with
    each sentence on how the network was read. The file is checked against the torch network before it is published;
    until then an existing file stays as it was.

    Raises ExportError if the network, its numbers or the options do not make a model that answers correctly.
    """
    progress("building the network", 0.0)
    subject = Subject.of(load_network(options) if network is None else network, options)
    keys = max(subject.items, subject.readable)
    lists = Lists.read(options.vocabulary, options.fallback, subject.items, options.never_recommend, keys)
    lists = lists.with_users(options.user_vocabulary, subject.users)
    lists = lists.with_types(options.type_vocabulary, subject.types).with_table(options.items_table, subject.items)
    subject = subject.barring(lists.never)
    lists.check_fallback(subject.never)
    max_k = _max_k(options, subject)
    parity = _parity(options, subject, lists)
    layout, table = _table(subject, plain=options.head == "plain")
    coarse = _coarse(options, layout)
    histories, beside = subject.checked(_histories(subject.readable, subject.longest_history, options.padding_id))
    truth = subject.truth(histories, beside)

    progress("tracing the network", 0.1)
    encoder = export_encoder(subject.network, subject.name, subject.longest_history, subject.embeddings, beside)

    if layout is not None:
        progress("checking the head on ties", 0.5)
        check_ties(
            layout.items,
            layout.columns,
            max_k,
            bias=subject.biased,
            coarse=coarse,
            never=bool(subject.never),
            plain=layout.plain,
        )

    progress("building the graph", 0.6)
    size = layout.columns - subject.biased if layout is not None else 0
    metadata = {
        "name": options.model_name,
        "version": options.version,
        "network": options.network,
        "items": str(subject.items),
        "embedding_size": str(size),
        "default_k": str(options.num_recommendations),
        "max_k": str(max_k),
        "longest_history": "" if subject.longest_history is None else str(subject.longest_history),
    }
    if subject.users is not None:
        metadata["users"] = str(subject.users.count)
    if subject.types is not None:
        metadata["history_types"] = str(subject.types.count)
    codes = _codes(table, layout, subject) if coarse else None
    apart = encoder.apart if codes is None else {CODES: codes.codes, **encoder.apart}
    largest = float(max(table.max(), -table.min())) if table is not None else 0.0
    if table is not None and subject.never:
        hide(table, subject.never)
    model = build_graph(
        lambda g: add_encoder(
            g, encoder, items=subject.items, size=size, columns=layout.columns if layout is not None else 0
        ),
        layout,
        items=subject.items,
        largest=largest,
        bias=subject.biased,
        never=subject.never,
        codes=codes,
        beside=beside,
        metadata=metadata,
    )

    with drafts(options.path) as folder:
        path = folder / options.path.name
        progress("writing a draft", 0.65)
        write_model(model, table, path, options.external_data_bytes, apart)

        progress("checking the draft", 0.7)
        tolerance = check_model(
            ModelFile(path),
            truth,
            histories,
            readable=subject.readable,
            default_k=options.num_recommendations,
            max_k=max_k,
            beside=beside,
        )
        tolerance = float(f"{tolerance:.6g}")
        _check_parity(ModelFile(path), parity, subject, max_k, tolerance)

        progress("writing the model", 0.9)
        describe(model, {**metadata, "score_tolerance": f"{tolerance:.6g}"})
        files = write_model(model, table, path, options.external_data_bytes, apart) | lists.write(path)
        files |= subject.declared.write(path)
        card = Card(
            name=options.model_name,
            version=options.version,
            network=options.network,
            items=subject.items,
            history_items=None if subject.readable == subject.items else subject.readable,
            embedding_size=size,
            default_k=options.num_recommendations,
            max_k=max_k,
            longest_history=subject.longest_history,
            padding_id=subject.padding_id,
            users=None if subject.users is None else CardUsers(**asdict(subject.users)),
            history_types=None if subject.types is None else CardTypes(**asdict(subject.types)),
            history_times=None if subject.times is None else CardTimes(**asdict(subject.times)),
            features=subject.declared.cards,
            reads_history=subject.reads_history,
            query_vector=layout is not None,
            embedding_space=options.embedding_space,
            never_recommended=subject.never,
            score_tolerance=tolerance,
            opset=OPSET,
            exported_by=options.exported_by,
            exported_at=datetime.now(UTC).replace(microsecond=0),
            exported_with={
                **{name: version(name) for name in ("torch", "onnx", "recommender")},
                # By the module: the GPU build is another distribution, onnxruntime-gpu.
                "onnxruntime": onnxruntime.__version__,
            },
            origin=origin,
            files=card_files(files),
            golden=_golden(ModelFile(path), histories, options.num_recommendations, beside, subject.declared.features),
            parity=parity,
        )
        publish(files, card, options.path)
    progress("done", 1.0)
    for sentence in summary(subject, card, options.path):
        tell(sentence)
    return options.path


def _table(subject: Subject, *, plain: bool) -> tuple[Layout | None, Scores | None]:
    if subject.embeddings is None:
        return None, None
    layout = Layout(subject.items, subject.embeddings.shape[1] + subject.biased, plain)
    return layout, pack(subject.embeddings, subject.bias, layout)


def _coarse(options: ExportOptions, layout: Layout | None) -> bool:
    """Whether the file has scores in 8 bits; ExportError where they are wanted and cannot be."""
    if options.coarse == "int8" and layout is None:
        raise ExportError("coarse is 'int8', but the network yields scores itself; give 'none', or item_embeddings().")
    if options.coarse == "int8" and layout is not None and not coarse_pays(layout):
        raise ExportError(
            f"coarse is 'int8', but {layout.items} items are too few for coarse scores to choose among; give 'none'."
        )
    return options.coarse == "int8" or (options.coarse == "auto" and layout is not None and layout.slabs > 1)


def _codes(table: Scores | None, layout: Layout | None, subject: Subject) -> Codes | None:
    if table is None or layout is None:
        return None
    return Codes.of(table, layout, bias=subject.biased, never=subject.never)


def _max_k(options: ExportOptions, subject: Subject) -> int:
    items, able = subject.items, subject.recommendable
    for name, k in (("num_recommendations", options.num_recommendations), ("max_k", options.max_k)):
        if k is not None and k > items:
            raise ExportError(f"{name} is {k}, but the catalogue has {items} items; give at most {items}.")
        if k is not None and k > able:
            raise ExportError(
                f"{name} is {k}, but only {able} of the {items} items may be recommended; give at most {able}, or take "
                "items off the never-recommend list."
            )
    return options.max_k if options.max_k is not None else max(options.num_recommendations, min(able, MAX_K))


def _histories(items: int, longest: int | None, padding_id: int | None) -> list[History]:
    """Histories to check with: three for the card, then ragged ones up to the longest; none holds the padding id."""
    top = longest if longest is not None else 200
    wanted = [[1, 2, 3, 4], [0], [items - 1, items // 10 - 1, items // 100 - 1]]
    random = np.random.default_rng(1)
    lengths = [1, 2, 3, 5, 8, 21, top // 2 + 1, top]
    drawn = [random.integers(0, items, min(length, top)).tolist() for length in lengths]
    repeated = [[items - 1, items - 1, 0]]
    known = [[item % items for item in history][:top] for history in (*wanted, *repeated, *drawn)]
    return [[(item + 1) % items if item == padding_id else item for item in history] for history in known]


def _parity(options: ExportOptions, subject: Subject, lists: Lists) -> tuple[Expected, ...]:
    if options.parity is None:
        return ()
    try:
        names = lists.names(subject.items, subject.readable, subject.users, subject.types, subject.times)
        return read_parity(options.parity, replace(names, features=subject.declared.by_name()))
    except ModelError as error:
        raise ExportError(f"{error}.") from error


def _check_parity(model: ModelFile, parity: Sequence[Expected], subject: Subject, max_k: int, tolerance: float) -> None:
    """Raise ExportError unless the model ranks as it did where it was trained."""
    for expected in parity:
        try:
            query = expected.query(wanted(expected, max_k), subject.longest_history)
            query = query._replace(features=in_order(subject.declared.features, expected.features))
            excluded = [(0, item) for item in sorted(set(query.excluded))]
            got = model.rank([query.history], query.k, excluded, beside=subject.beside(query))
        except ModelError as error:
            raise ExportError(f"{error}.") from error
        real = got.ids[0] >= 0
        ranking = Ranking(got.ids[0][real].tolist(), got.scores[0][real].tolist())
        fault = disparity(expected, ranking, tolerance)
        if fault is not None:
            raise ExportError(f"The model was not written: {refusal(expected, fault)}.")


def _golden(
    model: ModelFile, histories: Sequence[History], k: int, beside: Beside, features: Sequence[Feature]
) -> tuple[Golden, ...]:
    """The model's own answers to the first histories, and to those without an item, one by one."""
    answered = []
    for row, history in enumerate(histories):
        if row >= _GOLDEN and history:
            continue
        own = rows_of(beside, [row])
        got = model.rank([history], k, beside=own)
        answered.append(
            Golden(
                item_ids=tuple(history),
                user=int(own["user"][0]) if "user" in own else 0,
                history_types=_first(own, "history_types", len(history)),
                history_times=_first(own, "history_times", len(history)),
                features={feature.name: _one(own[feature.name]) for feature in features},
                recommendations=tuple(got.ids[0].tolist()),
                scores=tuple(got.scores[0].tolist()),
            )
        )
    return tuple(answered)


def _one(values: npt.NDArray[Any]) -> Given:
    """A feature's value in the only row."""
    (value,) = values.tolist()
    return tuple(value) if isinstance(value, list) else value


def _first(beside: Beside, name: str, length: int) -> tuple[int, ...]:
    """The first row's value for each item of its history; empty if the network does not take it."""
    return tuple(beside[name][0, :length].tolist()) if name in beside else ()
