"""The smallest forms of libraries' networks, written for these tests: their inputs and outputs.

Each is called by a function without arguments, as `recommender export` calls it. Ids are as in the library: if it has
an id for padding, items start behind it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

ITEMS, DIM, LONGEST = 30, 8, 10


def _rows(count: int) -> nn.Embedding:
    return nn.Embedding(count, DIM)


def _causal(width: int) -> Tensor:
    return torch.triu(torch.ones(width, width, dtype=torch.bool), diagonal=1)


def _last(states: Tensor, history_length: Tensor) -> Tensor:
    last = (history_length - 1)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, last).squeeze(1)


class _ByItems(nn.Module):
    """A network whose items are the rows of `items`."""

    longest_history = LONGEST

    def __init__(self, rows: int = ITEMS + 1) -> None:
        super().__init__()
        self.items = _rows(rows)

    def item_embeddings(self) -> Tensor:
        weight: Tensor = self.items.weight
        return weight


class PmixerSasRec(_ByItems):
    """pmixer's SASRec: padding 0 on the left, positions from 1, nn.MultiheadAttention, the last column."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(LONGEST + 1, DIM, padding_idx=0)
        self.attention_norm, self.forward_norm, self.last_norm = (nn.LayerNorm(DIM) for _ in range(3))
        self.attention = nn.MultiheadAttention(DIM, 2)
        self.inner, self.outer = nn.Conv1d(DIM, DIM, 1), nn.Conv1d(DIM, DIM, 1)

    def forward(self, log_seqs: Tensor) -> Tensor:
        states = self.items(log_seqs) * math.sqrt(DIM)
        places = torch.arange(1, log_seqs.shape[1] + 1) * (log_seqs != 0)
        states = states + self.positions(places)
        states = states.transpose(0, 1)
        queries = self.attention_norm(states)
        attended, _ = self.attention(queries, states, states, attn_mask=_causal(log_seqs.shape[1]), need_weights=False)
        states = (queries + attended).transpose(0, 1)
        states = self.forward_norm(states)
        fed = self.outer(self.inner(states.transpose(-1, -2)).relu()).transpose(-1, -2)
        vectors: Tensor = self.last_norm(states + fed)[:, -1]
        return vectors


class GSasRec(_ByItems):
    """gSASRec: padding is the id behind the last item, on the left; masks by value; an own output table."""

    def __init__(self) -> None:
        super().__init__(ITEMS)
        self.inputs = nn.Embedding(ITEMS + 1, DIM, padding_idx=ITEMS)
        self.positions = _rows(LONGEST)
        self.queries, self.keys, self.values = (nn.Linear(DIM, DIM) for _ in range(3))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, sequence: Tensor) -> Tensor:
        real = (sequence != ITEMS).to(torch.float32)[:, :, None]
        states = (self.inputs(sequence) + self.positions(torch.arange(sequence.shape[1]))) * real
        queries, keys, values = self.queries(self.norm(states)), self.keys(states), self.values(states)
        weights = queries @ keys.transpose(1, 2) / math.sqrt(DIM)
        weights = weights.masked_fill(_causal(sequence.shape[1]), -(2.0**31)).softmax(dim=-1)
        vectors: Tensor = self.norm(states + weights @ values * real)[:, -1]
        return vectors


class RecBoleSasRec(_ByItems):
    """RecBole's SASRec: padding 0 on the right, a mask by value that is added, the state at the length."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = _rows(LONGEST)
        self.norm = nn.LayerNorm(DIM)
        self.query, self.key, self.value, self.dense = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        states = self.norm(self.items(item_seq) + self.positions(torch.arange(item_seq.shape[1])))
        mask = torch.tril((item_seq != 0)[:, None, None, :].expand(-1, -1, item_seq.shape[1], -1))
        heads = [part(states).unflatten(2, (2, -1)).permute(0, 2, 1, 3) for part in (self.query, self.key, self.value)]
        queries, keys, values = heads
        weights = queries @ keys.transpose(2, 3) / math.sqrt(DIM / 2) + torch.where(mask, 0.0, -10_000.0)
        attended = (weights.softmax(dim=-1) @ values).permute(0, 2, 1, 3).flatten(2)
        return _last(self.norm(states + self.dense(attended)), item_seq_len)


class RecBoleGru4Rec(_ByItems):
    """RecBole's GRU4Rec: a GRU over the padded history, a dense layer, the state at the length."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(DIM, 12, bias=False, batch_first=True)
        self.dense, self.dropout = nn.Linear(12, DIM), nn.Dropout(0.3)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        states, _ = self.gru(self.dropout(self.items(item_seq)))
        return _last(self.dense(states), item_seq_len)


