"""The check: a written model against the torch network and a brute-force ranking, before anybody may have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from recommender.engine.onnx_file import read_onnx_file
from recommender.export.errors import ExportError

# Scores of torch and ONNX Runtime may differ by this share of the largest product of norms.
_PARITY = 2.0**-13
_FLOOR = 2.0**-19
# Longer lists of exclusions and candidates would make the check itself slow.
_CHECKED_ITEMS = 50_000

History = Sequence[int]
Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rankings:
    """What a model answers: ids int64 [batch, k], scores float32 [batch, k]."""

    ids: Ids
    scores: Scores


class ModelFile:
    """A model file on ONNX Runtime's CPU provider, asked in the engine's way."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._unrestricted = _session(path, nnz=0, c=0) if read_onnx_file(path).small else None

    def rank(
        self,
        histories: Sequence[History],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
    ) -> Rankings:
        """Rank for these histories; `candidates` are one ascending list a row, or None for the whole catalogue."""
        return self.rank_in_each_way(histories, k, excluded, candidates)[-1]

    def rank_in_each_way(
        self,
        histories: Sequence[History],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
    ) -> list[Rankings]:
        """The same from each session that can tell: two without exclusions and candidates, the quick one last."""
        rows, lengths = padded(histories)
        few, few_lengths = (
            padded(candidates) if candidates is not None else (np.zeros((len(rows), 0), np.int64), 0 * lengths)
        )
        feeds = {
            "user_history": rows,
            "history_length": lengths,
            "k": np.array([k], np.int64),
            "excluded": np.array(excluded, np.int64).reshape(-1, 2),
            "candidates": few,
            "candidates_length": few_lengths,
        }
        sessions = [self._session]
        if self._unrestricted is not None and not len(excluded) and candidates is None:
            sessions.append(self._unrestricted)
        return [Rankings(*session.run(["recommendations", "scores"], feeds)) for session in sessions]


def _session(path: Path, **pinned: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in pinned.items():
        options.add_free_dimension_override_by_name(name, size)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Ragged rows as int64 [batch, widest] padded on the right with 0, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    together = np.zeros((len(rows), int(lengths.max(initial=1))), np.int64)
    for index, row in enumerate(rows):
        together[index, : len(row)] = row
    return together, lengths


def brute_force(scores: Scores, k: int) -> Rankings:
    """The k best of all scores [batch, items], ties lower id first; -1 and -inf where a row has no more."""
    ids = np.empty((len(scores), k), np.int64)
    for row, own in enumerate(scores):
        # From the other end NumPy would take ten times as long over scores of which most are equal.
        worst = -np.partition(-own, k - 1)[k - 1]
        able = np.flatnonzero(own >= worst)
        ids[row] = able[np.argsort(-own[able], kind="stable")[:k]]
    best = np.take_along_axis(scores, ids, axis=1)
    return Rankings(np.where(np.isneginf(best), -1, ids), best)


def masked(scores: Scores, excluded: Sequence[tuple[int, int]], candidates: Sequence[Sequence[int]] | None) -> Scores:
    """All scores with -inf where a row may not go."""
    allowed = scores.copy()
    if candidates is not None:
        allowed[:] = -np.inf
        for row, ids in enumerate(candidates):
            allowed[row, ids] = scores[row, ids]
    for row, item in excluded:
        allowed[row, item] = -np.inf
    return allowed


def difference(got: Rankings, scores: Scores, k: int, tolerance: float) -> str | None:
    """How a ranking differs from the brute-force one over `scores` [batch, items]; None where they are equal.

    Equal means: the right length, each score right, the order best first and the lower id first among equals, nothing
    better left out; scores within `tolerance` of each other count as one.
    """
    expected = brute_force(scores, k)
    if got.ids.shape != expected.ids.shape:
        return f"{got.ids.shape} ids where {expected.ids.shape} were expected"
    for row, ids in enumerate(got.ids):
        wrong = _row_difference(ids, got.scores[row], expected.ids[row], expected.scores[row], scores[row], tolerance)
        if wrong is not None:
            return f"row {row} is {ids.tolist()} where {expected.ids[row].tolist()} was expected: {wrong}"
    return None


def _row_difference(
    ids: Ids, own: Scores, right_ids: Ids, right: Scores, scores: Scores, tolerance: float
) -> str | None:
    real = ids >= 0
    if not np.array_equal(real, right_ids >= 0) or len(set(ids[real])) != real.sum():
        return "not that many different items"
    if not np.isneginf(own[~real]).all():
        return "a filler's score is not -inf"
    if (np.abs(own[real] - scores[ids[real]]) > tolerance).any():
        return f"the scores {own.tolist()} are not those items'"
    if (np.abs(own[real] - right[real]) > tolerance).any():
        return "something better was left out"
    if not np.array_equal(np.lexsort((ids[real], -own[real])), np.arange(real.sum())):
        return "not best first, lower id first among equals"
    return None


def check_model(
    model: ModelFile,
    scores: Scores,
    histories: Sequence[History],
    *,
    scale: float,
    default_k: int,
    max_k: int,
) -> float:
    """Hold a model to the torch network's scores [len(histories), items]; returns the measured score tolerance.

    Single and batched, ragged, with several k, exclusions and candidates. ExportError where an answer differs.
    `scale` bounds the absolute scores: the largest product of a user's and an item's norm.
    """
    items = scores.shape[1]
    allowed = _PARITY * scale
    largest = 0.0
    random = np.random.default_rng(0)
    rows = len(histories)

    def hold(
        what: str,
        chosen: Sequence[int],
        k: int,
        excluded: Sequence[tuple[int, int]] = (),
        candidates: Sequence[Sequence[int]] | None = None,
    ) -> Rankings:
        nonlocal largest
        known = masked(scores[list(chosen)], excluded, candidates)
        for got in model.rank_in_each_way([histories[row] for row in chosen], k, excluded, candidates):
            wrong = difference(got, known, k, allowed)
            if wrong is not None:
                raise ExportError(
                    f"The exported model does not answer as the torch network does ({what}, k = {k}): {wrong}. "
                    "Nothing was written."
                )
            real = got.ids >= 0
            apart = np.abs(got.scores[real] - np.take_along_axis(known, np.where(real, got.ids, 0), axis=1)[real])
            largest = max(largest, float(apart.max(initial=0)))
        return got

    together = hold("a batch", range(rows), default_k)
    for row in range(rows):
        alone = hold("one row", [row], default_k)
        largest = max(largest, float(np.abs(alone.scores - together.scores[row]).max()))
    for k in sorted({1, min(2, max_k), min(100, max_k), max_k}):
        hold("a batch", range(rows), k)
    best = brute_force(scores, default_k).ids
    excluded = [(row, int(item)) for row in range(rows) if row % 3 for item in best[row, ::2]]
    excluded += [(0, int(item)) for item in random.permutation(items)[: min(items // 2, _CHECKED_ITEMS)]]
    for k in sorted({default_k, max_k}):
        hold("exclusions", range(rows), k, excluded)
    candidates = [sorted(random.permutation(min(items, _CHECKED_ITEMS))[: 1 + 7 * row].tolist()) for row in range(rows)]
    hold("candidates", range(rows), default_k, (), candidates)
    excluded = [(row, item) for row in range(rows) for item in candidates[row][::2]] + [(0, items - 1)]
    hold("candidates and exclusions", range(rows), default_k, sorted(set(excluded)), candidates)
    return max(4 * largest, _FLOOR * scale)
