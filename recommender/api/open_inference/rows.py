"""Read a request of tensors: each row becomes an `Asked`, as each request of a BatchRecommend call does."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from recommender.api.messages import ceiling
from recommender.api.open_inference.features import FeatureTensors
from recommender.api.open_inference.filters import FILTER
from recommender.api.open_inference.lists import (
    MOST_ID,
    Lists,
    check_one_each,
    excluded_lists,
    lists_beside,
    lists_of,
)
from recommender.api.open_inference.names import HISTORY, INPUTS, TIMES, TYPES, about_inputs
from recommender.api.open_inference.rankings import PLAIN_OUTPUTS
from recommender.api.open_inference.tensors import ITEMS, VALUES, Tensor, Tensors, Texts, read_tensors, refused
from recommender.api.options import Items, Options
from recommender.api.queries import PART_ITEMS, Asked, Limits
from recommender.catalogue.attributes.filters import Filter
from recommender.domain import Feature
from recommender.errors import InvalidRequestError
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_KNOWN: Final = dict.fromkeys(INPUTS, ITEMS)
_PAIR: Final = 2
_FEW: Final = 100
_ID_BYTES: Final = 8
_SHORT: Final = 64
"""Bytes of what describes a plain input, at most."""


@dataclass(slots=True)
class Rows:
    """The rows of a request, each yet to be read, in order."""

    count: int
    model: str
    request_id: str
    options: Options
    """Of a row that has a history of ids and nothing else, but the filter of all rows."""
    history: Lists | None
    types: Lists | None = None
    times: Lists | None = None
    k: list[int] | None = None
    excluded: Lists | None = None
    candidates: Lists | None = None
    users: list[int] | Texts | None = None
    features: FeatureTensors | None = None
    plain: bool = field(init=False)
    """Whether rows have a history, a user and features, and nothing else."""

    def __post_init__(self) -> None:
        others = (self.types, self.times, self.k, self.excluded, self.candidates)
        self.plain = all(each is None for each in others) and self.options.filter is None

    def read(self, row: int) -> Asked:
        """Read the next row. Raises InvalidRequestError, which names the row if there are several."""
        try:
            return self._read(row)
        except InvalidRequestError as error:
            raise about_inputs(error, row if self.count > 1 else None) from None

    def _read(self, row: int) -> Asked:
        history, keys = self._history(row)
        user = None if self.users is None else self._user(self.users, row)
        features = None if self.features is None else self.features.take(row)
        beside = user is not None or features is not None
        if self.plain and not keys and not beside and history:
            return Asked(history, max(history), self.request_id, self.model, self.options)
        options = replace(self.options, history_keys=keys, user=user, features=features)
        if self.plain and not keys and beside:
            return Asked(history, math.inf, self.request_id, self.model, options, max(history, default=-1))
        self._add_events(options, len(history) or len(keys), row)
        if self.k is not None:
            options.limit = self.k[row]
        if self.excluded is not None:
            options.excluded = _unless_empty(self.excluded.take(row))
        if self.candidates is not None:
            options.candidates = _unless_empty(self.candidates.take(row))
        return Asked(history, math.inf, self.request_id, self.model, options)

    def parts(self) -> Iterator[range]:
        """Divide the rows into parts that are answered one after the other, as `queries.parts` does."""
        lists = [each for each in (self.history, self.excluded, self.candidates) if each is not None]
        begin = items = 0
        for row in range(self.count):
            named = sum([each.size(row) for each in lists])
            items += named
            if items > PART_ITEMS and row > begin:
                yield range(begin, row)
                begin, items = row, named
        yield range(begin, self.count)

    def longest(self, limit: int) -> int:
        """The most items that a row asks for; rows without a number ask for `limit`."""
        return limit if self.k is None else max([k or limit for k in self.k])

    def _add_events(self, options: Options, items: int, row: int) -> None:
        """Add the types and times of a row, one for each of so many items."""
        if self.types is not None:
            ids, keys = self.types.take(row)
            options.history_type_ids, options.history_type_keys = ids[:items], keys[:items]
            if len(options.history_type_ids) + len(options.history_type_keys) < items:
                raise refused(TYPES, f"it has {len(ids) + len(keys)} types, and {HISTORY} {items} items")
        if self.times is not None:
            options.history_times = self.times.ids(row)[:items]

    def _history(self, row: int) -> tuple[tuple[int, ...], Sequence[str]]:
        if self.history is None:
            return (), ()
        if self.history.has_keys:
            return (), self.history.take(row).keys
        return self.history.ids(row), ()

    @staticmethod
    def _user(users: list[int] | Texts, row: int) -> int | str | None:
        if isinstance(users, Texts):
            return next(iter(users.take(1, 1)), None)
        if users[row] < 0:
            raise refused("user", f"{users[row]} is not a user id: ids are 0 or more")
        return users[row]


class RowReader:
    """Reads requests within configured limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._no_options = Options(limits.reject_unknown, limits.reject_inputs)
        self._most_k = ceiling(api.RecommendRequest, "limit")
        self._most_bytes = limits.history * _ID_BYTES

    def plain(self, request: oip.ModelInferRequest, request_id: str) -> tuple[Asked, tuple[str, ...]] | None:
        """Read a request of one history of raw ids and nothing else, with the outputs that it names, if any.

        None if it is another one, or breaks a rule.
        """
        inputs, contents = request.inputs, request.raw_input_contents
        if len(inputs) != 1 or len(contents) != 1 or request.parameters:
            return None
        outputs: tuple[str, ...] = ()
        if request.outputs:
            outputs = tuple([output.name for output in request.outputs if not output.parameters])
            if outputs not in PLAIN_OUTPUTS or len(outputs) != len(request.outputs):
                return None
        # Few requests differ in more than their contents: what describes them is read once.
        described = inputs[0].SerializeToString()
        raw = contents[0]
        size = len(raw)
        if len(described) > _SHORT or size != _plain_bytes(described) or not 0 < size <= self._most_bytes:
            return None
        history = struct.unpack(f"<{size >> 3}q", raw)
        # As in Reader.read: to sort a few takes less than to look through them twice.
        ends = sorted(history) if len(history) <= _FEW else (min(history), max(history))
        if ends[0] < 0 or ends[-1] > MOST_ID:
            return None
        model = model_named(request.model_name, request.model_version)
        return Asked(history, ends[-1], request_id, model, self._no_options), outputs

    def open(self, request: oip.ModelInferRequest, declared: Mapping[str, Feature]) -> Tensors:
        """Read the inputs of a request; `declared` are the features that models have inputs for.

        Raises InvalidRequestError as `read_tensors` does.
        """
        return read_tensors(request, {**dict.fromkeys(declared, VALUES), **_KNOWN} if declared else _KNOWN)

    def rows(
        self,
        tensors: Mapping[str, Tensor],
        model: str,
        request_id: str,
        declared: Mapping[str, Feature],
        wanted: Filter | None = None,
    ) -> Rows:
        """Read the rows that these inputs make, each with the filter that is wanted.

        Raises InvalidRequestError if the request is at fault as a whole.
        """
        history, users = tensors.get(HISTORY), tensors.get("user")
        if history is None and users is None:
            raise refused("inputs", f"{HISTORY} is missing")
        if history is not None:
            count = _rows_of(history, tensors.get("history_length"))
        else:
            count = _rows_of(users, None) if users is not None and len(users.shape) > 1 else _size(users)
        limits = self._limits
        if not 0 < count <= limits.batch_requests:
            raise refused(
                HISTORY if history is not None else "user",
                f"it has {count} rows, and a request may have 1 to {limits.batch_requests}",
            )
        return Rows(
            count,
            model,
            request_id,
            self._no_options if wanted is None else self._filtering(wanted),
            lists_of(tensors, HISTORY, "history_length", count, limits.history),
            lists_beside(tensors, TYPES, count, limits.history),
            lists_beside(tensors, TIMES, count, limits.history, 2**63 - 1),
            self._limit_of_each(tensors.get("k"), count),
            excluded_lists(tensors.get("excluded"), count, limits.excluded),
            lists_of(tensors, "candidates", "candidates_length", count, limits.candidates),
            _users(users, count),
            FeatureTensors(tensors, declared, count) if declared.keys() & tensors.keys() else None,
        )

    def _filtering(self, wanted: Filter) -> Options:
        return replace(self._no_options, filter=wanted, filters={FILTER: wanted})

    def _limit_of_each(self, tensor: Tensor | None, rows: int) -> list[int] | None:
        if tensor is None:
            return None
        numbers: list[int] = tensor.numbers().tolist()
        if tensor.shape in {(1,), (1, 1)}:
            numbers *= rows
        else:
            check_one_each(tensor, rows)
        for number in numbers:
            if not 0 <= number <= self._most_k:
                raise refused("k", f"{number} is not a number from 0 to {self._most_k}")
        return numbers


