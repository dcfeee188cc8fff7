"""The check: a written model against the torch network and a brute-force ranking, before the file is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime as ort

from recommender.engine.coarse import COARSE_ROWS, EVERY_BATCH, NO_BATCH, takes_coarse_rows
from recommender.engine.onnx_file import read_onnx_file
from recommender.export.errors import ExportError
from recommender.export.networks.inputs import NOTHING, Beside, History, arrays, padded, rows_of
from recommender.export.obstacles import obstacle
from recommender.export.truth import Ids, Rankings, Scores, Truth, brute_force

# Scores of torch and ONNX Runtime may differ by this share of what they sum up.
PARITY = 2.0**-13
_FLOOR = 2.0**-19
# Longer lists of exclusions and candidates would make the check itself slow.
_CHECKED_ITEMS = 50_000
# Numbers that a message shows of an answer.
_SHOWN = 10

Tolerance: TypeAlias = float | Callable[[int, Ids], Scores]
"""How far scores may lie apart: for all alike, or for a row's scores of these items."""


class ModelFile:
    """A model file on ONNX Runtime's CPU provider, asked in the engine's way."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._unrestricted = _session(path, nnz=0, c=0) if read_onnx_file(path).small else None
        self._spans = (NO_BATCH, EVERY_BATCH) if takes_coarse_rows(self._session) else ()

    def rank(
        self,
        histories: Sequence[History],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
        beside: Beside = NOTHING,
    ) -> Rankings:
        """Rank for these histories; `candidates` are one ascending list a row, or None for the whole catalogue.

        `beside` has the model's other inputs.
        """
        return self.rank_in_each_way(histories, k, excluded, candidates, beside=beside)[-1]

    def rank_in_each_way(
        self,
        histories: Sequence[History],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
        padding: Ids | None = None,
        beside: Beside = NOTHING,
    ) -> list[Rankings]:
        """The same in each way that the engine may take, the quickest last.

        These are float32 and scores in 8 bits, and a separate session without exclusions and candidates. `padding`
        int64 [batch, history] or wider pads each history instead of 0.
        """
        rows = len(histories)
        few, few_lengths = (
            padded(candidates) if candidates is not None else (np.zeros((rows, 0), np.int64), np.zeros(rows, np.int64))
        )
        feeds = {
            **arrays(histories, beside, padding),
            "k": np.array([k], np.int64),
            "excluded": np.array(excluded, np.int64).reshape(-1, 2),
            "candidates": few,
            "candidates_length": few_lengths,
        }
        sessions = [self._session]
        if self._unrestricted is not None and not len(excluded) and candidates is None:
            sessions.append(self._unrestricted)
        try:
            return [
                Rankings(*session.run(["recommendations", "scores"], {**feeds, **span}))
                for session in sessions
                for span in ([{COARSE_ROWS: rows} for rows in self._spans] or [{}])
            ]
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(f"ONNX Runtime cannot run what torch exported: {obstacle(error)}") from error


def _session(path: Path, **pinned: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it logs the errors that it raises
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in pinned.items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(f"ONNX Runtime cannot load what torch exported: {obstacle(error)}") from error


def difference(got: Rankings, scores: Scores, k: int, tolerance: Tolerance) -> str | None:
    """How a ranking differs from the brute-force one over `scores` [batch, items]; None where they are equal.

    Equal means: the right length, each score right, the order best first and the lower id first among equals, nothing
    better left out; scores within `tolerance` of each other count as one.
    """
    within = tolerance if callable(tolerance) else (lambda _, ids: np.full(len(ids), tolerance, np.float32))
    expected = brute_force(scores, k)
    if got.ids.shape != expected.ids.shape:
        return f"{got.ids.shape} ids where {expected.ids.shape} were expected"
    for row, ids in enumerate(got.ids):
        apart = np.maximum(within(row, ids), within(row, expected.ids[row]))
        wrong = _row_difference(ids, got.scores[row], expected.ids[row], expected.scores[row], scores[row], apart)
        if wrong is not None:
            return f"row {row} is {_some(ids)} where {_some(expected.ids[row])} was expected: {wrong}"
    return None


def _row_difference(
    ids: Ids, own: Scores, right_ids: Ids, right: Scores, scores: Scores, tolerance: Scores
) -> str | None:
    real = ids >= 0
    if not np.array_equal(real, right_ids >= 0) or len(set(ids[real])) != real.sum():
        return "not that many different items"
    if not np.isneginf(own[~real]).all():
        return "a filler's score is not -inf"
    if not (np.abs(own[real] - scores[ids[real]]) <= tolerance[real]).all():
        return f"the scores {_some(own)} are not those items'"
    if not (np.abs(own[real] - right[real]) <= tolerance[real]).all():
        return "something better was left out"
    if not np.array_equal(np.lexsort((ids[real], -own[real])), np.arange(real.sum())):
        return "not best first, lower id first among equals"
    return None


def _some(values: Ids | Scores) -> str:
    """The first of these numbers."""
    shown = ", ".join(str(value) for value in values[:_SHOWN].tolist())
    return f"[{shown}{', …' if len(values) > _SHOWN else ''}]"


class _Check:
    """Holds one model's answers to the truth, and keeps account of how far they lie apart."""

    def __init__(self, model: ModelFile, truth: Truth, histories: Sequence[History], beside: Beside) -> None:
        self.apart = 0.0
        """The largest difference of a score from the truth, as a share of what that score sums up."""
        self._model = model
        self._truth = truth
        self._histories = histories
        self._beside = beside

    def hold(
        self,
        what: str,
        chosen: Sequence[int],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
        padding: Ids | None = None,
    ) -> Rankings:
        """Rank for the chosen histories; raises ExportError if an answer differs from the truth."""
        truth = self._truth.rows(chosen).masked(excluded, candidates)
        histories = [self._histories[row] for row in chosen]
        beside = rows_of(self._beside, chosen)
        for got in self._model.rank_in_each_way(histories, k, excluded, candidates, padding, beside):
            wrong = difference(got, truth.scores, k, lambda row, ids: PARITY * truth.scale(row, ids))
            if wrong is not None:
                raise ExportError(
                    f"The exported model does not answer as the torch network does ({what}, k = {k}): {wrong}. "
                    "Nothing was written."
                )
            for row, ids in enumerate(got.ids):
                real = ids >= 0
                self.note(got.scores[row, real] - truth.scores[row, ids[real]], truth.scale(row, ids[real]))
        return got

    def note(self, differences: Scores, scale: Scores) -> None:
        """Take account of differences of scores that sum up so much."""
        self.apart = max(self.apart, float((np.abs(differences) / scale).max(initial=0)))


