"""A SASRec-style network: self-attention over the history, the last item's state is the user's vector.

After Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018), with normalisation before each part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state


class _Block(nn.Module):
    """Causal self-attention and a feed-forward part, each added to its input: [batch, history, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)
        self.before_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, states: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.before_attention(states)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        # Padding is on the right, so a causal mask already hides it from every real item.
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        states = states + self.mix(attended.transpose(1, 2).flatten(2))
        fed: Tensor = states + self.feed_forward(self.before_feed_forward(states))
        return fed


class SasRec(nn.Module):
    """Self-attention over at most `longest_history` items; see `Network` for its methods.

    Raises ExportError where `dim` is not a multiple of `heads`.
    """

    def __init__(self, items: int, dim: int, layers: int, heads: int, longest_history: int) -> None:
        super().__init__()
        if dim % heads:
            raise ExportError(f"dim is {dim}, which {heads} heads cannot share evenly; give a multiple of {heads}.")
        self.longest_history = longest_history
        self.items = nn.Embedding(items, dim)
        self.positions = nn.Embedding(longest_history, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        column = torch.arange(user_history.shape[1], device=user_history.device)
        states = self.items(user_history) + self.positions(column)
        for block in self.blocks:
            states = block(states)
        vectors: Tensor = self.norm(last_state(states, history_length))
        return vectors

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight
