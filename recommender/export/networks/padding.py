"""A network that takes a certain id for padding, behind the inputs that every network has."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recommender.export.networks.inputs import PER_ITEM
from recommender.export.networks.network import real_items
from recommender.export.options import Side


class Padded(nn.Module):
    """Puts `padding_id` wherever `history_length` says that there is no item, then calls the network.

    On the right the history keeps its width. On the left it is always `longest_history` wide, as in training, so that
    the last column is the most recent item. Values of `beside` for each item move with it, padded with 0. A `forward`
    of one argument gets the history only.
    """

    def __init__(
        self, network: nn.Module, padding_id: int, longest_history: int | None, side: Side, beside: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self._padding_id = padding_id
        self._width = longest_history
        self._side = side
        self._per_item = [name in PER_ITEM for name in beside]
        self._both = _takes_both(network)
        self._item = 0 if padding_id else 1

    def forward(self, user_history: Tensor, history_length: Tensor, *beside: Tensor) -> Tensor:
        """See `Network`."""
        real = real_items(user_history, history_length)
        if self._side == "left" and self._width is not None:
            place = torch.arange(self._width)[None, :] - (self._width - history_length[:, None])
            real = place >= 0
            last = user_history.shape[1] - 1
            place = place.clamp(min=0, max=last)
            user_history = user_history.gather(1, place)
            beside = tuple(
                each.gather(1, place) if per_item else each
                for per_item, each in zip(self._per_item, beside, strict=True)
            )
        # No request has such a history; without this one, an empty history would be all padding, and its answer NaN.
        user_history = torch.where(user_history == self._padding_id, self._item, user_history)
        user_history = torch.where(real, user_history, self._padding_id)
        beside = tuple(
            torch.where(real, each, 0) if per_item else each
            for per_item, each in zip(self._per_item, beside, strict=True)
        )
        inputs = (user_history, history_length)[: 2 if self._both or beside else 1]
        yielded: Tensor = self.network(*inputs, *beside)
        return yielded


def _takes_both(network: nn.Module) -> bool:
    try:
        inspect.signature(network.forward).bind(0, 0)
    except TypeError:
        return False
    return True
