"""The reference of a model file: the torch network's own scores, and the error bound of each.

The error of a sum in float32 grows with its terms: the product of a user's and an item's norm, and the item's bias. So
each item has a separate bound. An item whose bias is -1e9 widens no other bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

# What an item of ordinary norm adds to the bound of any other: a vector of zeros is not zero in all sums.
_LEAST_SHARE = 2.0**-7
# The best of so many hundredths of the catalogue say how large the scores are that a network yields itself.
_BEST_HUNDREDTHS = 10


@dataclass(frozen=True, slots=True)
class Truth:
    """Scores float32 [rows, items], -inf for items that are never recommended, and the size of what each sums up.

    `users` float32 [rows] and `vectors` float32 [items] are norms, `biases` float32 [items] absolute values. A network
    that yields scores itself has a norm for each row, and its absolute scores for biases.
    """

    scores: Scores
    users: Scores
    vectors: Scores | None = None
    biases: Scores | None = None

    @classmethod
    def of_vectors(cls, users: Scores, embeddings: Scores, bias: Scores | None, never: Sequence[int]) -> Truth:
        """From user vectors [rows, d], embeddings [items, d] and bias [items]."""
        scores = users @ embeddings.T
        if bias is not None:
            scores += bias
        scores[:, list(never)] = -np.inf
        norms, vectors = np.linalg.norm(users, axis=1), np.linalg.norm(embeddings, axis=1)
        least = _LEAST_SHARE * float(np.median(norms) * np.median(vectors))
        biases = least if bias is None else np.abs(bias) + least
        return cls(scores, norms, vectors, np.broadcast_to(np.float32(biases), vectors.shape))

    @classmethod
    def of_scores(cls, yielded: Scores, never: Sequence[int]) -> Truth:
        """From the scores [rows, items] of a network that yields them itself."""
        scores = yielded.copy()
        scores[:, list(never)] = -np.inf
        able = scores.shape[1] - len(never)
        best = -np.partition(-scores, (most := min(able, max(able * _BEST_HUNDREDTHS // 100, 2))) - 1)[:, :most]
        return cls(scores, np.median(np.abs(best), axis=1) + np.float32(np.finfo(np.float32).tiny))

    def rows(self, chosen: Sequence[int]) -> Truth:
        """The truth of these rows."""
        return replace(self, scores=self.scores[list(chosen)], users=self.users[list(chosen)])

    def masked(self, excluded: Sequence[tuple[int, int]], candidates: Sequence[Sequence[int]] | None) -> Truth:
        """The truth with -inf where a row may not go."""
        return replace(self, scores=masked(self.scores, excluded, candidates))

    def scale(self, row: int, ids: Ids) -> Scores:
        """Sum of the absolute terms of a row's scores of these items: float32 [len(ids)], above 0."""
        if self.vectors is None or self.biases is None:
            own = np.abs(self.scores[row, ids])
            summed: Scores = self.users[row] + np.where(np.isfinite(own), own, np.float32(0))
        else:
            summed = self.users[row] * self.vectors[ids] + self.biases[ids] + np.float32(np.finfo(np.float32).tiny)
        return summed

    def answer_scale(self, k: int) -> float:
        """The scale of the scores in an answer of `k` items: an ordinary one of its items, in the largest row."""
        best = brute_force(self.scores, k).ids
        return max(float(np.median(self.scale(row, ids[ids >= 0]))) for row, ids in enumerate(best))


@dataclass(frozen=True, slots=True)
class Rankings:
    """A model's answers: ids int64 [batch, k], scores float32 [batch, k]."""

    ids: Ids
    scores: Scores


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
