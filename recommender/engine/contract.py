"""The model contract: which tensors a model takes and gives, and how queries and rankings become them.

In: `user_history` int64 [batch, history], padded on the right with 0, and `history_length` int64 [batch];
optional `k` int64 [1], `excluded` int64 [nnz, 2], `candidates` int64 [batch, c] with `candidates_length`
int64 [batch], `user` int64 [batch], and `history_types` and `history_times` (Unix milliseconds), both int64
[batch, history] and padded as the history is. A model that takes users runs with any of them, with 0 for an unknown
one, and with histories of length 0. Any other input is a feature that the card declares, [batch] or [batch, width] of
int64, float32 or bool.
Out: `recommendations` int64 [batch, k], best first, and `scores` float32 [batch, k].
An id of -1 or a score of -inf is no recommendation. An id outside the catalogue, or a score that is NaN or +inf, is a
fault of its row: that row fails, and no other.
A model with scores in 8 bits also takes `coarse_rows` int64 [2], which has a default: the smallest and the largest
batch that starts from them. Optional `fallbacks` int64 [batch] is 1 for a row that they could not rank alone, which
serving does not ask for. Optional `query` float32 [batch, d] is what an item's vector is multiplied with: the score of
an item is that product, plus its bias. A row without a finite one gets no recommendation.
Optional `bounds` is described in `masked/bounds.py`.
The older form takes `user_history` int64 [history] and gives `recommendations` int64 [K].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.batching.faults import whole
from recommender.domain import Feature, Model, Query, Ranking
from recommender.engine import packing
from recommender.engine.features import pack_features
from recommender.engine.masked.bounds import BOUNDS
from recommender.errors import EngineError, ModelError

Feed: TypeAlias = dict[str, npt.NDArray[Any]]
Outputs: TypeAlias = Sequence[npt.NDArray[np.int64] | npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model: its element type as ONNX Runtime spells it, and its rank."""

    type: str
    rank: int


_INT64 = "tensor(int64)"
_FLOAT = "tensor(float)"
_REQUIRED = {"user_history": Port(_INT64, 2), "history_length": Port(_INT64, 1)}
_OPTIONAL = {
    "k": Port(_INT64, 1),
    "excluded": Port(_INT64, 2),
    "candidates": Port(_INT64, 2),
    "candidates_length": Port(_INT64, 1),
    "user": Port(_INT64, 1),
    "history_types": Port(_INT64, 2),
    "history_times": Port(_INT64, 2),
}
_OUTPUTS = {"recommendations": Port(_INT64, 2), "scores": Port(_FLOAT, 2)}
QUERY = "query"
_OPTIONAL_OUTPUTS = {"fallbacks": Port(_INT64, 1), QUERY: Port(_FLOAT, 2), BOUNDS: Port(_FLOAT, 2)}
_OLDER_INPUTS = {"user_history": Port(_INT64, 1)}
_OLDER_OUTPUTS = {"recommendations": Port(_INT64, 1)}
PER_ITEM = frozenset({"history_types", "history_times"})
"""Inputs of the history's own shape."""
_RESTRICTING = ("excluded", "candidates")
_TIME_TO_COME = 1 << 42
"""Unix milliseconds, in the year 2109."""
MOST_LOOKED_UP = 1 << 18
"""Candidates that one run looks up at most, padding included: it bounds the memory that they take."""
_LIGHT = 1 << 12
"""Numbers of rankings or features that are turned from or into Python's in some 0.1 ms."""
_LIGHT_CELLS = 1 << 14
"""The same of histories: padding takes next to nothing."""
NO_ITEM = -1
"""Fills `recommendations` when fewer than k items were left."""
_MOST_ITEMS = 1 << 31
"""Ids travel as int32."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The form of the contract that one model has.

    The ids that it may recommend are below `items`, and `padding` pads its histories. `type` and `time` are used for
    each item of a history without them. `features` are its other inputs, each row of which has `feature_cells` numbers
    in total.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    batched: bool
    items: int = _MOST_ITEMS
    padding: int = 0
    type: int = 0
    time: int = 0
    last_type: int = 0
    features: tuple[Feature, ...] = ()
    feature_cells: int = 0

    @classmethod
    def of(cls, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> Contract:
        """The form of these inputs and outputs. Raises ModelError, with every misfit, if they fit none.

        Inputs outside the contract are left to `others`.
        """
        if inputs == _OLDER_INPUTS and outputs == _OLDER_OUTPUTS:
            return cls(frozenset(inputs), frozenset(outputs), batched=False)
        others = {name: port for name, port in inputs.items() if name not in _REQUIRED | _OPTIONAL}
        faults = [
            *_faults("input", inputs, _REQUIRED, _OPTIONAL | others),
            *_faults("output", outputs, _OUTPUTS, _OPTIONAL_OUTPUTS),
        ]
        if ("candidates" in inputs) != ("candidates_length" in inputs):
            faults.append("candidates and candidates_length go together")
        if faults:
            faults += [f"input {name} is unknown" for name in others]
            raise ModelError(
                f"the model does not fit the contract: {'; '.join(faults)}. Expected inputs user_history int64 "
                "[batch, history] and history_length int64 [batch], outputs recommendations int64 [batch, k] and "
                "scores float32 [batch, k]; `recommender export` makes such a file"
            )
        return cls(frozenset(inputs), frozenset(outputs), batched=True)

    def within(self, model: Model) -> Contract:
        """The same for the catalogue, the padding id, the defaults and the features of a model."""
        types, times = model.history_types, model.history_times
        return replace(
            self,
            items=min(model.items or _MOST_ITEMS, _MOST_ITEMS),
            padding=model.padding_id or 0,
            type=0 if types is None else types.first if types.default is None else types.default,
            time=(times and times.default) or 0,
            last_type=0 if types is None else types.last,
            features=model.features,
            feature_cells=sum(feature.width or 1 for feature in model.features),
        )

    @staticmethod
    def has(name: str) -> bool:
        """Whether the contract itself has an input of this name."""
        return name in _REQUIRED or name in _OPTIONAL

    @property
    def others(self) -> frozenset[str]:
        """The inputs outside the contract: features, if the card declares them."""
        return self.inputs - _REQUIRED.keys() - _OPTIONAL.keys()

    @property
    def takes_k(self) -> bool:
        """Whether a run can ask for its own number of items."""
        return "k" in self.inputs

    def unrestricted_widths(self, shapes: Mapping[str, Sequence[int | str | None]]) -> dict[str, int]:
        """The named dimensions of these input shapes that are 0 in a run without exclusions and candidates."""
        dimensions = [dimension for shape in shapes.values() for dimension in shape]
        widths = [shapes[name][axis] for name, axis in (("excluded", 0), ("candidates", 1)) if name in shapes]
        return {width: 0 for width in widths if isinstance(width, str) and dimensions.count(width) == 1}

    def runs(self, queries: Sequence[Query]) -> list[list[int]]:
        """Which queries, by their places, share a run of the model.

        Queries that rank the whole catalogue do. Queries with candidates share with those that have about as many: a
        run looks up rows × the longest list among them.
        """
        if all(query.candidates is None for query in queries):
            return [list(range(len(queries)))]
        shares: dict[int, list[int]] = {}
        for place, query in enumerate(queries):
            size = -1 if query.candidates is None else len(query.candidates).bit_length()
            shares.setdefault(size, []).append(place)
        runs = []
        for size, places in shares.items():
            rows = len(places) if size < 0 else max(MOST_LOOKED_UP >> size, 1)
            runs += [places[start : start + rows] for start in range(0, len(places), rows)]
        return runs

    def light(self, queries: Sequence[Query]) -> bool:
        """Whether these are one run that takes some 0.1 ms at most to pack, and no more to unpack."""
        longest = max([len(query.history) for query in queries])
        most = max([query.k for query in queries])
        # A list of them takes less than a generator, of which half the time is its own.
        apart = [q.excluded or q.candidates is not None or q.masks or q.beside or q.rules for q in queries]
        rows = len(queries)
        cells = rows * longest * (1 + len(PER_ITEM & self.inputs))
        numbers = rows * max(most, self.feature_cells)
        return self.batched and cells <= _LIGHT_CELLS and numbers <= _LIGHT and not any(apart)

    def pack(self, queries: Sequence[Query], padding: int | None = None) -> Feed:
        """The feed of one run, histories padded with the model's own padding id unless another is given.

        Their types and times are padded with 0, or then with the last type and a future time. Raises nothing: queries
        were validated on admission.
        """
        type_behind, time_behind = (0, 0) if padding is None else (self.last_type, _TIME_TO_COME)
        padding = self.padding if padding is None else padding
        histories = [query.history for query in queries]
        lengths = list(map(len, histories))
        feed = {
            "user_history": packing.padded(histories, lengths, padding),
            "history_length": packing.int64(lengths),
        }
        if "k" in self.inputs:
            feed["k"] = packing.int64([min(max([query.k for query in queries]), self.items)])
        if "excluded" in self.inputs:
            feed["excluded"] = packing.excluded(queries)
        if "candidates" in self.inputs:
            feed["candidates"], feed["candidates_length"] = packing.candidates(queries)
        if "user" in self.inputs:
            feed["user"] = packing.int64([query.user for query in queries])
        if "history_types" in self.inputs:
            types = [query.history_types or (self.type,) * len(query.history) for query in queries]
            feed["history_types"] = packing.padded(types, lengths, type_behind)
        if "history_times" in self.inputs:
            times = [query.history_times or (self.time,) * len(query.history) for query in queries]
            feed["history_times"] = packing.padded(times, lengths, time_behind)
        if self.features:
            feed |= pack_features(self.features, queries)
        return feed

    def unrestricted(self, feed: Feed) -> bool:
        """Whether no query of this feed excludes items or names candidates."""
        return not any(name in feed and feed[name].size for name in _RESTRICTING)

    def pack_alone(self, query: Query) -> Feed:
        """The feed of the older form, which takes one history and no batch."""
        return {"user_history": np.array(query.history, np.int64)}

    def unpack(self, outputs: Outputs, queries: Sequence[Query]) -> list[Ranking]:
        """The rankings of one run, each cut to what its query asked for.

        Raises EngineError if the outputs do not have a row for every query, and FaultyRowsError if what the model gave
        for some rows is no answer.
        """
        recommendations, scores = outputs
        if len(recommendations) != len(queries) or scores.shape != recommendations.shape:
            raise EngineError(
                f"the model gave recommendations {recommendations.shape} and scores {scores.shape} "
                f"for {len(queries)} queries"
            )
        width = recommendations.shape[1]
        rows = zip(recommendations.tolist(), scores.tolist(), strict=True)
        if not width or self.all_sound(recommendations, scores):
            if not width or min([query.k for query in queries]) >= width:
                return list(map(Ranking._make, rows))
            return [
                Ranking(ids[: query.k], values[: query.k]) for (ids, values), query in zip(rows, queries, strict=True)
            ]
        return whole([self._outcome(ids, values, query.k) for (ids, values), query in zip(rows, queries, strict=True)])

    def unpack_alone(self, outputs: Outputs, queries: Sequence[Query]) -> list[Ranking]:
        """The ranking of the only query from a run of the older form, which gives no scores.

        Raises FaultyRowsError if it is no answer.
        """
        ids = outputs[0].tolist()
        (query,) = queries
        (ranking,) = whole([self._outcome(ids, [0.0] * len(ids), query.k)])
        return [ranking._replace(scores=[])]

    def all_sound(self, recommendations: npt.NDArray[Any], scores: npt.NDArray[Any]) -> bool:
        """Whether every place of a run has an item of the catalogue, and a finite score.

        Read without its sign, -1 is beyond every catalogue. A sum in float64 is finite if, and only if, all scores are.
        """
        return bool(
            np.maximum.reduce(recommendations.view(np.uint64), axis=None) < self.items
            and math.isfinite(np.add.reduce(scores, axis=None, dtype=np.float64))
        )

    def _outcome(self, ids: list[int], scores: list[float], k: int) -> Ranking | EngineError:
        """The first `k` places of a row up to the first without a recommendation; EngineError if they are no answer."""
        kept = min(k, len(ids))
        for place in range(kept):
            if ids[place] == NO_ITEM or scores[place] == -math.inf:
                kept = place
                break
            if not 0 <= ids[place] < self.items:
                return EngineError(
                    f"the model recommends what is not in its catalogue: {ids[place]}, "
                    f"and ids run from 0 to {self.items - 1}"
                )
            if not scores[place] < math.inf:
                return EngineError(f"the model gives the score {scores[place]} to item {ids[place]}")
        return Ranking(ids[:kept], scores[:kept])


def _faults(
    kind: str, found: Mapping[str, Port], required: Mapping[str, Port], optional: Mapping[str, Port]
) -> list[str]:
    faults = [f"{kind} {name} is missing" for name in required if name not in found]
    known = {**required, **optional}
    for name, port in found.items():
        if name not in known:
            faults.append(f"{kind} {name} is unknown")
        elif port != known[name]:
            faults.append(
                f"{kind} {name} is {port.type} of rank {port.rank}, not {known[name].type} of rank {known[name].rank}"
            )
    return faults
