"""What the rows of a table got, gathered batch by batch, and the table that is written of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.rpc import code_pb2

from recommender.api.status import CODES
from recommender.bulk.lists import Ints
from recommender.bulk.rows import FaultyLineError, Rows
from recommender.domain import Ranking
from recommender.errors import InvalidRequestError, RecommenderError
from recommender.models.version import Version

Numbers: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]

_MODEL, _FALLBACK, _USER = range(3)
_SOURCES = ("model", "fallback", "user")
"""Where recommendations come from, as the reply's field `source` says it in capitals."""


@dataclass(slots=True)
class Counts:
    """Rows so far, how many of them were answered from the fallback list, and errors by their kind."""

    rows: int = 0
    fallbacks: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """How many rows are errors."""
        return self.errors.total()

    def add(self, other: Counts) -> None:
        """Add what another one counted."""
        self.rows += other.rows
        self.fallbacks += other.fallbacks
        self.errors.update(other.errors)


class Answers:
    """The answers to the rows of one table; several threads may put theirs in.

    A row that nothing is put in for has what it was read as: finished or an error.
    """

    def __init__(self, rows: Rows, version: Version) -> None:
        self._rows = rows
        self._version = version
        self._arrays: list[tuple[Ints, Numbers, Numbers, Ints]] = []
        self._errors: dict[int, RecommenderError] = dict(rows.errors)
        self._rankings: dict[int, Ranking] = dict(rows.finished)

    def put_arrays(self, places: Ints, ids: Numbers, scores: Numbers, wanted: Ints) -> None:
        """Put in a run's outputs [rows, k], sound in every place, of which each row wants so many."""
        self._arrays.append((places, ids, scores, np.minimum(wanted, ids.shape[1])))

    def put(self, places: Sequence[int], outcomes: Sequence[Ranking | RecommenderError]) -> None:
        """Put in what single rows got."""
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Ranking):
                self._rankings[place] = outcome
            else:
                self._errors[place] = outcome

    def table(self, user: str | None) -> tuple[pa.Table, Counts]:
        """The output of these rows, with the column `user` under that name, and what there is to count."""
        rows, remarks = self._rows, self._rows.remarks
        count = rows.count
        ids, kept = self._flat("item_ids", np.int32)
        scores, scored = self._flat("scores", np.float32)
        failed = np.zeros(count, np.bool_)
        failed[list(self._errors)] = True
        sources = np.zeros(count, np.int8)
        sources[rows.alone] = _USER
        for place, remark in remarks.items():
            sources[place] = _FALLBACK if remark.is_fallback else _USER if remark.is_user_alone else _MODEL
        columns: dict[str, pa.Array] = {}
        if user is not None and rows.user is not None:
            columns[user] = rows.user
        columns["item_ids"] = _lists(pa.array(ids), kept, failed)
        if self._version.vocabulary is not None:
            columns["item_keys"] = _lists(self._keys(ids), kept, failed)
        columns["scores"] = _lists(pa.array(scores), scored, failed)
        columns["source"] = pa.array(_SOURCES).take(pa.array(sources, mask=failed))
        for name, kind in (
            ("unknown_item_ids", pa.int32()),
            ("unknown_item_keys", pa.string()),
            ("ignored_inputs", pa.string()),
        ):
            columns[name] = _sparse(
                count, {place: list(getattr(each, name)) for place, each in remarks.items()}, pa.list_(kind)
            )
        unknown_users = np.zeros(count, np.bool_)
        unknown_users[[place for place, each in remarks.items() if each.unknown_user]] = True
        columns["unknown_user"] = pa.array(unknown_users)
        columns["model_version"] = pa.repeat(self._version.label, count)
        errors = {place: str(error) for place, error in self._errors.items()}
        kinds = {place: kind_of(error) for place, error in self._errors.items()}
        columns["error"] = _sparse(count, errors, pa.string())
        columns["error_kind"] = _sparse(count, kinds, pa.string())
        counts = Counts(
            count,
            sum(each.is_fallback for place, each in remarks.items() if not failed[place]),
            Counter(kinds.values()),
        )
        return pa.table(columns), counts

    def _flat(self, what: str, kind: type[np.int32 | np.float32]) -> tuple[npt.NDArray[np.int32 | np.float32], Ints]:
        """The ids or the scores of all rows in their order, and how many each row has."""
        is_ids = what == "item_ids"
        kept = np.zeros(self._rows.count, np.int64)
        for places, _, _, wanted in self._arrays:
            kept[places] = wanted
        rankings = {place: each.item_ids if is_ids else each.scores for place, each in self._rankings.items()}
        for place, values in rankings.items():
            kept[place] = len(values)
        starts = np.cumsum(kept) - kept
        flat = np.empty(int(kept.sum()), kind)
        for places, ids, scores, wanted in self._arrays:
            outputs = ids if is_ids else scores
            width = outputs.shape[1]
            at = starts[places][:, None] + np.arange(width)
            if (wanted == width).all():
                flat[at] = outputs
            else:
                real = np.arange(width) < wanted[:, None]
                flat[at[real]] = outputs[real]
        for place, values in rankings.items():
            flat[starts[place] : starts[place] + len(values)] = values
        return flat, kept

    def _keys(self, ids: npt.NDArray[np.int32 | np.float32]) -> pa.Array:
        """The keys of items; each different item is looked up once."""
        vocabulary = self._version.vocabulary
        if vocabulary is None:
            raise AssertionError("only a version with a vocabulary has keys")
        met = np.zeros(len(vocabulary), np.bool_)
        met[ids] = True
        items = np.flatnonzero(met)
        place_of = np.cumsum(met, dtype=np.int32) - 1
        return pa.array(vocabulary.keys(items.tolist()), pa.string()).take(pa.array(place_of[ids]))


def kind_of(error: RecommenderError) -> str:
    """What kind of error it is, for counting: its status code, and the field at fault."""
    if isinstance(error, FaultyLineError):
        return "UNREADABLE_LINE"
    code: str = code_pb2.Code.Name(CODES.get(type(error), code_pb2.INTERNAL))
    if isinstance(error, InvalidRequestError) and error.violations:
        return f"{code} {error.violations[0].field.partition('[')[0]}".rstrip()
    return code


def _lists(values: pa.Array, lengths: Ints, absent: npt.NDArray[np.bool_]) -> pa.ListArray:
    """A column of lists, one after the other in `values`; null where they are absent."""
    ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(absent) if absent.any() else None)


def _sparse(count: int, values: Mapping[int, object], kind: pa.DataType) -> pa.Array:
    """A column that is null in most rows; an empty value is null too."""
    if not any(values.values()):
        return pa.nulls(count, kind)
    column: list[object] = [None] * count
    for place, value in values.items():
        column[place] = value or None
    return pa.array(column, kind)