class RecBoleNarm(_ByItems):
    """RecBole's NARM: a GRU whose states are weighted by their fit to the last one; a mask by value."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(DIM, DIM, bias=False, batch_first=True)
        self.a_1, self.a_2, self.v = (nn.Linear(DIM, size, bias=False) for size in (DIM, DIM, 1))
        self.b = nn.Linear(2 * DIM, DIM, bias=False)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        states, _ = self.gru(self.items(item_seq))
        last = _last(states, item_seq_len)
        mask = item_seq.gt(0).unsqueeze(2).expand_as(states)
        weights = self.v((mask * torch.sigmoid(self.a_1(states) + (mask * self.a_2(last).unsqueeze(1)))).flatten(0, 1))
        local = (weights.view(-1, item_seq.shape[1], 1) * mask * states).sum(dim=1)
        vectors: Tensor = self.b(torch.cat([local, last], dim=1))
        return vectors


class RecBoleStamp(_ByItems):
    """RecBole's STAMP: attention of the last item and the mean over all items; two products of MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, DIM, padding_idx=0)
        self.w_1, self.w_2, self.w_3 = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.w_0, self.mlp_a, self.mlp_b = nn.Linear(DIM, 1, bias=False), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        context = self.items(item_seq)
        last = _last(context, item_seq_len)
        mean = context.sum(dim=1) / item_seq_len.unsqueeze(1).to(torch.float32)
        mixed = self.w_1(context) + self.w_2(last).unsqueeze(1) + self.w_3(mean).unsqueeze(1)
        weights = self.w_0(torch.sigmoid(mixed)) * (item_seq > 0).unsqueeze(2)
        attended = (weights * context).sum(dim=1) + mean
        vectors: Tensor = torch.tanh(self.mlp_a(attended)) * torch.tanh(self.mlp_b(last))
        return vectors


class RecBoleCaser(_ByItems):
    """RecBole's Caser: convolutions over a history of one width, filled up with 0 on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(1, 2, (LONGEST, 1))
        self.horizontal = nn.ModuleList(nn.Conv2d(1, 3, (height, DIM)) for height in (2, 3))
        self.dense = nn.Linear(2 * DIM + 6, DIM)

    def forward(self, item_seq: Tensor) -> Tensor:
        image = self.items(item_seq).unsqueeze(1)
        down = self.vertical(image).flatten(1)
        across = [functional.relu(each(image).squeeze(3)).amax(dim=2) for each in self.horizontal]
        vectors: Tensor = functional.relu(self.dense(torch.cat([down, *across], dim=1)))
        return vectors


class RecToolsSasRec(_ByItems):
    """RecTools' SASRec: [PAD] is 0 and left, nn.MultiheadAttention with a causal mask, normalised before each part."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = _rows(LONGEST)
        self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))
        self.feed_forward = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        timeline = (x != 0).unsqueeze(-1)
        states = (self.items(x) + self.positions(torch.arange(x.shape[1]).flip(0))) * timeline
        queries = self.norms[0](states)
        attended, _ = self.attention(queries, states, states, attn_mask=_causal(x.shape[1]), need_weights=False)
        states = queries + attended
        states = (states + self.feed_forward(self.norms[1](states))) * timeline
        vectors: Tensor = self.norms[2](states)[:, -1]
        return vectors


class RecToolsBert4Rec(_ByItems):
    """RecTools' BERT4Rec: [PAD] 0 on the left, [MASK] 1 behind the history; padding is masked in both directions."""

    longest_history = LONGEST - 1

    def __init__(self) -> None:
        super().__init__(ITEMS + 2)
        self.positions = _rows(LONGEST)
        layer = nn.TransformerEncoderLayer(DIM, 2, 2 * DIM, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 1), value=1)
        states = self.items(x) + self.positions(torch.arange(x.shape[1]).flip(0))
        vectors: Tensor = self.encoder(states, src_key_padding_mask=x == 0)[:, -1]
        return vectors

    def never_recommended_items(self) -> list[int]:
        return [0, 1]


