"""RecTools' transformers: padded with 0 on the left, positions counted from the end; here padded on the right.

Its SASRec hides no padding: each item also looks at the padding before it, whose states are zeros. All of them look
alike, so one key stands for them, with the logarithm of their number as its weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.networks.network import last_state
from recommender.importers.networks.attention import Attention, causal, within
from recommender.importers.networks.numbers import Numbers, table
from recommender.importers.networks.sizes import Sizes

_EPS = 1e-5
"""What torch adds to a variance by default."""
_LAST_EPS = 1e-8


class _Inputs(nn.Module):
    """Item rows plus positions counted from the end; the first `skipped` rows are no item's."""

    def __init__(self, numbers: Numbers, sizes: Sizes, skipped: int) -> None:
        super().__init__()
        rows = numbers.take("item_embeddings", None, None)
        self.rows = table(rows[skipped:])
        self.scale = float(rows.shape[1]) ** 0.5 if sizes.flag("use_scale_factor") else 1.0
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


class _SasRecBlock(nn.Module):
    """SASRec's own block: normalised queries look at states as they are."""

    def __init__(self, numbers: Numbers, name: str, heads: int) -> None:
        super().__init__()
        self.attention = Attention.packed(numbers, f"{name}.multi_head_attn", heads)
        self.query_norm = numbers.norm(f"{name}.q_layer_norm", _EPS)
        self.forward_norm = numbers.norm(f"{name}.ff_layer_norm", _EPS)
        self.inner = numbers.linear(f"{name}.feed_forward.ff_linear_1")
        self.outer = numbers.linear(f"{name}.feed_forward.ff_linear_2")

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        queries = self.query_norm(queries)
        read = self.forward_norm(queries + self.attention(queries, states, mask))
        fed: Tensor = self.outer(functional.relu(self.inner(read))) + read
        return fed


class _PreNormBlock(nn.Module):
    """BERT4Rec's block: normalised before each part."""

    def __init__(self, numbers: Numbers, name: str, heads: int) -> None:
        super().__init__()
        self.attention = Attention.packed(numbers, f"{name}.multi_head_attn", heads)
        self.attention_norm = numbers.norm(f"{name}.layer_norm_1", _EPS)
        self.forward_norm = numbers.norm(f"{name}.layer_norm_2", _EPS)
        self.inner = numbers.linear(f"{name}.feed_forward.ff_linear_1")
        self.outer = numbers.linear(f"{name}.feed_forward.ff_linear_2")

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        queries = queries + self.attention(self.attention_norm(queries), self.attention_norm(states), mask)
        fed: Tensor = queries + self.outer(functional.gelu(self.inner(self.forward_norm(queries))))
        return fed


class RecToolsSasRec(nn.Module):
    """RecTools' SASRec; see `Network` for its methods."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = _Inputs(numbers, sizes, skipped=1)
        self.longest_history = sizes.whole("session_max_len")
        heads = sizes.whole("n_heads")
        self.blocks = nn.ModuleList(
            _SasRecBlock(numbers, f"transformer_blocks.{block}", heads) for block in range(sizes.whole("n_blocks"))
        )
        self.norm = numbers.norm("last_layernorm", _LAST_EPS)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        width = user_history[0]
        states = self.inputs(user_history, history_length)
        padding = (self.longest_history - history_length).to(torch.float32).log()[:, None, None, None]
        looking_back = causal(width)
        mask = torch.cat(
            [
                looking_back.expand(user_history.shape[0], -1, -1, -1),
                padding.expand(-1, -1, looking_back.shape[2], -1),
            ],
            dim=3,
        )
        *early, last = self.blocks
        for block in early:
            states = block(states, states, mask)
        seen = torch.cat([within(width, history_length), padding], dim=3)
        user: Tensor = self.norm(last(last_state(states, history_length).unsqueeze(1), states, seen))
        return self.inputs.compared(user.squeeze(1))

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.inputs.compared(self.inputs.rows.weight)


class RecToolsBert4Rec(nn.Module):
    """RecTools' BERT4Rec: a mask stands behind the history and padding is hidden; see `Network`."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = _Inputs(numbers, sizes, skipped=1)
        self.longest_history = sizes.whole("session_max_len") - 1
        heads = sizes.whole("n_heads")
        self.blocks = nn.ModuleList(
            _PreNormBlock(numbers, f"transformer_blocks.{block}", heads) for block in range(sizes.whole("n_blocks"))
        )

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
