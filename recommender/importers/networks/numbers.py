"""The arrays of a trained model, taken one by one into the parts of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError

Array: TypeAlias = npt.NDArray[np.generic]

_SHOWN = 5
_OTHERWISE = "Write its users' side by torch.export.save and import that by `vectors --encoder`."


def table(rows: Tensor) -> nn.Embedding:
    """A table to look up `rows` [count, d] in, which are not trained further."""
    return nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows.contiguous(), _freeze=True)


class Numbers:
    """Named arrays of which each is taken once.

    Every `take` raises ExportError if the array is absent, of another shape, no number, or holds NaN or infinity.
    """

    def __init__(self, arrays: Mapping[str, Array], owner: str) -> None:
        self._arrays = dict(arrays)
        self._owner = owner

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The array as float32; None in the shape means any size."""
        array = self._take(name, shape)
        if array.dtype.kind not in "fiu":
            raise ExportError(f"{name!r} of {self._owner} is {array.dtype}; it must be numbers.")
        numbers = np.ascontiguousarray(array, np.float32)
        bad = int(np.size(numbers) - np.isfinite(numbers).sum())
        if bad:
            raise ExportError(
                f"{name!r} of {self._owner} holds NaN or infinity {bad:,} times; the training has diverged. "
                "Train it again."
            )
        return torch.from_numpy(numbers)

    def whole(self, name: str) -> Tensor:
        """The array of whole numbers, int64 of one dimension."""
        array = self._take(name, (None,))
        if array.dtype.kind not in "iu":
            raise ExportError(f"{name!r} of {self._owner} is {array.dtype}; it must be whole numbers.")
        return torch.from_numpy(np.ascontiguousarray(array, np.int64))

    def _take(self, name: str, shape: Sequence[int | None]) -> Array:
        array = self._arrays.pop(name, None)
        if array is None:
            raise ExportError(
                f"{self._owner} has no {name!r}: it is of another class or version than is taken. {_OTHERWISE}"
            )
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ExportError(f"{name!r} of {self._owner} is {list(array.shape)}; expected is [{wanted}].")
        return array

    def linear(self, name: str, *, bias: bool = True) -> nn.Linear:
        """The layer of this name, with its sizes."""
        weight = self.take(f"{name}.weight", None, None)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        layer.weight = nn.Parameter(weight)
        if bias:
            layer.bias = nn.Parameter(self.take(f"{name}.bias", weight.shape[0]))
        return layer

    def norm(self, name: str, eps: float) -> nn.LayerNorm:
        """The normalisation of this name."""
        weight = self.take(f"{name}.weight", None)
        layer = nn.LayerNorm(len(weight), eps=eps)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(self.take(f"{name}.bias", len(weight)))
        return layer

    def table(self, name: str) -> nn.Embedding:
        """A table [rows, d] to look rows up in."""
        return table(self.take(name, None, None))

    def drop(self, *names: str) -> None:
        """Leave out arrays that answers do not need."""
        for name in names:
            self._arrays.pop(name, None)

    def end(self) -> None:
        """Raise ExportError if an array was not taken: the model is another than it was read as."""
        left = sorted(self._arrays)
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise ExportError(
                f"{self._owner} has numbers that this network has no place for: {', '.join(left[:_SHOWN])}{more}. "
                f"It is of another class or version than it was read as. {_OTHERWISE}"
            )
