"""Networks: what an exportable torch module must offer, and the reference network.

A network turns histories into user vectors; an item's score is the product of the user's vector with the item's
embedding, plus the item's bias where there is one. The head does that part, so such a network never sees its own
scores. A module without `item_embeddings` is taken to yield the scores of all items itself, float32 [batch, items]: it
is served too, without what the head gains.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Network(Protocol):
    """The members of an exportable module besides those of a `torch.nn.Module`.

    It may also have `item_bias() -> Tensor` float32 [items], and `longest_history: int`, the most recent items that it
    reads. `forward` may have a further argument `user` int64 [batch]; then `known_users: int` is their number, or
    `user_embeddings() -> Tensor` float32 [users + 1, d] gives it, and `history_length` may be 0. It may have
    `history_types` int64 [batch, history], with `known_types: int` as their number, and `history_times` int64 [batch,
    history] in Unix milliseconds. Any other argument is a feature, which `feature_inputs` declares by its name.
    """

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """User vectors float32 [batch, d].

        `user_history` is int64 [batch, history], oldest first, padded on the right; `history_length` int64 [batch]
        alone says what is padding: item 0 is an item like any other.
        """
        ...

    def item_embeddings(self) -> Tensor:
        """The item table, float32 [items, d]; row i belongs to item id i."""
        ...


def real_items(user_history: Tensor, history_length: Tensor) -> Tensor:
    """Which entries of the history are not padding: bool [batch, history]."""
    column = torch.arange(user_history.shape[1], device=user_history.device)
    return column[None, :] < history_length[:, None]


def last_state(states: Tensor, history_length: Tensor) -> Tensor:
    """The state at each row's last real item: states [batch, history, d] → [batch, d]."""
    last = (history_length.clamp(min=1) - 1)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, last).squeeze(1)


class ReferenceNetwork(nn.Module):
    """The mean of the history's embeddings; an item that repeats counts as often as it occurs.

    The embeddings are `torch.rand((items, dim))` after `torch.manual_seed(seed)`.
    """

    def __init__(self, items: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.items = nn.Embedding(items, dim, _weight=torch.rand((items, dim), generator=generator), _freeze=True)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        weights = real_items(user_history, history_length).to(torch.float32)
        summed = (weights.unsqueeze(1) @ self.items(user_history)).squeeze(1)
        mean: Tensor = summed / history_length.clamp(min=1).unsqueeze(1)
        return mean

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight
