"""Write replies: the rankings of the rows as tensors, as long as the longest of them."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from recommender.api.catalogue import keys_of
from recommender.api.metadata import MOST_REPLY_BYTES
from recommender.api.open_inference.tensors import refused
from recommender.errors import quoted
from recommender.models.version import Version
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.routing.answering import NO_REMARKS, Answer, Remarks

RECOMMENDATIONS: Final = "recommendations"
SCORES: Final = "scores"
KEYS: Final = "item_keys"
DATATYPES: Final[Mapping[str, str]] = MappingProxyType({RECOMMENDATIONS: "INT64", SCORES: "FP32", KEYS: "BYTES"})
_USUAL: Final = (RECOMMENDATIONS, SCORES)
_WITH_SCORES: Final = ((), _USUAL)
PLAIN_OUTPUTS: Final = frozenset({(), (RECOMMENDATIONS,), _USUAL})
"""Requested outputs that `reply_to_one` supports."""
NO_ITEM: Final = -1
"""Pads rankings that are shorter than the longest; its score is NaN and its key empty."""

_ITEM_BYTES: Final = 12
"""An id and a score."""
_LENGTH_BYTES: Final = 4


def outputs_of(version: Version) -> tuple[str, ...]:
    """The outputs that a version gives."""
    scores = (SCORES,) if SCORES in version.abilities else ()
    keys = (KEYS,) if version.vocabulary is not None else ()
    return (RECOMMENDATIONS, *scores, *keys)


def wanted_outputs(request: oip.ModelInferRequest, version: Version) -> tuple[str, ...]:
    """The outputs that a request names, else the recommendations and their scores.

    Raises InvalidRequestError if the version lacks one, if one is named twice, or wanted in shared memory.
    """
    if not request.outputs:
        return _usual_outputs(version)
    if len(request.outputs) > len(DATATYPES):
        raise refused("outputs", f"{len(request.outputs)} outputs are more than there are: {', '.join(DATATYPES)}")
    names = tuple(output.name for output in request.outputs)
    _check_outputs(names, version)
    for output in request.outputs:
        if names.count(output.name) > 1:
            raise refused("outputs", f"{output.name} is wanted twice")
        for key in output.parameters:
            if key == "classification" or key.startswith("shared_memory"):
                raise refused("outputs", f"{quoted(key)} is not given: outputs come as they are, within the reply")
    return names


def _usual_outputs(version: Version) -> tuple[str, ...]:
    return tuple(name for name in outputs_of(version) if name != KEYS)


def _check_outputs(names: Sequence[str], version: Version) -> None:
    known = outputs_of(version)
    for name in names:
        if name not in known:
            label = version.model.label
            raise refused("outputs", f"model {label} has no output {quoted(name)}; it has {', '.join(known)}")


def check_size(rows: int, longest: int, names: Sequence[str], version: Version) -> None:
    """Refuse a call whose reply could be too large to send. Raises InvalidRequestError."""
    keys = version.vocabulary.usual_bytes if KEYS in names and version.vocabulary is not None else 0
    size = rows * longest * (_ITEM_BYTES + keys)
    if size > MOST_REPLY_BYTES:
        raise refused(
            "k",
            f"the reply could have {size / 1e6:.0f} MB, more than the {MOST_REPLY_BYTES / 1e6:.0f} MB that are sent: "
            "send fewer rows, or ask for fewer items",
        )


class Reply:
    """A reply in the making: rows are added in order. `raw` puts their elements into `raw_output_contents`."""

    def __init__(self, names: Sequence[str], rows: int, width: int, *, raw: bool) -> None:
        self._outputs = [_OUTPUTS[name] for name in names]
        self._width = width
        self._message = oip.ModelInferResponse.FromString(_outline(tuple(names), rows, width))
        self._raw: list[list[bytes]] | None = [[] for _ in names] if raw else None
        self._versions: list[Version] = []
        self._remarks: Counter[str] | None = None
        self._matching: int | None = None

    def add(self, answers: Sequence[Answer]) -> None:
        """Add the next rows. Raises InvalidRequestError if a version that answered does not give an output."""
        for place, output in enumerate(self._outputs):
            elements: list[Any] = []
            for answer in answers:
                row = output.elements(answer)
                elements += row
                if len(row) < self._width:
                    elements += [output.padding] * (self._width - len(row))
            if self._raw is None:
                getattr(self._message.outputs[place].contents, output.field).extend(elements)
            else:
                self._raw[place].append(output.packed(elements))
        for answer in answers:
            if answer.version not in self._versions:
                self._versions.append(answer.version)
            if answer.remarks is not NO_REMARKS:
                self._note(answer.remarks)

    def finish(self, request_id: str) -> oip.ModelInferResponse:
        """Return the whole, with the id of its request."""
        message = self._message
        message.model_name = self._versions[0].model.name
        # If a canary failed for some rows, two versions answered the call.
        message.model_version = ",".join([version.model.version for version in self._versions])
        if request_id:
            message.id = request_id
        if self._raw is not None:
            message.raw_output_contents.extend(
                [parts[0] if len(parts) == 1 else b"".join(parts) for parts in self._raw]
            )
        if self._remarks is not None:
            for key, count in sorted(self._remarks.items()):
                message.parameters[key].int64_param = count
        if self._matching is not None:
            message.parameters["matching_items"].int64_param = self._matching
        return message

    def _note(self, remarks: Remarks) -> None:
        if remarks.matching_items is not None:  # the filter holds for all rows
            self._matching = remarks.matching_items
        noted = {
            "unknown_items": len(remarks.unknown_item_ids) + len(remarks.unknown_item_keys),
            "unknown_users": int(remarks.unknown_user),
            "ignored_inputs": len(remarks.ignored_inputs),
            "fallback_rows": int(remarks.is_fallback),
            "user_rows": int(remarks.is_user_alone),
        }
        self._remarks = (self._remarks or Counter()) + Counter(noted)


def reply_to_one(answer: Answer, names: tuple[str, ...], request_id: str) -> oip.ModelInferResponse:
    """Write the raw reply to a request of one row, with the id of the request; `names` are its outputs, if it has any.

    Raises InvalidRequestError if the version that answered does not give one.
    """
    version, (ids, scores) = answer.version, answer.ranking
    count = len(ids)
    if names:
        _check_outputs(names, version)
    if not count or len(scores) != count or answer.remarks is not NO_REMARKS:
        reply = Reply(names or _usual_outputs(version), 1, count, raw=True)
        reply.add([answer])
        return reply.finish(request_id)
    model = version.model
    message = oip.ModelInferResponse.FromString(_outline(names or _USUAL, 1, count, model.name, model.version))
    if names in _WITH_SCORES:
        message.raw_output_contents.extend((struct.pack(f"<{count}q", *ids), struct.pack(f"<{count}f", *scores)))
    else:
        message.raw_output_contents.append(struct.pack(f"<{count}q", *ids))
    if request_id:
        message.id = request_id
    return message


@lru_cache(maxsize=256)
def _outline(names: tuple[str, ...], rows: int, width: int, model: str = "", version: str = "") -> bytes:
    """A reply with its outputs and no elements: to parse one takes a third of the time that to make it takes."""
    outline = oip.ModelInferResponse(model_name=model, model_version=version)
    for name in names:
        outline.outputs.add(name=name, datatype=DATATYPES[name], shape=(rows, width))
    return outline.SerializeToString()


def _ids(answer: Answer) -> list[int]:
    return answer.ranking.item_ids


def _scores(answer: Answer) -> list[float]:
    return answer.ranking.scores  # a fallback list has none


def _keys(answer: Answer) -> list[bytes]:
    if answer.version.vocabulary is None:
        raise refused("outputs", f"model {answer.version.model.label} has no output {KEYS}")
    return [key.encode() for key in keys_of(answer.version, answer.ranking.item_ids, answer.remarks.new_items)]


def _packed_texts(texts: Sequence[bytes]) -> bytes:
    return b"".join([part for text in texts for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text)])


class _Output(NamedTuple):
    """How an output is written: a row of it, what fills it up, its field of typed contents, its raw contents."""

    elements: Callable[[Answer], list[Any]]
    padding: float | bytes
    field: str
    packed: Callable[[list[Any]], bytes]


_OUTPUTS: Final[Mapping[str, _Output]] = MappingProxyType(
    {
        RECOMMENDATIONS: _Output(_ids, NO_ITEM, "int64_contents", lambda ids: struct.pack(f"<{len(ids)}q", *ids)),
        SCORES: _Output(_scores, math.nan, "fp32_contents", lambda scores: struct.pack(f"<{len(scores)}f", *scores)),
        KEYS: _Output(_keys, b"", "bytes_contents", _packed_texts),
    }
)
