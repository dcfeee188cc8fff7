"""Item vectors alone: a history is the mean of its items' vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.export.networks.network import real_items
from recommender.importers.networks.numbers import table


class Mean(nn.Module):
    """Vectors float32 [items, d] and a bias [items] or None; see `Network`."""

    def __init__(self, vectors: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.items = table(vectors)
        self.item_bias = None if bias is None else nn.Parameter(bias)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        real = real_items(user_history, history_length).to(torch.float32)
        summed = (real[:, None] @ self.items(user_history)).squeeze(1)
        mean: Tensor = summed / history_length.clamp(min=1)[:, None]
        return mean

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight


class Encoded(nn.Module):
    """Users' vectors from an encoder, items' from a table; see `Network`. `assumed` says what it was taken for."""

    def __init__(
        self,
        encoder: nn.Module,
        vectors: Tensor,
        bias: Tensor | None,
        longest_history: int | None,
        assumed: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.assumed = assumed
        self.encoder = encoder
        self.items = table(vectors)
        self.item_bias = None if bias is None else nn.Parameter(bias)
        self.longest_history = longest_history

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        vectors: Tensor = self.encoder(user_history, history_length)
        return vectors

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight
