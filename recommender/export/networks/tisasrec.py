"""A TiSASRec-style network: self-attention over the history that knows how long ago each item was.

After Li, Wang and McAuley, "Time Interval Aware Self-Attention for Sequential Recommendation" (2020), with
normalisation before each part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state, real_items

_INTERVALS = 256
"""The largest interval that is distinguished, in units of the shortest one of its history."""
_EVER = 1 << 62


class _Block(nn.Module):
    """Causal self-attention and a feed-forward part, each added to its input: [batch, history, dim].

    Keys and values of a pair of items also depend on the positions and on the interval between them.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)
        self.before_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, states: Tensor, places: tuple[Tensor, Tensor], gaps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """`places` are what positions add to keys and values, `gaps` the intervals and what they add to both."""
        intervals, gap_keys, gap_values = gaps
        queries, keys, values = self.queries_keys_values(self.before_attention(states)).chunk(3, dim=-1)
        queries, keys, values = map(self._by_head, (queries, keys + places[0], values + places[1]))
        each = intervals.unsqueeze(1).expand(-1, self.heads, -1, -1)
        # A product with each interval's vector, looked up for each pair, needs no vector for each pair.
        of_gaps = (queries @ self._by_head(gap_keys).transpose(-1, -2)).gather(3, each)
        scores = (queries @ keys.transpose(-1, -2) + of_gaps) * queries.shape[-1] ** -0.5
        column = torch.arange(states.shape[1], device=states.device)
        # Padding is on the right, so a causal mask already hides it from every real item.
        weights = scores.masked_fill(column[None, :] > column[:, None], -torch.inf).softmax(-1)
        by_gap = torch.zeros_like(of_gaps[..., :1]).expand(-1, -1, -1, len(gap_keys)).scatter_add(3, each, weights)
        attended = weights @ values + by_gap @ self._by_head(gap_values)
        states = states + self.mix(attended.transpose(-2, -3).flatten(-2))
        fed: Tensor = states + self.feed_forward(self.before_feed_forward(states))
        return fed

    def _by_head(self, vectors: Tensor) -> Tensor:
        """[…, rows, dim] → […, heads, rows, dim / heads]."""
        heads = vectors.reshape(*vectors.shape[:-1], self.heads, vectors.shape[-1] // self.heads)
        return heads.transpose(-2, -3)


class TiSasRec(nn.Module):
    """Self-attention over at most `longest_history` items and their times; see `Network` for its methods.

    Histories without times are read as items of one moment. Raises ExportError where `dim` is not a multiple of
    `heads`.
    """

    default_time = 0

    def __init__(self, items: int, dim: int, layers: int, heads: int, longest_history: int) -> None:
        super().__init__()
        if dim % heads:
            raise ExportError(f"dim is {dim}, which {heads} heads cannot share evenly; give a multiple of {heads}.")
        self.longest_history = longest_history
        self.items = nn.Embedding(items, dim)
        self.place_keys = nn.Embedding(longest_history, dim)
        self.place_values = nn.Embedding(longest_history, dim)
        self.gap_keys = nn.Embedding(_INTERVALS + 1, dim)
        self.gap_values = nn.Embedding(_INTERVALS + 1, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, user_history: Tensor, history_length: Tensor, history_times: Tensor) -> Tensor:
        """See `Network`."""
        return self.attend(self.items(user_history), history_length, history_times)

    def attend(self, states: Tensor, history_length: Tensor, history_times: Tensor) -> Tensor:
        """User vectors for histories of items with these states, [batch, history, dim]."""
        column = torch.arange(states.shape[1], device=states.device)
        places = (self.place_keys(column), self.place_values(column))
        apart = intervals(history_times, real_items(history_times, history_length))
        gaps = (apart, self.gap_keys.weight, self.gap_values.weight)
        for block in self.blocks:
            states = block(states, places, gaps)
        vectors: Tensor = self.norm(last_state(states, history_length))
        return vectors

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight


def intervals(times: Tensor, real: Tensor) -> Tensor:
    """How long lies between each two items, in units of the shortest interval above 0 of their history.

    `times` int64 and `real` bool [batch, history] → int64 [batch, history, history], at most `_INTERVALS`. Intervals of
    padding mean nothing.
    """
    apart = (times[:, :, None] - times[:, None, :]).abs()
    counted = real[:, :, None] & real[:, None, :] & (apart > 0)
    shortest = torch.where(counted, apart, _EVER).amin(dim=(1, 2))
    # Not `torch.div`: in ONNX it would divide floats, which cannot distinguish milliseconds.
    return (apart // shortest[:, None, None]).clamp(max=_INTERVALS)
