"""`recommender models adapt`: a foreign file becomes one of our contract, held to what it scored before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from recommender.domain import Ranking
from recommender.errors import ModelError
from recommender.export.artifact import drafts, publish, write_model
from recommender.export.check import ModelFile, check_model
from recommender.export.encoder import OPSET
from recommender.export.errors import ExportError
from recommender.export.graph import build_graph, describe
from recommender.export.lists import Lists
from recommender.export.options import MAX_K
from recommender.export.truth import Truth
from recommender.importers.adapt.foreign import Declared, Foreign, read_foreign
from recommender.importers.adapt.splice import splice
from recommender.models.card import Card, Expected, Golden, card_files
from recommender.models.parity import disparity, read_parity, refusal, wanted

_GOLDEN = 3
_CHECKED = 24
_LONGEST = 50
_LARGE = 1_500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptOptions:
    """One adaption: the foreign file, the facts that it lacks, and the options of an export."""

    file: Path
    output: Path
    declared: Declared = field(default_factory=Declared)
    vocabulary: Path | None = None
    fallback: Path | None = None
    never_recommend: Path | None = None
    parity: Path | None = None
    name: str = "adapted"
    version: str = "1"
    num_recommendations: int = 10
    max_k: int | None = None


def adapt(options: AdaptOptions, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Write the model file with its card and return its path; `tell` gets what was assumed.

    Raises ExportError if the file has no known shape, or the result does not rank by the original scores.
    """
    if options.output.resolve() == options.file.resolve():
        raise ExportError(f"{options.output} is the file itself; give another output.")
    foreign = read_foreign(options.file, options.declared)
    lists = Lists.read(options.vocabulary, options.fallback, foreign.items, options.never_recommend)
    never = tuple(sorted(lists.never))
    lists.check_fallback(never)
    able = foreign.items - len(never)
    max_k = options.max_k or min(able, MAX_K)
    if max(max_k, options.num_recommendations) > able:
        raise ExportError(f"Only {able} items may be recommended; lower max_k and the number of recommendations.")
    histories = _histories(foreign)
    truth = Truth.of_scores(foreign.scores(histories), never)
    metadata = {
        "name": options.name,
        "version": options.version,
        "network": options.file.stem,
        "items": str(foreign.items),
        "embedding_size": "0",
        "default_k": str(options.num_recommendations),
        "max_k": str(max_k),
        "longest_history": "" if foreign.longest is None else str(foreign.longest),
    }
    model = build_graph(lambda g: splice(g, foreign), None, items=foreign.items, never=never, metadata=metadata)
    with drafts(options.output) as folder:
        path = folder / options.output.name
        write_model(model, None, path, _LARGE)
        tolerance = check_model(
            ModelFile(path),
            truth,
            histories,
            readable=foreign.items,
            default_k=options.num_recommendations,
            max_k=max_k,
        )
        tolerance = float(f"{tolerance:.6g}")
        parity = _parity(options, lists, foreign, ModelFile(path), max_k, tolerance)
        describe(model, {**metadata, "score_tolerance": f"{tolerance:.6g}"})
        files = write_model(model, None, path, _LARGE) | lists.write(path)
        card = Card(
            name=options.name,
            version=options.version,
            network=options.file.stem,
            items=foreign.items,
            embedding_size=0,
            default_k=options.num_recommendations,
            max_k=max_k,
            longest_history=foreign.longest,
            never_recommended=never,
            score_tolerance=tolerance,
            opset=OPSET,
            exported_by="recommender models adapt",
            exported_at=datetime.now(UTC).replace(microsecond=0),
            exported_with={
                **{each: version(each) for each in ("onnx", "recommender")},
                "onnxruntime": onnxruntime.__version__,
            },
            files=card_files(files),
            golden=tuple(
                _golden(ModelFile(path), history, options.num_recommendations) for history in histories[:_GOLDEN]
            ),
            parity=parity,
        )
        publish(files, card, options.output)
    tell(f"{options.output}: ranks by the scores of {options.file}, for {len(histories)} histories; with its card.")
    for sentence in foreign.assumed():
        tell(sentence)
    return options.output


def _histories(foreign: Foreign) -> list[list[int]]:
    """Histories of all lengths that the file reads."""
    random = np.random.default_rng(1)
    longest = foreign.longest or _LONGEST
    lengths = [min(length, longest) for length in (3, 1, 2, 5, longest, longest // 2 + 1)]
    lengths += random.integers(1, longest, _CHECKED - len(lengths), endpoint=True).tolist()
    return [random.integers(0, foreign.items, length).tolist() for length in lengths]


def _golden(model: ModelFile, history: Sequence[int], k: int) -> Golden:
    got = model.rank([history], k)
    return Golden(
        item_ids=tuple(history), recommendations=tuple(got.ids[0].tolist()), scores=tuple(got.scores[0].tolist())
    )


def _parity(
    options: AdaptOptions, lists: Lists, foreign: Foreign, model: ModelFile, max_k: int, tolerance: float
) -> tuple[Expected, ...]:
    """The histories of the parity file; raises ExportError if the model ranks one of them otherwise."""
    if options.parity is None:
        return ()
    try:
        found = read_parity(options.parity, lists.names(foreign.items, foreign.items, None))
        for expected in found:
            got = model.rank(
                [expected.item_ids[-(foreign.longest or len(expected.item_ids)) :]], wanted(expected, max_k)
            )
            real = got.ids[0] >= 0
            ranking = Ranking(got.ids[0][real].tolist(), got.scores[0][real].tolist())
            fault = disparity(expected, ranking, tolerance)
            if fault is not None:
                raise ExportError(f"The model was not written: {refusal(expected, fault)}.")
    except ModelError as error:
        raise ExportError(f"{error}.") from error
    return found
