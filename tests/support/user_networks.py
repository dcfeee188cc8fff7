"""Torch networks that take users."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.export.networks.network import real_items

ITEMS, USERS, SIZE = 60, 9, 8


class Hybrid(nn.Module):
    """The mean of the history and a vector for the user, of which row 0 is for unknown ones."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.items = nn.Embedding(ITEMS, SIZE, _weight=torch.randn((ITEMS, SIZE), generator=generator))
        self.users = nn.Embedding(USERS + 1, SIZE, _weight=torch.randn((USERS + 1, SIZE), generator=generator))

    def forward(self, user_history: Tensor, history_length: Tensor, user: Tensor) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        summed = (weights.unsqueeze(1) @ self.items(user_history)).squeeze(1)
        vectors: Tensor = summed / history_length.clamp(min=1).unsqueeze(1) + self.users(user)
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items.weight

    def user_embeddings(self) -> Tensor:
        return self.users.weight


class Factors(nn.Module):
    """Matrix factorisation: users from 0 on, no history, nothing for whom it does not know."""

    first_user = 0
    known_users = USERS

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.items = nn.Parameter(torch.randn((ITEMS, SIZE), generator=generator))
        self.factors = nn.Parameter(torch.randn((USERS, SIZE), generator=generator))
        self.bias = nn.Parameter(torch.randn(ITEMS, generator=generator))

    def forward(self, user: Tensor) -> Tensor:
        vectors: Tensor = self.factors[user]
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items

    def item_bias(self) -> Tensor:
        return self.bias

    def user_embeddings(self) -> Tensor:
        return self.factors