class ImplicitAls(_ByItems):
    """implicit's ALS: a user folded in by conjugate gradients over the normal equations, as implicit itself does."""

    longest_history = None  # type: ignore[assignment]
    gram: Tensor

    def __init__(self) -> None:
        super().__init__(ITEMS)
        factors = self.items.weight.detach()
        self.register_buffer("gram", factors.T @ factors + 0.1 * torch.eye(DIM))

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1])[None, :] < history_length[:, None]
        factors = self.items(user_history) * real.unsqueeze(2)

        def product(x: Tensor) -> Tensor:
            own: Tensor = ((factors @ x.unsqueeze(2)) * factors).sum(dim=1)
            return x @ self.gram + 39.0 * own

        user = torch.zeros_like(factors[:, 0])
        rest = 40.0 * factors.sum(dim=1)
        step, square = rest, (rest * rest).sum(dim=1, keepdim=True)
        for _ in range(3):
            ahead = product(step)
            share = square / (step * ahead).sum(dim=1, keepdim=True).clamp(min=1e-12)
            user, rest = user + share * step, rest - share * ahead
            after = (rest * rest).sum(dim=1, keepdim=True)
            step, square = rest + after / square.clamp(min=1e-12) * step, after
        return user


class _ByWeights(nn.Module):
    """Scores of all items from item-item weights: the sum of the rows of the history's items, each once."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1])[None, :] < history_length[:, None]
        seen = torch.zeros(user_history.shape[0], ITEMS).scatter_reduce(1, user_history, real.to(torch.float32), "amax")
        scores: Tensor = seen @ self.weights
        return scores


def implicit_knn() -> nn.Module:
    """implicit's item-item nearest neighbours: each item keeps its few nearest."""
    similar = torch.rand(ITEMS, ITEMS)
    return _ByWeights(similar * (similar > 0.8))


def ease() -> nn.Module:
    """EASE: the weights of a ridge regression in closed form, without a diagonal."""
    seen = (torch.rand(200, ITEMS) < 0.2).to(torch.float32)
    inverse = torch.linalg.inv(seen.T @ seen + 10.0 * torch.eye(ITEMS))
    weights = inverse / -inverse.diagonal()
    return _ByWeights(weights.fill_diagonal_(0.0))


class RechubYoutubeDnn(_ByItems):
    """torch-rechub's YouTubeDNN: pooled history through an MLP, both sides normalised, divided by a temperature."""

    longest_history = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(DIM, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, DIM))

    def forward(self, hist: Tensor, _: Tensor) -> Tensor:
        mask = (hist != 0).to(torch.float32).unsqueeze(1)
        pooled = torch.bmm(mask, self.items(hist)).squeeze(1) / (mask.sum(dim=-1) + 1e-16)
        user: Tensor = functional.normalize(self.mlp(pooled), p=2, dim=1) / 0.02
        return user

    def item_embeddings(self) -> Tensor:
        return functional.normalize(self.items.weight, p=2, dim=1)


class RechubMind(_ByItems):
    """torch-rechub's MIND: several interests by routing; an item scores by the interest that fits it best."""

    item_embeddings = None  # type: ignore[assignment]
    start: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Linear(DIM, DIM, bias=False)
        self.register_buffer("start", torch.randn(1, 3, LONGEST))

    def forward(self, hist: Tensor) -> Tensor:
        mask = (hist != 0).unsqueeze(1)
        low = self.bilinear(self.items(hist))
        logits = self.start.expand(hist.shape[0], -1, -1)

        def interests(logits: Tensor) -> Tensor:
            found = logits.softmax(dim=1).masked_fill(~mask, 0.0) @ low
            square = (found * found).sum(dim=-1, keepdim=True)
            squashed: Tensor = square / (1 + square) / (square + 1e-9).sqrt() * found
            return squashed

        high = interests(logits + interests(logits) @ low.transpose(1, 2))
        scores: Tensor = (high @ self.items.weight.T).amax(dim=1)
        return scores


FOURTEEN: dict[str, tuple[int | None, str]] = {
    "PmixerSasRec": (0, "left"),
    "GSasRec": (ITEMS, "left"),
    "RecBoleSasRec": (0, "right"),
    "RecBoleGru4Rec": (0, "right"),
    "RecBoleNarm": (0, "right"),
    "RecBoleStamp": (0, "right"),
    "RecBoleCaser": (0, "left"),
    "RecToolsSasRec": (0, "left"),
    "RecToolsBert4Rec": (0, "left"),
    "ImplicitAls": (None, "right"),
    "implicit_knn": (None, "right"),
    "ease": (None, "right"),
    "RechubYoutubeDnn": (0, "right"),
    "RechubMind": (0, "left"),
}
"""The networks by name, each with the id that is padding to it, and the side."""
