"""Histories as a foreign encoder reads them; `Filling` says how."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recommender.importers.adapt.filling import Filling


class Filled(nn.Module):
    """An encoder that is asked with the ids of a filling, and with their number if it `takes_lengths`."""

    def __init__(self, encoder: nn.Module, filling: Filling, *, takes_lengths: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.filling = filling
        self.takes_lengths = takes_lengths

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """Vectors float32 [batch, d]."""
        asked = filled(self.filling, user_history, history_length)
        vectors: Tensor = self.encoder(*asked[: 1 + self.takes_lengths])
        return vectors


def filled(filling: Filling, user_history: Tensor, history_length: Tensor) -> tuple[Tensor, Tensor]:
    """The ids int64 [batch, width] for a history, and how many of them are no padding."""
    masked = int(filling.mask_id is not None)
    own, total = history_length[:, None], history_length + masked
    width = user_history.shape[1] + masked if filling.width is None else filling.width
    place = torch.arange(width)[None, :]
    if filling.side == "left":
        place = place - (width - total[:, None])
    reached = place.clamp(min=0, max=user_history.shape[1] - 1).expand(user_history.shape[0], -1)
    items = user_history.gather(1, reached) + filling.first_item
    ids = torch.where((place >= 0) & (place < own), items, filling.padding_id)
    if filling.mask_id is not None:
        ids = torch.where(place == own, filling.mask_id, ids)
    return ids, total
