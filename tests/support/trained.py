"""Networks as their libraries run them: padding on their side, and their parameter names.

Written for these tests from the libraries' computations. Each is random, and ranks item 0 to ITEMS - 1 for one history
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ITEMS, DIM, HEADS, LONGEST = 40, 8, 2, 10
BUCKETS = 16


class Theirs(nn.Module):
    """A library's network: `scores` of all items for a history of items from 0 on."""

    form = ""
    sizes: dict[str, str | int | float | bool | None]

    def scores(self, history: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def arrays(self) -> dict[str, object]:
        return {name: value.numpy() for name, value in self.state_dict().items()}


def _shaken(module: nn.Module) -> None:
    """Give normalisations and biases numbers that are not their defaults."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))


class _RecBoleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        attention: Any = nn.Module()
        forward: Any = nn.Module()
        for name in ("query", "key", "value", "dense"):
            setattr(attention, name, nn.Linear(DIM, DIM))
        attention.LayerNorm, forward.LayerNorm = nn.LayerNorm(DIM, eps=1e-12), nn.LayerNorm(DIM, eps=1e-12)
        forward.dense_1, forward.dense_2 = nn.Linear(DIM, 12), nn.Linear(12, DIM)
        self.multi_head_attention: Any = attention
        self.feed_forward: Any = forward

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        own, fed = self.multi_head_attention, self.feed_forward
        parts = [part(states).view(1, -1, HEADS, DIM // HEADS) for part in (own.query, own.key, own.value)]
        queries, keys, values = (part.transpose(1, 2) for part in parts)
        weights = (queries @ keys.transpose(2, 3) / math.sqrt(DIM // HEADS) + mask).softmax(dim=-1)
        seen = (weights @ values).transpose(1, 2).reshape(1, -1, DIM)
        states = own.LayerNorm(own.dense(seen) + states)
        found: Tensor = fed.LayerNorm(fed.dense_2(functional.gelu(fed.dense_1(states))) + states)
        return found


class RecBole(Theirs):
    """What RecBole's transformers share: padding 0 on the right, masks by value."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.sizes = {"n_layers": 2, "n_heads": HEADS, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
        self.item_embedding = nn.Embedding(rows, DIM)
        self.position_embedding = nn.Embedding(LONGEST, DIM)
        self.LayerNorm = nn.LayerNorm(DIM, eps=1e-12)
        self.trm_encoder: Any = nn.Module()
        self.trm_encoder.layer = nn.ModuleList(_RecBoleBlock() for _ in range(2))

    def states(self, ids: Tensor, *, causal: bool) -> Tensor:
        seen = (ids != 0)[:, None, None, :].expand(-1, -1, LONGEST, -1)
        mask = torch.where(torch.tril(seen) if causal else seen, 0.0, -10_000.0)
        states: Tensor = self.LayerNorm(self.item_embedding(ids) + self.position_embedding(torch.arange(LONGEST)))
        for layer in self.trm_encoder.layer:
            states = layer(states, mask)
        return states


class RecBoleSasRec(RecBole):
    form = "recbole.sasrec"

    def __init__(self) -> None:
        super().__init__(ITEMS + 1)
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        ids = torch.zeros(1, LONGEST, dtype=torch.int64)
        ids[0, : len(history)] = torch.tensor(history) + 1
        user = self.states(ids, causal=True)[0, len(history) - 1]
        return self.item_embedding.weight[1:] @ user


class RecBoleBert4Rec(RecBole):
    form = "recbole.bert4rec"

    def __init__(self) -> None:
        super().__init__(ITEMS + 2)
        self.output_ffn, self.output_ln = nn.Linear(DIM, DIM), nn.LayerNorm(DIM, eps=1e-12)
        self.output_bias = nn.Parameter(torch.zeros(ITEMS + 1))
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        ids = torch.zeros(1, LONGEST + 1, dtype=torch.int64)
        ids[0, : len(history)] = torch.tensor(history) + 1
        ids[0, len(history)] = ITEMS + 1
        states = self.output_ln(functional.gelu(self.output_ffn(self.states(ids[:, 1:], causal=False))))
        scores: Tensor = self.item_embedding.weight[: ITEMS + 1] @ states[0, len(history) - 1] + self.output_bias
        return scores[1:]


class RecBoleGru4Rec(Theirs):
    form = "recbole.gru4rec"

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"num_layers": 2, "hidden_size": 12, "MAX_ITEM_LIST_LENGTH": LONGEST}
        self.item_embedding = nn.Embedding(ITEMS + 1, DIM)
        self.gru_layers = nn.GRU(DIM, 12, num_layers=2, bias=False, batch_first=True)
        self.dense = nn.Linear(12, DIM)
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        states, _ = self.gru_layers(self.item_embedding(torch.tensor([history]) + 1))
        scores: Tensor = self.item_embedding.weight[1:] @ self.dense(states)[0, -1]
        return scores


