"""The subject of an export: a network with what is known of it before the first ONNX node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recommender.domain import Query, Times, Types, Users
from recommender.engine.features import pack_features
from recommender.export.check import PARITY
from recommender.export.errors import ExportError
from recommender.export.networks.events import checked_times, checked_types, times_of, types_of
from recommender.export.networks.features import Declared, checked_features, features_of
from recommender.export.networks.inputs import NOTHING, Beside, History, Named, arrays, reads_history, rows_of
from recommender.export.networks.padding import Padded
from recommender.export.networks.users import alone, checked_users, users_of
from recommender.export.obstacles import failure
from recommender.export.options import ExportOptions
from recommender.export.table import NEVER
from recommender.export.truth import Ids, Scores, Truth

# Further rows of embedding tables besides the items: padding, mask, unknown.
_SPECIAL_IDS = 8
_NOTHING_DECLARED = Declared()


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and its item table; `embeddings` is None if the network returns the scores of all items itself.

    `network` has the `forward` that is exported, `name` is used in messages. `padding_id` means padding to it, and is
    not an item. `never` are the items that no answer holds, ascending. Histories hold ids below `readable`.
    """

    network: nn.Module
    name: str
    items: int
    embeddings: Scores | None
    bias: Scores | None
    longest_history: int | None
    padding_id: int | None
    readable: int
    users: Users | None = None
    types: Types | None = None
    times: Times | None = None
    declared: Declared = _NOTHING_DECLARED
    reads_history: bool = True
    never: tuple[int, ...] = ()

    @classmethod
    def of(cls, network: nn.Module, options: ExportOptions | None = None) -> Subject:
        """Ask the network.

        ExportError where it does not offer what `Network` says, or something else than the options say.
        """
        options = ExportOptions() if options is None else options
        name, padding_id = type(network).__name__, options.padding_id
        longest = _longest_history(network, options)
        embeddings = _numbers(network, "item_embeddings", dimensions=2)
        bias = _numbers(network, "item_bias", dimensions=1)
        users = users_of(network, options)
        types, times = types_of(network, options), times_of(network, options)
        declared = features_of(network, options.features, options.path)
        some = _beside(users, types, times, declared, [[0 if padding_id != 0 else 1]])
        told = (users, types, times, declared, reads_history(network, some))
        reader = Named(network, tuple(some)) if some else network
        if padding_id is not None:
            reader = Padded(reader, padding_id, longest, options.padding_side, tuple(some))
        size = _run(reader, name, [[0 if padding_id != 0 else 1]], some).shape[1]
        if embeddings is None:
            if options.items != size and not hasattr(network, "history_items"):
                _refuse_vectors(network, size, longest)
            _refuse_contrary(options, name, items=size)
            readable = _readable(network, size)
            subject = cls(reader, name, size, None, None, longest, padding_id, readable, *told)
            return subject.barring(_never(network, size))
        items = len(embeddings)
        _refuse_contrary(options, name, items=items, dim=embeddings.shape[1])
        if bias is not None and len(bias) != items:
            raise ExportError(
                f"item_bias() has {len(bias)} numbers and item_embeddings() {items} rows; "
                "give one number for each item."
            )
        if size != embeddings.shape[1]:
            raise ExportError(
                f"The network yields user vectors of {size} numbers and item_embeddings() rows of "
                f"{embeddings.shape[1]}; they must be of one size, since a score is their product."
            )
        never = _never(network, items)
        if bias is not None:
            barred = bias <= NEVER / 2
            never = [*never, *np.flatnonzero(barred).tolist()]
            bias = np.where(barred, np.float32(0), bias)
        readable = _readable(network, items)
        subject = cls(reader, name, items, embeddings, bias, longest, padding_id, readable, *told)
        return subject.barring(never)

    def barring(self, items: Iterable[int]) -> Subject:
        """The same with more items that no answer holds."""
        padding = {self.padding_id} if self.padding_id is not None and self.padding_id < self.items else set()
        return replace(self, never=tuple(sorted({*self.never, *items, *padding})))

    @property
    def biased(self) -> bool:
        """Whether the item table has a column for biases, the never-recommend list being one of biases too."""
        return self.bias is not None or (self.embeddings is not None and bool(self.never))

    @property
    def recommendable(self) -> int:
        """How many items an answer may hold."""
        return self.items - len(self.never)

    def checked(self, histories: Sequence[History]) -> tuple[list[History], Beside]:
        """Histories to check with, some empty if the network allows that, and their other inputs."""
        by_themselves = alone(self.users)
        empty = len(by_themselves) or int(not self.reads_history)
        checked = [*histories, *([] for _ in range(empty))]
        beside = dict(_beside(self.users, self.types, self.times, self.declared, checked))
        if by_themselves:
            beside["user"][len(histories) :] = by_themselves
        return checked, beside

    def beside(self, query: Query) -> Beside:
        """The network's inputs besides a history, from a query or by default."""
        beside: dict[str, npt.NDArray[Any]] = {}
        size, types, times = max(len(query.history), 1), self.types, self.times
        if self.users is not None:
            beside["user"] = np.array([query.user])
        if types is not None:
            default = types.first if types.default is None else types.default
            beside["history_types"] = np.array([query.history_types or (default,) * size])
        if times is not None:
            beside["history_times"] = np.array([query.history_times or (times.default or 0,) * size])
        return beside | pack_features(self.declared.features, [query])

    def truth(self, histories: Sequence[History], beside: Beside = NOTHING) -> Truth:
        """The scores of all items [len(histories), items], each history by itself, with its inputs in `beside`.

        Raises ExportError if a history gets another answer in a batch with longer ones, or with other ids in its
        padding.
        """
        yielded = np.concatenate(
            [_run(self.network, self.name, [history], rows_of(beside, [row])) for row, history in enumerate(histories)]
        )
        self._check_padding(histories, beside, yielded)
        if self.embeddings is None:
            return Truth.of_scores(yielded, self.never)
        return Truth.of_vectors(yielded, self.embeddings, self.bias, self.never)

    def _check_padding(self, histories: Sequence[History], beside: Beside, alone: Scores) -> None:
        """Raise ExportError unless the network returns the same for all histories in one batch, with any padding."""
        widest = max(map(len, histories))
        noise = np.random.default_rng(4).integers(0, self.readable, (len(histories), widest))
        size = np.linalg.norm(alone, axis=1) if self.embeddings is not None else np.median(np.abs(alone), axis=1)
        for padding in (None, noise):
            together = _run(self.network, self.name, histories, beside, padding)
            apart = np.abs(together - alone) / np.maximum(size[:, None] + np.abs(alone), np.finfo(np.float32).tiny)
            row = int(apart.max(axis=1).argmax())
            if apart[row].max() > PARITY:
                where = "with other ids in the padding" if padding is not None else "in a batch with longer ones"
                raise ExportError(
                    f"The padding changes what {self.name} yields: the history {_some(histories[row])} alone gets "
                    f"another result than {where}. history_length alone says what is padding. Mask by it "
                    "(torch.arange(user_history.shape[1]) < history_length[:, None]) and read the state at "
                    "history_length - 1; or, if one id means padding to the network, export with --padding-id ID, and "
                    "with --padding-side left if it reads the last column."
                )


def _beside(
    users: Users | None, types: Types | None, times: Times | None, declared: Declared, histories: Sequence[History]
) -> Beside:
    """Inputs of a network besides these histories, to check it with."""
    beside: dict[str, npt.NDArray[Any]] = {}
    if users is not None:
        beside["user"] = np.array(checked_users(users, len(histories)), np.int64)
    if types is not None:
        beside["history_types"] = checked_types(types, histories)
    if times is not None:
        beside["history_times"] = checked_times(histories)
    return beside | checked_features(declared.features, len(histories))


def _longest_history(network: nn.Module, options: ExportOptions) -> int | None:
    """The most recent items that the network reads: what it says itself, else what the options say."""
    name, longest, stated = type(network).__name__, getattr(network, "longest_history", None), options.longest_history
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise ExportError(f"{name}.longest_history is {longest!r}; give a whole number or None.")
    if longest is not None and stated not in (None, longest):
        raise ExportError(f"longest_history is {stated}, but {name}.longest_history is {longest}; leave the first out.")
    longest = stated if longest is None else longest
    if longest is None and options.padding_side == "left":
        raise ExportError(
            f"padding_side is 'left', so {name} is always given histories of one length; say it by longest_history."
        )
    return longest


def _readable(network: nn.Module, items: int) -> int:
    """How many items may be in histories: what the network says in `history_items`, else those of the catalogue."""
    count = getattr(network, "history_items", items)
    if not isinstance(count, int) or count < 1:
        raise ExportError(f"{type(network).__name__}.history_items is {count!r}; give the number of ids in histories.")
    return count


def _refuse_contrary(options: ExportOptions, name: str, **found: int) -> None:
    """Raise ExportError if the options say another size than the network has."""
    for field, size in found.items():
        stated = getattr(options, field)
        if stated not in (None, size):
            raise ExportError(
                f"{field} is {stated}, but {name} has {size}; leave it out, or build the network with {stated}."
            )


