"""A two-tower network: one tower turns a user and features into a vector, the other an item; a score is their product.

After Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (2019). It reads no
history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_COUNTRIES = ("br", "de", "fr", "gb", "in", "it", "jp", "us")
_INTERESTS = 4
_AGE_SCALE = 100.0


class TwoTower(nn.Module):
    """The user's vector from a user id, an age, a country, a subscription and interests; see `Network` for its methods.

    User 0 is unknown, and so is country 0.
    """

    known_users = 1000
    feature_inputs: Mapping[str, Mapping[str, Any]] = {
        "age": {"type": "float32", "default": 35, "minimum": 0, "maximum": 150},
        "country": {"type": "string", "tokens": _COUNTRIES, "default": "us"},
        "subscriber": {"type": "bool", "default": False},
        "interests": {"type": "float32", "width": _INTERESTS, "default": [0.0] * _INTERESTS},
    }

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.users = nn.Embedding(self.known_users + 1, dim)
        self.countries = nn.Embedding(len(_COUNTRIES) + 1, dim)
        self.items = nn.Embedding(items, dim)
        self.user_tower = _tower(2 * dim + 2 + _INTERESTS, dim)
        self.item_tower = _tower(dim, dim)

    def forward(self, user: Tensor, age: Tensor, country: Tensor, subscriber: Tensor, interests: Tensor) -> Tensor:
        """User vectors float32 [batch, dim], of length 1."""
        numbers = torch.stack([age / _AGE_SCALE, subscriber.to(torch.float32)], dim=1)
        known = torch.cat([self.users(user), self.countries(country), numbers, interests], dim=1)
        return nn.functional.normalize(self.user_tower(known), dim=1)

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return nn.functional.normalize(self.item_tower(self.items.weight), dim=1)

    def user_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.users.weight
        return weight


def _tower(size: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
