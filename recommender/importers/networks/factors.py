"""Factors of users and items, as implicit learns them: a known user by number, a new one by the history."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recommender.domain import UnknownUsers
from recommender.export.errors import ExportError
from recommender.export.networks.network import real_items
from recommender.importers.networks.numbers import Numbers, table
from recommender.importers.networks.sizes import Sizes

_EXACT = 1e-6
"""The share of a right-hand side that a fold-in may leave over: what float32 holds."""
_SPARE = 1.25
"""Steps of a fold-in, as a multiple of what the slowest of the tried histories took."""
_FEWEST_STEPS = 4


class _Factors(nn.Module):
    """Users by number, from 1 on; 0 is an unknown one, which is ranked as `unknown_user` says."""

    unknown_user: UnknownUsers = "history"

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        items, users = (numbers.take(name, None, None) for name in ("item_factors", "user_factors"))
        if items.shape[1] != users.shape[1]:
            raise ExportError(
                f"Items have {items.shape[1]} factors and users {users.shape[1]}; they must have as many of each."
            )
        self.items = table(items)
        self.users = table(torch.cat([torch.zeros(1, users.shape[1]), users]))
        self.known_users = len(users)

    def forward(self, user_history: Tensor, history_length: Tensor, user: Tensor) -> Tensor:
        """See `Network`."""
        return torch.where((user > 0)[:, None], self.users(user), self.folded(user_history, history_length))

    def folded(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """The factors of unknown users: float32 [batch, d]."""
        raise NotImplementedError

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight


class Als(_Factors):
    """implicit's ALS: unknown users are folded in exactly, as `recalculate_user` does.

    It solves (YᵗY + λI + Yᵗ(C - I)Y) x = YᵗC p by conjugate gradients. Items are turned so that the first part, which
    no history changes, is the identity; then few steps are exact. An item counts once, with the confidence `alpha`.
    """

    turned: Tensor
    back: Tensor

    def __init__(self, numbers: Numbers, sizes: Sizes, histories: Sequence[Sequence[int]]) -> None:
        super().__init__(numbers)
        self.alpha = sizes.number("alpha")
        if self.alpha <= 0:
            raise ExportError(
                f"alpha is {self.alpha:g}; a model that was trained without confidence cannot fold users in."
            )
        factors = self.items.weight.double()
        regularization = sizes.number("regularization")
        gram = factors.T @ factors + regularization * torch.eye(factors.shape[1], dtype=torch.float64)
        try:
            back = torch.linalg.inv(torch.linalg.cholesky(gram)).T
        except RuntimeError as error:
            raise ExportError(
                f"regularization is {regularization:g}, too little to fold users in: some factors hang on others."
            ) from error
        self.register_buffer("back", back.float())
        self.steps = self._needed(factors @ back, histories)

    def folded(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `_Factors`."""
        ids, first = once(user_history, history_length)
        rows = self.items(ids) @ self.back
        solved, _ = self._solve(rows, first, self.steps)
        return solved @ self.back.T

    def _solve(self, rows: Tensor, weight: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The factors after so many steps, and what is left of the right-hand side; `rows` are [batch, history, d]."""
        more = (self.alpha - 1) * weight
        rest = self.alpha * (weight[:, None] @ rows).squeeze(1)
        found, ahead = torch.zeros_like(rest), rest
        square = (rest * rest).sum(dim=1, keepdim=True)
        for _ in range(steps):
            seen = (rows @ ahead[:, :, None]).squeeze(2) * more
            product = ahead + (seen[:, None] @ rows).squeeze(1)
            share = square / (ahead * product).sum(dim=1, keepdim=True).clamp(min=1e-30)
            found, rest = found + share * ahead, rest - share * product
            after = (rest * rest).sum(dim=1, keepdim=True)
            ahead, square = rest + after / square.clamp(min=1e-30) * ahead, after
        return found, rest

    def _needed(self, rows: Tensor, histories: Sequence[Sequence[int]]) -> int:
        """Steps after which every history is folded in exactly, with some to spare."""
        size = rows.shape[1]
        needed = _FEWEST_STEPS
        for history in histories:
            own = rows[sorted(set(history))][None]
            weight = torch.ones(own.shape[:2], dtype=torch.float64)
            whole = float((self.alpha * own.sum(dim=1)).norm())
            while needed < size and float(self._solve(own, weight, needed)[1].norm()) > _EXACT * whole:
                needed += 1
        return min(size, math.ceil(needed * _SPARE))


class Bpr(_Factors):
    """implicit's BPR, which has no fold-in: an unknown user is the mean of the history's items, our approximation."""

    def folded(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `_Factors`."""
        real = real_items(user_history, history_length).to(torch.float32)
        mean = (real[:, None] @ self.items(user_history)).squeeze(1) / history_length.clamp(min=1)[:, None]
        # The last factor of an item is its bias; a user's is 1.
        return torch.cat([mean[:, :-1], torch.ones_like(mean[:, :1])], dim=1)


def once(user_history: Tensor, history_length: Tensor) -> tuple[Tensor, Tensor]:
    """The history in another order, and a weight float32 [batch, history]: 1 for one copy of each item, else 0."""
    real = real_items(user_history, history_length)
    ids, _ = torch.sort(torch.where(real, user_history, -1), dim=1)
    before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], dim=1)
    return ids.clamp(min=0), (ids != before).to(torch.float32)
