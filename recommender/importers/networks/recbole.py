"""RecBole's networks: histories padded with 0 on the right, items from 1; here items start at 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.export.errors import ExportError
from recommender.export.networks.network import last_state
from recommender.importers.networks.attention import Attention, causal, within
from recommender.importers.networks.numbers import Numbers, table
from recommender.importers.networks.sizes import Sizes

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "swish": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class _Block(nn.Module):
    """Attention and a feed-forward part, each normalised after its input is added."""

    def __init__(self, numbers: Numbers, name: str, sizes: Sizes) -> None:
        super().__init__()
        attention, forward = f"{name}.multi_head_attention", f"{name}.feed_forward"
        eps = sizes.number("layer_norm_eps")
        parts = [numbers.linear(f"{attention}.{part}") for part in ("query", "key", "value", "dense")]
        self.attention = Attention(parts[0], parts[1], parts[2], parts[3], sizes.whole("n_heads"))
        self.attention_norm = numbers.norm(f"{attention}.LayerNorm", eps)
        self.inner, self.outer = numbers.linear(f"{forward}.dense_1"), numbers.linear(f"{forward}.dense_2")
        self.forward_norm = numbers.norm(f"{forward}.LayerNorm", eps)
        self.activation = _activation(sizes.word("hidden_act"))

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        queries = self.attention_norm(queries + self.attention(queries, states, mask))
        fed: Tensor = self.forward_norm(queries + self.outer(self.activation(self.inner(queries))))
        return fed


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ExportError(f"hidden_act is {name!r}; known are {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _blocks(numbers: Numbers, sizes: Sizes) -> nn.ModuleList:
    return nn.ModuleList(
        _Block(numbers, f"trm_encoder.layer.{layer}", sizes) for layer in range(sizes.whole("n_layers"))
    )


class RecBoleSasRec(nn.Module):
    """RecBole's SASRec; see `Network` for its methods."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.items = table(numbers.take("item_embedding.weight", None, None)[1:])
        self.positions = numbers.table("position_embedding.weight")
        self.longest_history = self.positions.num_embeddings
        self.norm = numbers.norm("LayerNorm", sizes.number("layer_norm_eps"))
        self.blocks = _blocks(numbers, sizes)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        column = torch.arange(user_history.shape[1])
        states = self.norm(self.items(user_history) + self.positions(column))
        *early, last = self.blocks
        mask = causal(user_history[0])
        for block in early:
            states = block(states, states, mask)
        user: Tensor = last(
            last_state(states, history_length).unsqueeze(1), states, within(user_history[0], history_length)
        )
        return user.squeeze(1)

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.items.weight


class RecBoleBert4Rec(nn.Module):
    """RecBole's BERT4Rec: a mask follows the history, whose first item is dropped; see `Network`."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.rows = table(numbers.take("item_embedding.weight", None, None)[1:])
        self.count = self.rows.num_embeddings - 1
        self.positions = numbers.table("position_embedding.weight")
        self.longest_history = self.positions.num_embeddings
        eps = sizes.number("layer_norm_eps")
        self.norm = numbers.norm("LayerNorm", eps)
        self.blocks = _blocks(numbers, sizes)
        self.output, self.output_norm = numbers.linear("output_ffn"), numbers.norm("output_ln", eps)
        self.bias = nn.Parameter(numbers.take("output_bias", self.count + 1)[1:])

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        column = torch.arange(user_history.shape[1])
        following = torch.cat([user_history[:, 1:], user_history[:, :1]], dim=1)
        masked = torch.where(column[None, :] == history_length[:, None] - 1, self.count, following)
        states = self.norm(self.rows(masked) + self.positions(column))
        *early, last = self.blocks
        mask = within(user_history[0], history_length)
        for block in early:
            states = block(states, states, mask)
        user = last(last_state(states, history_length).unsqueeze(1), states, mask).squeeze(1)
        vectors: Tensor = self.output_norm(functional.gelu(self.output(user)))
        return vectors

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.rows.weight[: self.count]

    def item_bias(self) -> Tensor:
        """See `Network`."""
        return self.bias


class RecBoleGru4Rec(nn.Module):
    """RecBole's GRU4Rec: a GRU without biases and a dense layer; see `Network`."""

    def __init__(self, numbers: Numbers, sizes: Sizes) -> None:
        super().__init__()
        self.longest_history = sizes.whole("MAX_ITEM_LIST_LENGTH")
        self.items = table(numbers.take("item_embedding.weight", None, None)[1:])
        layers, hidden, dim = sizes.whole("num_layers"), sizes.whole("hidden_size"), self.items.embedding_dim
        self.gru = nn.GRU(dim, hidden, num_layers=layers, bias=False, batch_first=True)
        for layer in range(layers):
            for part, width in (("ih", dim if layer == 0 else hidden), ("hh", hidden)):
                name = f"weight_{part}_l{layer}"
                setattr(self.gru, name, nn.Parameter(numbers.take(f"gru_layers.{name}", 3 * hidden, width)))
        self.dense = numbers.linear("dense")

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        states, _ = self.gru(self.items(user_history))
        vectors: Tensor = self.dense(last_state(states, history_length))
        return vectors

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        return self.items.weight