def _refuse_vectors(network: nn.Module, size: int, longest: int | None) -> None:
    """Raise ExportError if what a network without `item_embeddings` yields looks like user vectors, not scores."""
    name = type(network).__name__
    tables = {key: value.shape for key, value in network.named_parameters() if value.dim() == 2}  # noqa: PLR2004
    for key, (rows, columns) in tables.items():
        looked_up = isinstance(network.get_submodule(key.rpartition(".")[0]), nn.Embedding)
        positions = longest is not None and rows <= longest + _SPECIAL_IDS
        if rows > size + _SPECIAL_IDS and (columns == size or looked_up) and not positions:
            raise ExportError(
                f"{name} has no item_embeddings() and yields {size} numbers for a history, which would be a catalogue "
                f"of {size} items; but {key} has {rows} rows. If these numbers are user vectors, add "
                "item_embeddings(), the table [items, d] whose product with them is a score. If they are the scores of "
                f"all items, give --items {size}, or by history_items = {rows} in the network."
            )


def _run(
    network: nn.Module,
    name: str,
    histories: Sequence[History],
    beside: Beside,
    padding: Ids | None = None,
) -> Scores:
    """The network's output for these histories, with its other inputs.

    Raises ExportError if it fails or returns anything else than numbers.
    """
    inputs = [torch.from_numpy(part) for part in arrays(histories, beside, padding).values()]
    try:
        with torch.no_grad():
            yielded = network(*inputs)
    except Exception as error:
        raise ExportError(
            f"{name} failed on a history: {failure(error)}. Its forward must take user_history int64 "
            "[batch, history] and history_length int64 [batch]."
        ) from error
    if not isinstance(yielded, Tensor) or yielded.dim() != 2 or yielded.shape[0] != len(histories):  # noqa: PLR2004
        shape = tuple(yielded.shape) if isinstance(yielded, Tensor) else type(yielded).__name__
        raise ExportError(f"{name} yields {shape}; it must yield user vectors [batch, d] or scores [batch, items].")
    if yielded.dtype != torch.float32:
        raise ExportError(f"{name} yields {yielded.dtype}; it must yield float32. Call .float() on what it returns.")
    if not torch.isfinite(yielded).all():
        bad = int(torch.isfinite(yielded).all(dim=1).logical_not().nonzero()[0])
        raise ExportError(
            f"{name} yields NaN or infinity for the history {_some(histories[bad])}; repair or retrain it. Items that "
            "must never be recommended are named by never_recommended_items() or --never-recommend."
        )
    found: Scores = yielded.numpy()
    return found


def _never(network: nn.Module, items: int) -> list[int]:
    """The items that `never_recommended_items` names; none where the network has no such method."""
    named = _told(network, "never_recommended_items")
    if named is None:
        return []
    name = f"{type(network).__name__}.never_recommended_items()"
    try:
        ids = [int(item) for item in named]  # type: ignore[attr-defined] # the user's code may return anything
    except (TypeError, ValueError) as error:
        raise ExportError(f"{name} is {type(named).__name__}; it must be item ids, in a list or a tensor.") from error
    if ids and not 0 <= min(ids) <= max(ids) < items:
        raise ExportError(f"{name} names the item {min(ids) if min(ids) < 0 else max(ids)}; ids run to {items - 1}.")
    return ids


def _numbers(network: nn.Module, attribute: str, *, dimensions: int) -> Scores | None:
    """The network's numbers for its items; None without any."""
    told = _told(network, attribute)
    if told is None:
        return None
    if isinstance(told, nn.Embedding):
        told = told.weight
    if not isinstance(told, Tensor) or told.dim() != dimensions or not told.numel():
        shape = tuple(told.shape) if isinstance(told, Tensor) else type(told).__name__
        wanted = ", ".join(("items", "d")[:dimensions])
        raise ExportError(f"{type(network).__name__}.{attribute}() is {shape}; it must be a tensor [{wanted}].")
    numbers: Scores = told.detach().cpu().to(torch.float32).contiguous().numpy()
    return numbers


def _told(network: nn.Module, attribute: str) -> object:
    """Call a method of the network, or read the tensor or table of that name; returns None if absent."""
    try:
        with torch.no_grad():
            found: object = getattr(network, attribute, None)
            told = found() if callable(found) and not isinstance(found, Tensor | nn.Embedding) else found
    except Exception as error:
        raise ExportError(
            f"{type(network).__name__}.{attribute}() failed: {failure(error)}. It is called without arguments."
        ) from error
    return told


def _some(history: History) -> list[int]:
    return list(history[:10])
