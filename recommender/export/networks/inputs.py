"""Inputs of a network besides the history and its length: the arrays, their shapes, and one order for all networks."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from recommender.export.truth import Ids

History: TypeAlias = Sequence[int]
Beside: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Inputs besides histories by their names: [rows, …], or [rows, widest history] for values of each item."""

NOTHING: Beside = types.MappingProxyType({})
PER_ITEM = frozenset({"history_types", "history_times"})
"""Inputs of the history's own shape, which has numbers behind the end of each history too: they are padding."""
_HISTORY = ("user_history", "history_length")


class Named(nn.Module):
    """Passes a network its arguments: `beside` in this order, and the history or its length if named."""

    def __init__(self, network: nn.Module, beside: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._beside = tuple(beside)
        others = [name for name in inspect.signature(network.forward).parameters if name not in beside]
        self._names = {name: name if name in _HISTORY else _HISTORY[at] for at, name in enumerate(others[:2])}

    def forward(self, user_history: Tensor, history_length: Tensor, *beside: Tensor) -> Tensor:
        """User vectors, or scores."""
        given = {"user_history": user_history, "history_length": history_length}
        named = {name: given[known] for name, known in self._names.items()}
        yielded: Tensor = self.network(**named, **dict(zip(self._beside, beside, strict=True)))
        return yielded


def reads_history(network: nn.Module, beside: Collection[str]) -> bool:
    """Whether the network's `forward` has an argument for the history, or the network says so in `reads_history`."""
    told = getattr(network, "reads_history", None)
    named = [name for name in inspect.signature(network.forward).parameters if name not in beside]
    return bool(named) if told is None else bool(told)


def takes(network: nn.Module, name: str) -> bool:
    """Whether the network's `forward` has an argument of this name."""
    return name in inspect.signature(network.forward).parameters


def rows_of(beside: Beside, chosen: Sequence[int]) -> Beside:
    """These rows of the inputs."""
    return {name: values[list(chosen)] for name, values in beside.items()}


def arrays(histories: Sequence[History], beside: Beside = NOTHING, padding: Ids | None = None) -> dict[str, Any]:
    """The inputs of a run, by their names; padding is 0 everywhere, or the values of `padding` and `beside`."""
    rows, lengths = padded(histories, padding)
    width = rows.shape[1]
    real = np.arange(width) < lengths[:, None]
    fed: dict[str, npt.NDArray[Any]] = {"user_history": rows, "history_length": lengths}
    for name, values in beside.items():
        if name not in PER_ITEM:
            fed[name] = values
        elif padding is not None:
            fed[name] = values[:, :width]
        else:
            fed[name] = np.where(real, values[:, :width], values.dtype.type(0))
    return fed


def padded(rows: Sequence[Sequence[int]], padding: Ids | None = None) -> tuple[Ids, Ids]:
    """Ragged rows as int64 [batch, widest] padded on the right with 0 or with `padding`, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    width = int(lengths.max(initial=1))
    together = np.zeros((len(rows), width), np.int64) if padding is None else padding[: len(rows), :width].copy()
    for index, row in enumerate(rows):
        together[index, : len(row)] = row
    return together, lengths