def check_model(
    model: ModelFile,
    truth: Truth,
    histories: Sequence[History],
    *,
    readable: int,
    default_k: int,
    max_k: int,
    beside: Beside = NOTHING,
) -> float:
    """Compare a model with the torch network's scores [len(histories), items]; returns the measured score tolerance.

    Single and batched, ragged, with other ids below `readable` in the padding, with several k, exclusions and
    candidates. `max_k` is at most the number of items that may be recommended. `beside` has the model's inputs besides
    the histories. Raises ExportError if an answer differs.
    """
    items = truth.scores.shape[1]
    random = np.random.default_rng(0)
    rows = len(histories)
    check = _Check(model, truth, histories, beside)

    together = check.hold("a batch", range(rows), default_k)
    for row in range(rows):
        alone = check.hold("one row", [row], default_k)
        check.note(alone.scores[0] - together.scores[row], truth.scale(row, alone.ids[0]))
    widest = max(map(len, histories))
    noise = random.integers(0, readable, (rows, widest))
    check.hold("a batch with other ids in the padding", range(rows), default_k, padding=noise)
    for k in sorted({1, min(2, max_k), min(100, max_k), max_k}):
        check.hold("a batch", range(rows), k)
    best = brute_force(truth.scores, default_k).ids
    excluded = [(row, int(item)) for row in range(rows) if row % 3 for item in best[row, ::2]]
    excluded += [(0, int(item)) for item in random.permutation(items)[: min(items // 2, _CHECKED_ITEMS)]]
    for k in sorted({default_k, max_k}):
        check.hold("exclusions", range(rows), k, excluded)
    candidates = [sorted(random.permutation(min(items, _CHECKED_ITEMS))[: 1 + 7 * row].tolist()) for row in range(rows)]
    check.hold("candidates", range(rows), default_k, (), candidates)
    excluded = [(row, item) for row in range(rows) for item in candidates[row][::2]] + [(0, items - 1)]
    check.hold("candidates and exclusions", range(rows), default_k, sorted(set(excluded)), candidates)
    return max(4 * check.apart, _FLOOR) * truth.answer_scale(default_k)
