"""The subject of an export: a network with what is known of it before the first ONNX node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recommender.export.check import History, Scores, padded
from recommender.export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and its item table; `embeddings` is None where the network yields the scores of all items itself."""

    network: nn.Module
    items: int
    embeddings: Scores | None
    bias: Scores | None
    longest_history: int | None

    @classmethod
    def of(cls, network: nn.Module) -> Subject:
        """Ask the network; ExportError where it does not offer what `Network` says."""
        longest = getattr(network, "longest_history", None)
        if longest is not None and (not isinstance(longest, int) or longest < 1):
            raise ExportError(f"{type(network).__name__}.longest_history is {longest!r}; give a whole number or None.")
        if not hasattr(network, "item_embeddings"):
            return cls(network, _run(network, [[0]]).shape[1], None, None, longest)
        embeddings = _numbers(network, "item_embeddings", dimensions=2)
        bias = _numbers(network, "item_bias", dimensions=1) if hasattr(network, "item_bias") else None
        if bias is not None and len(bias) != len(embeddings):
            raise ExportError(
                f"item_bias() has {len(bias)} numbers and item_embeddings() {len(embeddings)} rows; "
                "give one number for each item."
            )
        size = _run(network, [[0]]).shape[1]
        if size != embeddings.shape[1]:
            raise ExportError(
                f"The network yields user vectors of {size} numbers and item_embeddings() rows of "
                f"{embeddings.shape[1]}; they must be of one size, since a score is their product."
            )
        return cls(network, len(embeddings), embeddings, bias, longest)

    def scores(self, histories: Sequence[History]) -> tuple[Scores, float]:
        """The scores of all items [len(histories), items], each history by itself, and a bound of |score|."""
        yielded = np.concatenate([_run(self.network, [history]) for history in histories])
        if self.embeddings is None:
            return yielded, float(np.abs(yielded).max())
        scores = yielded @ self.embeddings.T
        scale = float(np.linalg.norm(yielded, axis=1).max() * np.linalg.norm(self.embeddings, axis=1).max())
        if self.bias is not None:
            scores += self.bias
            scale += float(np.abs(self.bias).max())
        return scores, scale


def _run(network: nn.Module, histories: Sequence[History]) -> Scores:
    """What the network yields for these histories; ExportError where it fails or yields something else than numbers."""
    name = type(network).__name__
    rows, lengths = (torch.from_numpy(part) for part in padded(histories))
    try:
        with torch.no_grad():
            yielded = network(rows, lengths)
    except Exception as error:
        raise ExportError(
            f"{name} failed on a history: {type(error).__name__}: {error}. Its forward must take user_history int64 "
            "[batch, history] and history_length int64 [batch]."
        ) from error
    if not isinstance(yielded, Tensor) or yielded.dim() != 2 or yielded.shape[0] != len(histories):  # noqa: PLR2004
        shape = tuple(yielded.shape) if isinstance(yielded, Tensor) else type(yielded).__name__
        raise ExportError(f"{name} yields {shape}; it must yield user vectors [batch, d] or scores [batch, items].")
    if yielded.dtype != torch.float32:
        raise ExportError(f"{name} yields {yielded.dtype}; it must yield float32. Call .float() on what it returns.")
    if not torch.isfinite(yielded).all():
        raise ExportError(
            f"{name} yields NaN or infinity for the history {list(histories[0])[:10]}; repair or retrain it."
        )
    numbers: Scores = yielded.numpy()
    return numbers


def _numbers(network: nn.Module, method: str, *, dimensions: int) -> Scores:
    tensor = getattr(network, method)()
    if not isinstance(tensor, Tensor) or tensor.dim() != dimensions or not tensor.numel():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        wanted = ("items", "d")[:dimensions]
        raise ExportError(f"{type(network).__name__}.{method}() is {shape}; it must be a tensor [{', '.join(wanted)}].")
    numbers: Scores = tensor.detach().to(torch.float32).contiguous().numpy()
    return numbers