def model_named(name: str, version: str) -> str:
    """A model as `Router.route` takes it."""
    return f"{name}@{version}" if version else name


@lru_cache(maxsize=1024)
def _plain_bytes(described: bytes) -> int:
    """The size of the raw contents of an input that is one history of INT64; -1 if it is anything else."""
    sent = oip.ModelInferRequest.InferInputTensor.FromString(described)
    shape = tuple(sent.shape)
    one = len(shape) == 1 or (len(shape) == _PAIR and shape[0] == 1)
    if sent.name != HISTORY or sent.datatype != "INT64" or not one or sent.parameters or sent.HasField("contents"):
        return -1
    return shape[-1] * _ID_BYTES


def _rows_of(tensor: Tensor, lengths: Tensor | None) -> int:
    """How many rows a tensor has: one without a dimension for them is one row, or as many as there are lengths."""
    if len(tensor.shape) > 1:
        return tensor.shape[0]
    return 1 if lengths is None else _size(lengths)


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None else math.prod(tensor.shape)


def _users(tensor: Tensor | None, rows: int) -> list[int] | Texts | None:
    if tensor is None:
        return None
    check_one_each(tensor, rows)
    return tensor.elements if isinstance(tensor.elements, Texts) else tensor.elements.tolist()


def _unless_empty(items: Items) -> Items | None:
    return items if items.ids or items.keys else None
