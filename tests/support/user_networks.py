"""Torch networks that take users, and features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recommender.export.networks.network import real_items

ITEMS, USERS, SIZE = 60, 9, 8
CITIES = ("rome", "oslo", "köln")


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
    """Matrix factorisation: users from 0 on, no history, no answer for unknown users."""

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


class Featured(nn.Module):
    """The mean of the history, a vector for the user, and what features of every type add to both."""

    known_users = USERS
    feature_inputs: Mapping[str, Mapping[str, Any]] = {
        "age": {"type": "float32", "default": 40, "minimum": 0, "maximum": 120},
        "city": {"type": "string", "tokens": CITIES, "default": CITIES[0]},
        "level": {"type": "int64", "minimum": 0, "maximum": 3, "default": 1},
        "premium": {"type": "bool", "default": True},
        "tastes": {"type": "float32", "width": 3, "default": [0.0, 1.0, -1.0]},
    }

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)

        def table(rows: int) -> nn.Embedding:
            return nn.Embedding(rows, SIZE, _weight=torch.randn((rows, SIZE), generator=generator))

        self.items, self.users = table(ITEMS), table(USERS + 1)
        self.cities, self.levels = table(len(CITIES) + 1), table(4)
        self.numbers = nn.Parameter(torch.randn((5, SIZE), generator=generator))

    def forward(
        self,
        user_history: Tensor,
        history_length: Tensor,
        tastes: Tensor,
        user: Tensor,
        premium: Tensor,
        city: Tensor,
        level: Tensor,
        age: Tensor,
    ) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        mean = (weights.unsqueeze(1) @ self.items(user_history)).squeeze(1) / history_length.clamp(min=1).unsqueeze(1)
        numbers = torch.cat([age.unsqueeze(1) / 50, premium.to(torch.float32).unsqueeze(1), tastes], dim=1)
        vectors: Tensor = mean + self.users(user) + self.cities(city) + self.levels(level) + numbers @ self.numbers
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items.weight
