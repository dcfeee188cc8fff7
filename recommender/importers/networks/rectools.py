"""RecTools' transformers: padded with 0 on the left, positions counted from the end; here padded on the right.

Without `use_key_padding_mask` each item also attends to the padding before it. SASRec's own layers make zeros of its
states, which are all equal: one key represents them, with the logarithm of their number as its weight. Other layers
give them states that depend on their place only, so these are computed once, and precede the history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state
from recommender.importers.networks.attention import Attention, causal, within
from recommender.importers.networks.numbers import Numbers, table
from recommender.importers.networks.sizes import Sizes

_EPS = 1e-5
"""The number that torch adds to a variance by default."""
_LAST_EPS = 1e-8
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swiglu": functional.silu,
}


class Inputs(nn.Module):
    """Item rows plus positions counted from the end; the first `skipped` rows are no item's."""

    def __init__(self, numbers: Numbers, sizes: Sizes, skipped: int) -> None:
        super().__init__()
        rows = numbers.take("item_embeddings", None, None)
        self.rows = table(rows[skipped:])
        self.scale = float(rows.shape[1]) ** 0.5 if sizes.flag("use_scale_factor") else 1.0
        self.empty = rows[0] * self.scale
        positions = numbers.take("positions", sizes.whole("session_max_len"), rows.shape[1])
        self.positions = table(positions)
        self.by_cosine = sizes.word("distance") == "cosine"

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """States [batch, width, d]; the last of `length` columns has position 0."""
        place = (length[:, None] - 1 - torch.arange(ids.shape[1])).clamp(min=0)
        states: Tensor = self.rows(ids) * self.scale + self.positions(place)
        return states

    def compared(self, vectors: Tensor) -> Tensor:
        """Vectors of users or items as they are multiplied with each other: normalised where scores are cosines."""
        if not self.by_cosine:
            return vectors
        normed: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=_LAST_EPS)
        return normed


class _Forward(nn.Module):
    """The feed-forward part of a block: two layers, or three if one gates the inner one."""

    def __init__(self, numbers: Numbers, name: str, activation: str) -> None:
        super().__init__()
        biased = f"{name}.ff_linear_1.bias" in numbers
        self.inner = numbers.linear(f"{name}.ff_linear_1", bias=biased)
        self.outer = numbers.linear(f"{name}.ff_linear_2", bias=biased)
        self.gate = numbers.linear(f"{name}.ff_linear_3", bias=biased) if activation == "swiglu" else None
        if activation not in _ACTIVATIONS:
            raise ExportError(f"ff_activation is {activation!r}; known are {', '.join(_ACTIVATIONS)}.")
        self.activation = _ACTIVATIONS[activation]

    def forward(self, states: Tensor) -> Tensor:
        inner = self.activation(self.inner(states))
        fed: Tensor = self.outer(inner if self.gate is None else inner * self.gate(states))
        return fed


