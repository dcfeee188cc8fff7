"""The ids that a foreign network reads for a history: its own numbers, padding up to a width, a mask behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from recommender.export.nodes import Nodes
from recommender.export.options import Side


@dataclass(frozen=True, slots=True)
class Filling:
    """How a history becomes ids.

    `first_item` is the network's id of item 0. `padding_id` pads to `width` on the `side`; a network whose `width` is
    None takes any, padded on the right. `mask_id` follows the last item, unless it is None.
    """

    width: int | None
    side: Side
    padding_id: int
    first_item: int
    mask_id: int | None = None

    @property
    def longest(self) -> int | None:
        """The most recent items that the network reads."""
        return None if self.width is None else self.width - (self.mask_id is not None)

    def assumed(self) -> str:
        """How a network was read."""
        place = "any number of" if self.width is None else str(self.width)
        mask = "" if self.mask_id is None else f", the mask {self.mask_id} behind the last item"
        return (
            f"{place} ids, filled up on the {self.side} with id {self.padding_id}{mask}; "
            f"item 0 is its id {self.first_item}."
        )

    def ids(self, history: Sequence[int]) -> list[int]:
        """The ids of a history, without padding."""
        return [*(item + self.first_item for item in history), *([] if self.mask_id is None else [self.mask_id])]

    def add(self, g: Nodes, history: str, length: str) -> tuple[str, str, str]:
        """Add the nodes for a history int64 [batch, h] and its length int64 [batch].

        Returns the ids [batch, width], how many of them are no padding [batch], and which [batch, width], all int64.
        """
        last = g.op("Sub", g.op("Shape", history, start=1, end=2), g.int64(1))
        masked = self.mask_id is not None
        total = g.op("Add", length, g.int64(1)) if masked else length
        if self.width is None:
            end = g.op("Add", last, g.int64(2 if masked else 1))
            scalar = g.op("Squeeze", end)
            column = g.op("Range", g.constant(np.array(0)), scalar, g.constant(np.array(1)))
        else:
            column = g.constant(np.arange(self.width))
        place = g.op("Unsqueeze", column, g.int64(0))
        total_column, own = g.op("Unsqueeze", total, g.int64(1)), g.op("Unsqueeze", length, g.int64(1))
        if self.side == "left" and self.width is not None:
            place = g.op("Sub", place, g.op("Sub", g.int64(self.width), total_column))
        zero = g.int64(0)
        inside = g.op("And", g.op("GreaterOrEqual", place, zero), g.op("Less", place, own))
        shape = g.op("Shape", inside)
        reached = g.op("Expand", g.op("Max", g.op("Min", place, last), zero), shape)
        items = g.op("Add", g.op("GatherElements", history, reached, axis=1), g.int64(self.first_item))
        ids = g.op("Where", inside, items, g.int64(self.padding_id))
        real = g.op("Cast", inside, to=TensorProto.INT64)
        if self.mask_id is not None:
            behind = g.op("Equal", place, own)
            ids = g.op("Where", behind, g.int64(self.mask_id), ids)
            real = g.op("Cast", g.op("Or", inside, behind), to=TensorProto.INT64)
        return ids, total, real