class RecTools(Theirs):
    """What RecTools' transformers share: padding 0 on the left, positions counted from the end."""

    def __init__(self, special: int) -> None:
        super().__init__()
        self.special = special
        self.sizes = {
            "session_max_len": LONGEST,
            "n_heads": HEADS,
            "n_blocks": 2,
            "use_scale_factor": True,
            "distance": "dot",
            "layers": "PreLNTransformerLayers",
            "use_key_padding_mask": False,
            "ff_activation": "gelu",
        }
        self.items = nn.Embedding(ITEMS + special, DIM)
        self.positions = nn.Embedding(LONGEST, DIM)
        self.transformer_blocks: Any = nn.ModuleList()
        for _ in range(2):
            block: Any = nn.Module()
            block.multi_head_attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
            block.feed_forward = nn.Module()
            block.feed_forward.ff_linear_1, block.feed_forward.ff_linear_2 = nn.Linear(DIM, 12), nn.Linear(12, DIM)
            self.transformer_blocks.append(block)

    def arrays(self) -> dict[str, object]:
        arrays = super().arrays()
        arrays["item_embeddings"], arrays["positions"] = arrays.pop("items.weight"), arrays.pop("positions.weight")
        return arrays

    def inputs(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        padded = torch.tensor([[0] * (LONGEST - len(ids)) + list(ids)])
        rows = self.items.weight
        places = torch.arange(LONGEST - 1, -1, -1)
        return padded, rows[padded] * math.sqrt(DIM) + self.positions(places)

    def ranked(self, user: Tensor) -> Tensor:
        return self.items.weight[self.special :] @ user


class RecToolsSasRec(RecTools):
    form = "rectools.sasrec"

    def __init__(self) -> None:
        super().__init__(special=1)
        for block in self.transformer_blocks:
            block.q_layer_norm, block.ff_layer_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
            block.feed_forward.ff_linear_1, block.feed_forward.ff_linear_2 = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.sizes["layers"] = "SASRecTransformerLayers"
        self.last_layernorm = nn.LayerNorm(DIM, eps=1e-8)
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        padded, states = self.inputs([item + 1 for item in history])
        real = (padded != 0)[:, :, None]
        ahead = torch.triu(torch.ones(LONGEST, LONGEST, dtype=torch.bool), diagonal=1)
        for block in self.transformer_blocks:
            states = states * real
            queries = block.q_layer_norm(states)
            states = queries + block.multi_head_attn(queries, states, states, attn_mask=ahead)[0]
            read = block.ff_layer_norm(states)
            states = block.feed_forward.ff_linear_2(block.feed_forward.ff_linear_1(read).relu()) + read
        return self.ranked(self.last_layernorm(states * real)[0, -1])


class RecToolsBert4Rec(RecTools):
    form = "rectools.bert4rec"

    def __init__(self) -> None:
        super().__init__(special=2)
        for block in self.transformer_blocks:
            block.layer_norm_1, block.layer_norm_2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        padded, states = self.inputs([*(item + 2 for item in history), 1])
        for block in self.transformer_blocks:
            read = block.layer_norm_1(states)
            states = states + block.multi_head_attn(read, read, read, key_padding_mask=padded == 0)[0]
            forward = block.feed_forward
            states = states + forward.ff_linear_2(functional.gelu(forward.ff_linear_1(block.layer_norm_2(states))))
        return self.ranked(states[0, -1])


class RecToolsLigr(RecTools):
    """SASRec with LiGR's layers, which look at the padding before the history, as SASRec does by default."""

    form = "rectools.sasrec"
    hides_padding = False

    def __init__(self) -> None:
        super().__init__(special=1)
        self.sizes |= {
            "layers": "LiGRLayers", "ff_activation": "swiglu", "use_key_padding_mask": self.hides_padding
        }  # fmt: skip
        for block in self.transformer_blocks:
            block.layer_norm_1, block.layer_norm_2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
            block.gating_linear_1, block.gating_linear_2 = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
            block.feed_forward.ff_linear_1 = nn.Linear(DIM, 12, bias=False)
            block.feed_forward.ff_linear_2 = nn.Linear(12, DIM, bias=False)
            block.feed_forward.ff_linear_3 = nn.Linear(DIM, 12, bias=False)
        _shaken(self)

    def scores(self, history: Sequence[int]) -> Tensor:
        padded, states = self.inputs([item + 1 for item in history])
        hidden = torch.triu(torch.ones(LONGEST, LONGEST, dtype=torch.bool), diagonal=1)
        if self.hides_padding:
            hidden = (hidden | (padded == 0)) & ~torch.eye(LONGEST, dtype=torch.bool)
        for block in self.transformer_blocks:
            read = block.layer_norm_1(states)
            seen = block.multi_head_attn(read, read, read, attn_mask=hidden)[0]
            states = states + block.gating_linear_1(states).sigmoid() * seen
            forward, read = block.feed_forward, block.layer_norm_2(states)
            inner = functional.silu(forward.ff_linear_1(read)) * forward.ff_linear_3(read)
            states = states + block.gating_linear_2(states).sigmoid() * forward.ff_linear_2(inner)
        return self.ranked(states[0, -1])


class RecToolsLigrWithoutPadding(RecToolsLigr):
    hides_padding = True


class RecToolsHstu(RecTools):
    form = "rectools.hstu"
    timed = False

    def __init__(self) -> None:
        super().__init__(special=1)
        self.sizes |= {"layers": "STULayers", "epsilon": 1e-6, "relative_pos_attention": True, "distance": "cosine"}
        self.sizes["relative_time_attention"] = self.timed
        self.transformer_blocks = nn.ModuleList()
        self.stu_blocks: Any = nn.ModuleList()
        for _ in range(2):
            block: Any = nn.Module()
            block.rel_attn = nn.Module()
            block.rel_attn.pos_weights = nn.Parameter(torch.zeros(2 * LONGEST - 1))
            if self.timed:
                block.rel_attn.time_weights = nn.Parameter(torch.zeros(BUCKETS + 1))
            block.uvqk_proj = nn.Parameter(torch.zeros(DIM, 4 * DIM))
            block.output_mlp = nn.Linear(DIM, DIM)
            block.norm_input, block.norm_attn_output = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
            self.stu_blocks.append(block)
        _shaken(self)

    def scores(self, history: Sequence[int], times: Sequence[int] = ()) -> Tensor:
        """`times` are those of the items and, last, of the request, in seconds."""
        padded, states = self.inputs([item + 1 for item in history])
        real = (padded != 0)[:, :, None]
        own = list(times) or [0] * (len(history) + 1)
        moments = torch.tensor(own[:1] * (LONGEST - len(history)) + own)
        apart = (moments[1:, None] - moments[None, :-1]).abs().clamp(min=1)
        buckets = (apart.log() / 0.301).long().clamp(max=BUCKETS)
        visible = torch.tril(torch.ones(LONGEST, LONGEST)) * (padded != 0)
        place = torch.arange(LONGEST)
        distance = place[None, :] - place[:, None] + LONGEST - 1
        for block in self.stu_blocks:
            states = states * real
            read = block.norm_input(states) * real
            parts = functional.silu(read @ block.uvqk_proj).chunk(4, dim=-1)
            gate, value, query, key = (part.view(LONGEST, HEADS, -1).transpose(0, 1) for part in parts)
            weights = query @ key.transpose(1, 2) + block.rel_attn.pos_weights[distance]
            if self.timed:
                weights = weights + block.rel_attn.time_weights[buckets]
            seen = (functional.silu(weights) / LONGEST * visible) @ value
            flat = block.norm_attn_output(seen.transpose(0, 1).reshape(1, LONGEST, DIM))
            states = block.output_mlp(gate.transpose(0, 1).reshape(1, LONGEST, DIM) * flat * real) + states
        rows = functional.normalize(self.items.weight[1:], dim=-1)
        return rows @ functional.normalize(states[0, -1], dim=0)


class RecToolsTimedHstu(RecToolsHstu):
    timed = True


TRANSFORMERS: tuple[type[Theirs], ...] = (
    RecBoleSasRec,
    RecBoleBert4Rec,
    RecBoleGru4Rec,
    RecToolsSasRec,
    RecToolsBert4Rec,
    RecToolsLigr,
    RecToolsLigrWithoutPadding,
    RecToolsHstu,
)