class _SasRecBlock(nn.Module):
    """SASRec's own block: normalised queries look at states as they are."""

    def __init__(self, numbers: Numbers, name: str, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention.packed(numbers, f"{name}.multi_head_attn", sizes.whole("n_heads"))
        self.query_norm = numbers.norm(f"{name}.q_layer_norm", _EPS)
        self.forward_norm = numbers.norm(f"{name}.ff_layer_norm", _EPS)
        self.fed = _Forward(numbers, f"{name}.feed_forward", "relu")

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        queries = self.query_norm(queries)
        read = self.forward_norm(queries + self.attention(queries, states, mask))
        fed: Tensor = self.fed(read) + read
        return fed


class _PreNormBlock(nn.Module):
    """BERT4Rec's block: normalised before each part."""

    def __init__(self, numbers: Numbers, name: str, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention.packed(numbers, f"{name}.multi_head_attn", sizes.whole("n_heads"))
        self.attention_norm = numbers.norm(f"{name}.layer_norm_1", _EPS)
        self.forward_norm = numbers.norm(f"{name}.layer_norm_2", _EPS)
        self.fed = _Forward(numbers, f"{name}.feed_forward", sizes.word("ff_activation"))

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        queries = queries + self.attention(self.attention_norm(queries), self.attention_norm(states), mask)
        fed: Tensor = queries + self.fed(self.forward_norm(queries))
        return fed


class _LigrBlock(_PreNormBlock):
    """LiGR's block: what goes into a part decides how much of its result is added."""

    def __init__(self, numbers: Numbers, name: str, sizes: Sizes) -> None:
        super().__init__(numbers, name, sizes)
        self.attention_gate = numbers.linear(f"{name}.gating_linear_1")
        self.forward_gate = numbers.linear(f"{name}.gating_linear_2")

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        seen = self.attention(self.attention_norm(queries), self.attention_norm(states), mask)
        queries = queries + torch.sigmoid(self.attention_gate(queries)) * seen
        fed: Tensor = queries + torch.sigmoid(self.forward_gate(queries)) * self.fed(self.forward_norm(queries))
        return fed


_BLOCKS: Mapping[str, Callable[[Numbers, str, Sizes], nn.Module]] = {
    "SASRecTransformerLayers": _SasRecBlock,
    "PreLNTransformerLayers": _PreNormBlock,
    "LiGRLayers": _LigrBlock,
}


def _blocks(numbers: Numbers, sizes: Sizes) -> nn.ModuleList:
    layers = sizes.word("layers")
    if layers not in _BLOCKS:
        raise ExportError(f"The layers are {layers!r}; known are {', '.join(_BLOCKS)}.")
    return nn.ModuleList(
        _BLOCKS[layers](numbers, f"transformer_blocks.{block}", sizes) for block in range(sizes.whole("n_blocks"))
    )


class _Padding(nn.Module):
    """How much an item sees of the padding before it, as keys in front of or behind those of the history."""

    def __init__(self, longest: int, states: Sequence[Tensor]) -> None:
        """`states` [longest, d] are those of the padding that go into each block, by the place from the left."""
        super().__init__()
        self.longest = longest
        for block, rows in enumerate(states):
            self.register_buffer(f"states_{block}", rows)

    def mask(self, history_length: Tensor) -> Tensor:
        """Addends to the weights of its keys: float32 [batch, 1, 1, longest]."""
        return within(torch.zeros(self.longest), self.longest - history_length)

    def before(self, block: int, states: Tensor) -> Tensor:
        """The states with those of the padding in front: [batch, longest + width, d]."""
        rows: Tensor = getattr(self, f"states_{block}")
        return torch.cat([rows.expand(states.shape[0], -1, -1), states], dim=1)


class RecToolsSasRec(nn.Module):
    """RecTools' SASRec, with its own or other layers; see `Network` for its methods."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = Inputs(numbers, sizes, skipped=1)
        self.longest_history = sizes.whole("session_max_len")
        self.blocks = _blocks(numbers, sizes)
        own = sizes.word("layers") == "SASRecTransformerLayers"
        self.norm = numbers.norm("last_layernorm", _LAST_EPS) if own else nn.Identity()
        self.alike = own and not sizes.flag("use_key_padding_mask")
        self.padding = None if own or sizes.flag("use_key_padding_mask") else self._padding()

    def _padding(self) -> _Padding:
        """The padding's states: what the blocks make of a history that is nothing else."""
        states = (self.inputs.empty + self.inputs.positions.weight.flip(0))[None]
        mask = causal(states[0, :, 0])
        found = []
        with torch.no_grad():
            for block in self.blocks:
                found.append(states[0])
                states = block(states, states, mask)
        return _Padding(self.longest_history, found)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        width = user_history[0]
        states = self.inputs(user_history, history_length)
        looking_back, seen = causal(width), within(width, history_length)
        if self.alike:
            padding = (self.longest_history - history_length).to(torch.float32).log()[:, None, None, None]
            looking_back, seen = self._beside(looking_back, padding), torch.cat([seen, padding], dim=3)
        if self.padding is not None:
            padding = self.padding.mask(history_length)
            looking_back = self._beside(looking_back, padding, front=True)
            seen = torch.cat([padding, seen], dim=3)
        *early, last = self.blocks
        for place, block in enumerate(early):
            states = block(states, self._keys(place, states), looking_back)
        user: Tensor = self.norm(
            last(last_state(states, history_length).unsqueeze(1), self._keys(len(early), states), seen)
        )
        return self.inputs.compared(user.squeeze(1))

    def _keys(self, block: int, states: Tensor) -> Tensor:
        return states if self.padding is None else self.padding.before(block, states)

    @staticmethod
    def _beside(looking_back: Tensor, padding: Tensor, *, front: bool = False) -> Tensor:
        """Masks of the history [1, 1, width, width] and of the padding [batch, 1, 1, keys], side by side."""
        own = looking_back.expand(padding.shape[0], -1, -1, -1)
        other = padding.expand(-1, -1, looking_back.shape[2], -1)
        return torch.cat([other, own] if front else [own, other], dim=3)

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.inputs.compared(self.inputs.rows.weight)


class RecToolsBert4Rec(nn.Module):
    """RecTools' BERT4Rec: a mask follows the history and padding is hidden; see `Network`."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = Inputs(numbers, sizes, skipped=1)
        self.longest_history = sizes.whole("session_max_len") - 1
        self.blocks = _blocks(numbers, sizes)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        wider = torch.cat([user_history, user_history[:, :1]], dim=1) + 1  # row 0 is the mask's
        column = torch.arange(wider.shape[1])
        wider = torch.where(column[None, :] == history_length[:, None], 0, wider)
        length = history_length + 1
        states = self.inputs(wider, length)
        mask = within(wider[0], length)
        *early, last = self.blocks
        for block in early:
            states = block(states, states, mask)
        user: Tensor = last(last_state(states, length).unsqueeze(1), states, mask)
        return self.inputs.compared(user.squeeze(1))

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.inputs.compared(self.inputs.rows.weight[1:])
