"""RecTools' HSTU: weights of attention are SiLU of products, without softmax, so padding adds nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state
from recommender.importers.networks.numbers import Numbers
from recommender.importers.networks.rectools import Inputs
from recommender.importers.networks.sizes import Sizes


class _Block(nn.Module):
    """One layer of HSTU; `bias` and `visible` are of each query and each key."""

    def __init__(self, numbers: Numbers, name: str, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.longest = sizes.whole("n_heads"), sizes.whole("session_max_len")
        eps = sizes.number("epsilon")
        projection = numbers.take(f"{name}.uvqk_proj", None, None)
        if projection.shape[1] % 4 or projection.shape[1] // 4 % self.heads:
            raise ExportError(f"{name}.uvqk_proj has {projection.shape[1]} columns; expected are four parts alike.")
        gate, value, query, key = projection.chunk(4, dim=1)
        self.of_query = nn.Parameter(torch.cat([gate, query], dim=1))
        self.of_key = nn.Parameter(torch.cat([value, key], dim=1))
        self.norm = numbers.norm(f"{name}.norm_input", eps)
        self.seen_norm = numbers.norm(f"{name}.norm_attn_output", eps)
        self.output = numbers.linear(f"{name}.output_mlp")
        relative = sizes.flag("relative_pos_attention")
        weights = numbers.take(f"{name}.rel_attn.pos_weights", 2 * self.longest - 1) if relative else None
        self.by_distance = None if weights is None else nn.Parameter(weights)

    def forward(self, queries: Tensor, states: Tensor, ahead: Tensor, visible: Tensor) -> Tensor:
        """`ahead` int64 [batch or 1, q, keys] is how far a key is before its query, `visible` whether it counts."""
        gate, query = functional.silu(self.norm(queries) @ self.of_query).chunk(2, dim=-1)
        value, key = functional.silu(self.norm(states) @ self.of_key).chunk(2, dim=-1)
        weights = self._split(query) @ self._split(key).transpose(2, 3)
        if self.by_distance is not None:
            weights = weights + self.by_distance[(self.longest - 1 - ahead).clamp(0, 2 * self.longest - 2)][:, None]
        weights = functional.silu(weights) / self.longest * visible[:, None]
        seen = (weights @ self._split(value)).transpose(1, 2).flatten(2)
        out: Tensor = self.output(gate * self.seen_norm(seen)) + queries
        return out

    def _split(self, states: Tensor) -> Tensor:
        parts: Tensor = states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return parts


class RecToolsHstu(nn.Module):
    """RecTools' HSTU without times; see `Network` for its methods."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = Inputs(numbers, sizes, skipped=1)
        self.longest_history = sizes.whole("session_max_len")
        self.blocks = nn.ModuleList(
            _Block(numbers, f"stu_blocks.{block}", sizes) for block in range(sizes.whole("n_blocks"))
        )

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        column = torch.arange(user_history.shape[1])
        states = self.inputs(user_history, history_length)
        ahead = (column[:, None] - column[None, :])[None]
        *early, last = self.blocks
        for block in early:
            states = block(states, states, ahead, (ahead >= 0).to(states.dtype))
        ahead = (history_length[:, None] - 1 - column)[:, None]
        user: Tensor = last(
            last_state(states, history_length).unsqueeze(1), states, ahead, (ahead >= 0).to(states.dtype)
        )
        return self.inputs.compared(user.squeeze(1))

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.inputs.compared(self.inputs.rows.weight)
