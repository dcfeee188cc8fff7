"""RecTools' HSTU: weights of attention are SiLU of products, without softmax, so padding adds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state
from recommender.importers.networks.numbers import Numbers
from recommender.importers.networks.rectools import Inputs
from recommender.importers.networks.sizes import Sizes

REQUEST_TIME: Final = "request_time"
"""The feature that says when a request is made, in Unix milliseconds; 0 is the time of its last item."""
_PER_BUCKET = 0.301
"""The logarithm of seconds that makes one bucket of times."""


class _Block(nn.Module):
    """One layer of HSTU."""

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
        timed = sizes.flag("relative_time_attention")
        weights = numbers.take(f"{name}.rel_attn.time_weights", None) if timed else None
        self.by_time = None if weights is None else nn.Parameter(weights)

    def forward(
        self, queries: Tensor, states: Tensor, ahead: Tensor, visible: Tensor, buckets: Tensor | None
    ) -> Tensor:
        """The states of queries after this layer, [batch, q, d].

        `ahead` int64 [batch or 1, q, keys] is how far a key is before its query, `visible` whether it counts, and
        `buckets` int64 [batch, q, keys] how long before.
        """
        gate, query = functional.silu(self.norm(queries) @ self.of_query).chunk(2, dim=-1)
        value, key = functional.silu(self.norm(states) @ self.of_key).chunk(2, dim=-1)
        weights = self._split(query) @ self._split(key).transpose(2, 3)
        if self.by_distance is not None:
            weights = weights + self.by_distance[(self.longest - 1 - ahead).clamp(0, 2 * self.longest - 2)][:, None]
        if self.by_time is not None and buckets is not None:
            weights = weights + self.by_time[buckets.clamp(max=len(self.by_time) - 1)][:, None]
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
        return self.encoded(user_history, history_length, None)

    def encoded(self, user_history: Tensor, history_length: Tensor, buckets: Tensor | None) -> Tensor:
        """User vectors [batch, d]; `buckets` int64 [batch, history, history] is how long a key is before a query."""
        column = torch.arange(user_history.shape[1])
        states = self.inputs(user_history, history_length)
        ahead = (column[:, None] - column[None, :])[None]
        *early, last = self.blocks
        for block in early:
            states = block(states, states, ahead, (ahead >= 0).to(states.dtype), buckets)
        ahead = (history_length[:, None] - 1 - column)[:, None]
        if buckets is not None:
            buckets = last_state(buckets, history_length).unsqueeze(1)
        query = last_state(states, history_length).unsqueeze(1)
        user: Tensor = last(query, states, ahead, (ahead >= 0).to(states.dtype), buckets)
        return self.inputs.compared(user.squeeze(1))

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.inputs.compared(self.inputs.rows.weight)


class RecToolsTimedHstu(RecToolsHstu):
    """RecTools' HSTU with `relative_time_attention`: it reads times of the items, and of the request."""

    def feature_inputs(self) -> Mapping[str, Mapping[str, object]]:
        """See `Network`."""
        return {REQUEST_TIME: {"type": "int64", "default": 0, "minimum": 0}}

    def forward(  # type: ignore[override]  # a network's inputs are its own
        self, user_history: Tensor, history_length: Tensor, history_times: Tensor, request_time: Tensor
    ) -> Tensor:
        """See `Network`."""
        times = _whole_seconds(history_times)
        latest = times.gather(1, (history_length - 1).clamp(min=0)[:, None])
        asked = torch.where(request_time > 0, _whole_seconds(request_time), latest.squeeze(1))
        # The library compares an item with the time of the one after it, the last with the request's.
        after = torch.cat([times[:, 1:], latest], dim=1)
        column = torch.arange(times.shape[1])
        after = torch.where(column == (history_length - 1)[:, None], asked[:, None], after)
        seconds = (after[:, :, None] - times[:, None, :]).abs().to(torch.float32) / 1000
        buckets = (seconds.clamp(min=1).log() / _PER_BUCKET).to(torch.int64)
        return self.encoded(user_history, history_length, buckets)


def _whole_seconds(times: Tensor) -> Tensor:
    """Milliseconds without what is left of a second; ONNX would divide whole numbers as float32."""
    return times - times % 1000


def hstu(numbers: Numbers, sizes: Sizes) -> RecToolsHstu:
    """RecTools' HSTU, with times or without."""
    return (RecToolsTimedHstu if sizes.flag("relative_time_attention") else RecToolsHstu)(numbers, sizes)
