"""Torch networks that read types and times of histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.export.networks.network import real_items
from recommender.export.networks.tisasrec import TiSasRec

ITEMS, TYPES, SIZE, LONGEST, PADDING = 60, 3, 8, 6, 4


class Shopper(TiSasRec):
    """TiSASRec with a vector for the type of each event; row 0 is for unknown ones and for padding."""

    known_types = TYPES
    unknown_type = 0
    default_type = 1

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            super().__init__(ITEMS, SIZE, layers=1, heads=2, longest_history=LONGEST)
            self.types = nn.Embedding(TYPES + 1, SIZE)

    def forward(  # type: ignore[override]  # it takes one more
        self, user_history: Tensor, history_length: Tensor, history_types: Tensor, history_times: Tensor
    ) -> Tensor:
        return self.attend(self.items(user_history) + self.types(history_types), history_length, history_times)


class Counting(nn.Module):
    """Counts what happened to items, by type from 0 on; without `mask` it also counts behind a history's end."""

    known_types = TYPES
    first_type = 0
    mask = True

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(10)
        self.items = nn.Embedding(ITEMS, SIZE, _weight=torch.randn((ITEMS, SIZE), generator=generator))
        self.types = nn.Embedding(TYPES, SIZE, _weight=torch.randn((TYPES, SIZE), generator=generator))

    def forward(self, history_types: Tensor, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = real_items(user_history, history_length)[:, :, None]
        types = self.types(history_types) * (real if self.mask else 1)
        vectors: Tensor = (self.items(user_history) * real + types).sum(1)
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items.weight


class Careless(Counting):
    mask = False


class Leftward(Counting):
    """Reads histories that stand on the right, behind padding with PADDING; later columns count more."""

    longest_history = LONGEST

    def forward(self, user_history: Tensor, history_types: Tensor) -> Tensor:  # type: ignore[override]
        weights = torch.arange(1, LONGEST + 1) * (user_history != PADDING)
        vectors: Tensor = ((self.items(user_history) + self.types(history_types)) * weights[:, :, None]).sum(1)
        return vectors
