"""Item-to-item models: the scores of all items are the sum of what each item of the history is similar to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.export.networks.network import real_items
from recommender.importers.networks.numbers import Numbers
from recommender.importers.there.common import MOST_SIMILAR


class Similarity(nn.Module):
    """Scores from weights float32 [items, items]; an item of the history counts once, as it does in training."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """Scores [batch, items]."""
        real = real_items(user_history, history_length).to(torch.float32)
        nothing = torch.zeros(user_history.shape[0], self.weights.shape[0])
        seen = nothing.scatter_reduce(1, user_history, real, "amax")
        scores: Tensor = seen @ self.weights
        return scores

    @property
    def history_items(self) -> int:
        """See `Network`."""
        return int(self.weights.shape[0])


def refuse_large(items: int) -> None:
    """Raise ExportError if a similarity of so many items would not fit a file."""
    if items > MOST_SIMILAR:
        raise ExportError(
            f"The model holds the similarity of {items:,} items with each other; the file would hold every pair. At "
            f"most {MOST_SIMILAR:,} items are taken. Train factors instead, or leave out items."
        )


def dense(numbers: Numbers) -> Similarity:
    """From a full matrix, `weights` [items, items]."""
    weights = numbers.take("weights", None, None)
    refuse_large(len(weights))
    if weights.shape[0] != weights.shape[1]:
        raise ExportError(f"weights are {list(weights.shape)}; expected is one row and one column an item.")
    return Similarity(weights)


def sparse(numbers: Numbers) -> Similarity:
    """From a matrix in rows: `indptr` [items + 1], `indices` and `data`, as SciPy has them."""
    ends = numbers.whole("indptr")
    items = len(ends) - 1
    refuse_large(items)
    columns, values = numbers.whole("indices"), numbers.take("data", None)
    counts = ends.diff()
    inside = items >= 0 and len(columns) == len(values) == int(ends[-1]) and bool((counts >= 0).all())
    if not inside or (len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < items):
        raise ExportError("The similarity's indptr, indices and data do not fit each other; save the model again.")
    weights = torch.zeros(items, items)
    rows = torch.repeat_interleave(torch.arange(items), counts)
    weights.index_put_((rows, columns), values, accumulate=True)
    return Similarity(weights)
