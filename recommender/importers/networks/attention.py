"""Self-attention over right-padded histories, where only the last item's state is wanted.

The last layer of a network asks for one state only, so it computes one: `queries` are all columns or a single one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.importers.networks.numbers import Numbers


class Attention(nn.Module):
    """Multi-head attention: queries [batch, q, d] attend to states [batch, history, d].

    `mask` float32 [batch or 1, 1, q, keys] is added to the weights: -inf hides a key. With one more key than there are
    states, the last one is for states of zeros.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int) -> None:
        super().__init__()
        self.query, self.out = query, out
        self.key_value = nn.Linear(key.in_features, 2 * key.out_features)
        self.key_value.weight = nn.Parameter(torch.cat([key.weight, value.weight]).detach())
        self.key_value.bias = nn.Parameter(torch.cat([key.bias, value.bias]).detach())
        self.heads = heads

    @classmethod
    def packed(cls, numbers: Numbers, name: str, heads: int) -> Attention:
        """From the arrays of torch's `nn.MultiheadAttention`."""
        out = numbers.linear(f"{name}.out_proj")
        dim = out.in_features
        weight = numbers.take(f"{name}.in_proj_weight", 3 * dim, dim)
        bias = numbers.take(f"{name}.in_proj_bias", 3 * dim)
        parts = []
        for part in range(3):
            layer = nn.Linear(dim, dim)
            layer.weight = nn.Parameter(weight[part * dim : (part + 1) * dim].clone())
            layer.bias = nn.Parameter(bias[part * dim : (part + 1) * dim].clone())
            parts.append(layer)
        return cls(parts[0], parts[1], parts[2], out, heads)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The result of each query: [batch, q, d]."""
        both = self.key_value(states)
        if mask.shape[-1] != states.shape[1]:
            both = torch.cat([both, self.key_value.bias.expand(both.shape[0], 1, -1)], dim=1)
        keys, values = (self._split(part) for part in both.chunk(2, dim=-1))
        seen = functional.scaled_dot_product_attention(self._split(self.query(queries)), keys, values, attn_mask=mask)
        attended: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return attended

    def _split(self, states: Tensor) -> Tensor:
        parts: Tensor = states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return parts


def hiding(hidden: Tensor) -> Tensor:
    """A mask from what is hidden, bool of any shape."""
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


def causal(width: Tensor) -> Tensor:
    """The mask [1, 1, width, width] of a history whose states attend to earlier ones only; `width` is int64 [width]."""
    column = torch.arange(width.shape[0])
    return hiding(column[None, :] > column[:, None])[None, None]


def within(width: Tensor, length: Tensor) -> Tensor:
    """The mask [batch, 1, 1, width] that hides columns from `length` on."""
    column = torch.arange(width.shape[0])
    return hiding(column[None, :] >= length[:, None])[:, None, None]
