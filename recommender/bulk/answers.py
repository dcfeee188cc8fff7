"""Collect the answers to a table's rows, batch by batch, and build the output table."""

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
from recommender.batching.faults import FaultyRowsError
from recommender.bulk.batches import PlainBatch
from recommender.bulk.lists import Ints
from recommender.bulk.rows import FaultyLineError, Rows
from recommender.domain import Ranking
from recommender.engine.contract import Contract
from recommender.errors import InvalidRequestError, RecommenderError
from recommender.models.version import Version

Numbers: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Run: TypeAlias = tuple[PlainBatch, Numbers, Numbers]
"""A batch, and the ids and scores [rows, k] that its run gave."""

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


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Sound outputs [rows, k] of several runs, of which each row has the first `kept`."""

    places: Ints
    ids: Numbers
    scores: Numbers
    kept: Ints


class Answers:
    """The answers to the rows of one table; several threads may put theirs in.

    A row that nothing is put in for has what it was read as: finished or an error.
    """

    def __init__(self, rows: Rows, version: Version, contract: Contract) -> None:
        self._count, self._user, self._alone, self._remarks = rows.count, rows.user, rows.alone, rows.remarks
        self._version = version
        self._contract = contract
        self._runs: list[Run] = []
        self._errors: dict[int, RecommenderError] = dict(rows.errors)
        self._rankings: dict[int, Ranking] = dict(rows.finished)

    def put_outputs(self, batch: PlainBatch, ids: Numbers, scores: Numbers) -> None:
        """Put in what a run gave for a batch, both [rows, k]. `table` looks whether it is sound."""
        self._runs.append((batch, ids, scores))

    def put(self, places: Sequence[int], outcomes: Sequence[Ranking | RecommenderError]) -> None:
        """Put in what single rows got."""
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Ranking):
                self._rankings[place] = outcome
            else:
                self._errors[place] = outcome

    def table(self, user: str | None) -> tuple[pa.Table, Counts]:
        """The output of these rows, with the column `user` under that name, and what there is to count."""
        count, remarks = self._count, self._remarks
        outputs = self._outputs()
        ids, kept = self._flat("item_ids", outputs, np.int32)
        scores, scored = self._flat("scores", outputs, np.float32)
        failed = np.zeros(count, np.bool_)
        failed[list(self._errors)] = True
        sources = np.zeros(count, np.int8)
        sources[self._alone] = _USER
        for place, remark in remarks.items():
            sources[place] = _FALLBACK if remark.is_fallback else _USER if remark.is_user_alone else _MODEL
        columns: dict[str, pa.Array] = {}
        if user is not None and self._user is not None:
            columns[user] = self._user
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
        if self._version.attributes is not None:
            matching = {place: each.matching_items for place, each in remarks.items() if not failed[place]}
            columns["matching_items"] = pa.array([matching.get(place) for place in range(count)], pa.int64())
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

    def _outputs(self) -> list[_Outputs]:
        """The outputs of the runs, those of one width together; rows that they do not answer get an error instead."""
        by_width: dict[int, list[Run]] = {}
        for run in self._runs:
            by_width.setdefault(run[1].shape[1], []).append(run)
        found = []
        for width, runs in by_width.items():
            joined = _joined(runs)
            if width and not self._contract.all_sound(joined.ids, joined.scores):
                sound = [run for run in runs if self._is_sound(*run)]
                if not sound:
                    continue
                joined = _joined(sound)
            found.append(joined)
        return found

    def _is_sound(self, batch: PlainBatch, ids: Numbers, scores: Numbers) -> bool:
        """Whether a run has an answer in every place; if not, its rows are unpacked one by one."""
        if self._contract.all_sound(ids, scores):
            return True
        try:
            outcomes: Sequence[Ranking | RecommenderError] = self._contract.unpack((ids, scores), batch.queries())
        except FaultyRowsError as error:
            outcomes = error.outcomes
        self.put(batch.places.tolist(), outcomes)
        return False

    def _flat(
        self, what: str, outputs: Sequence[_Outputs], kind: type[np.int32 | np.float32]
    ) -> tuple[npt.NDArray[np.int32 | np.float32], Ints]:
        """The ids or the scores of all rows in their order, and how many each row has."""
        is_ids = what == "item_ids"
        kept = np.zeros(self._count, np.int64)
        for each in outputs:
            kept[each.places] = each.kept
        rankings = {place: each.item_ids if is_ids else each.scores for place, each in self._rankings.items()}
        for place, values in rankings.items():
            kept[place] = len(values)
        starts = np.cumsum(kept) - kept
        flat = np.empty(int(kept.sum()), kind)
        for each in outputs:
            cells = (each.ids if is_ids else each.scores).astype(kind, copy=False)
            width = cells.shape[1]
            if (kept == width).all():
                flat.reshape(self._count, width)[each.places] = cells
            else:
                real = np.arange(width) < each.kept[:, None]
                flat[(starts[each.places][:, None] + np.arange(width))[real]] = cells[real]
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
    """The error's kind, for counting: its status code and the field at fault."""
    if isinstance(error, FaultyLineError):
        return "UNREADABLE_LINE"
    code: str = code_pb2.Code.Name(CODES.get(type(error), code_pb2.INTERNAL))
    if isinstance(error, InvalidRequestError) and error.violations:
        return f"{code} {error.violations[0].field.partition('[')[0]}".rstrip()
    return code


def _joined(runs: Sequence[Run]) -> _Outputs:
    """Runs of one width as one."""
    batches, ids, scores = zip(*runs, strict=True)
    return _Outputs(
        np.concatenate([batch.places for batch in batches]),
        np.concatenate(ids),
        np.concatenate(scores),
        np.minimum(np.concatenate([batch.wanted for batch in batches]), ids[0].shape[1]),
    )


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
