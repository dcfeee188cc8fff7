"""Tensors of a request: held to their names, types, shapes and sizes before anything reads their elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.errors import InvalidRequestError, Violation, quoted
from recommender.recommend_api.open_inference import open_inference_pb2 as oip

Numbers: TypeAlias = npt.NDArray[Any]

ITEMS: Final = ("INT64", "INT32", "BYTES")
"""Datatypes of items, users and the like."""
VALUES: Final = (*ITEMS, "FP32", "FP64", "BOOL")
"""Datatypes of features."""
_NUMBERS: Final[Mapping[str, str]] = MappingProxyType(
    {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
)
_TYPED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "INT64": "int64_contents",
        "INT32": "int_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BOOL": "bool_contents",
        "BYTES": "bytes_contents",
    }
)
"""The field of typed contents for each datatype."""
_LENGTH_BYTES = 4
"""The prefix of each element of raw BYTES: its length, little-endian."""
_MOST_DIMENSIONS = 2
_AT_ONCE = 1 << 12
"""Typed contents that are copied at once, in some 0.2 ms."""
_MOST_NAMES = 20
_LONGEST_KEY = 256
_LONGEST_STRING = 1024
"""Bytes of a key, and of a string among features, as the rules of RecommendRequest have it."""


class Texts:
    """The elements of a BYTES tensor, taken in order."""

    def __init__(self, name: str, elements: bytes | Sequence[bytes], count: int) -> None:
        self._name = name
        self._elements = elements
        self._left = count
        self._at = 0

    def take(self, count: int, kept: int) -> list[str]:
        """Take the next `count` elements and return the first `kept`, without the empty ones at their end: padding.

        Raises InvalidRequestError if one is no key, or if the raw contents end before it does.
        """
        taken = self._take(count)
        del taken[kept:]
        while taken and not taken[-1]:
            taken.pop()
        for element in taken:
            if not 0 < len(element) <= _LONGEST_KEY:
                told = f"a key of {len(element)} bytes" if element else "an empty key before the end of its row"
                raise refused(self._name, f"{told} is invalid: keys have 1 to {_LONGEST_KEY} bytes")
        return [self._decoded(element) for element in taken]

    def take_strings(self, count: int) -> list[str]:
        """Take the next `count` elements as they are. Raises InvalidRequestError as `take` does."""
        taken = self._take(count)
        for element in taken:
            if len(element) > _LONGEST_STRING:
                raise refused(self._name, f"a string of {len(element)} bytes is longer than {_LONGEST_STRING}")
        return [self._decoded(element) for element in taken]

    def _take(self, count: int) -> list[bytes]:
        self._left -= count
        if isinstance(self._elements, bytes):
            taken = self._take_raw(self._elements, count)
            if not self._left and self._at != len(self._elements):
                raise _wrong_size(self._name)
            return taken
        self._at += count
        return list(self._elements[self._at - count : self._at])

    def _take_raw(self, raw: bytes, count: int) -> list[bytes]:
        taken, at, end = [], self._at, len(raw)
        for _ in range(count):
            start = at + _LENGTH_BYTES
            at = start + int.from_bytes(raw[at:start], "little")
            if start > end or at > end:
                raise _wrong_size(self._name)
            taken.append(raw[start:at])
        self._at = at
        return taken

    def _decoded(self, element: bytes) -> str:
        try:
            return element.decode()
        except UnicodeDecodeError:
            raise refused(self._name, f"{quoted(element)} is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input. Its size is that of its shape; `elements` are flat, row after row."""

    name: str
    shape: tuple[int, ...]
    elements: Numbers | Texts

    def numbers(self) -> Numbers:
        """Its elements, of an input that has items. Raises InvalidRequestError if they are BYTES."""
        if isinstance(self.elements, Texts):
            raise refused(self.name, "its datatype is BYTES, and INT64 or INT32 is wanted")
        return self.elements


@dataclass(slots=True)
class Tensors:
    """The inputs of a request by name. Those of long typed contents are empty until all `fillings` were done."""

    named: dict[str, Tensor] = field(default_factory=dict)
    fillings: list[Callable[[], None]] = field(default_factory=list)
    """Each takes some 0.2 ms."""

    def copy(self, elements: Sequence[Any], dtype: str) -> Numbers:
        """Make an array of typed contents, at once if they are few."""
        size = len(elements)
        if size <= _AT_ONCE:
            return np.array(elements[:], dtype)
        array = np.empty(size, dtype)

        def fill(start: int) -> None:
            array[start : start + _AT_ONCE] = elements[start : start + _AT_ONCE]

        self.fillings += [partial(fill, start) for start in range(0, size, _AT_ONCE)]
        return array


def read_tensors(request: oip.ModelInferRequest, known: Mapping[str, Sequence[str]]) -> Tensors:
    """Read the inputs of a request; `known` are the possible names, with their datatypes.

    Raises InvalidRequestError if one is unknown, occurs twice, or does not fit its datatype and its shape.
    """
    inputs, raw = request.inputs, request.raw_input_contents
    if len(inputs) > len(known):
        raise refused("inputs", f"{len(inputs)} inputs are more than there are: {_some(known)}")
    if raw and len(raw) != len(inputs):
        raise refused("raw_input_contents", f"it has the contents of {len(raw)} inputs, and there are {len(inputs)}")
    tensors = Tensors()
    for place, each in enumerate(inputs):
        name = each.name
        if name not in known:
            raise refused("inputs", f"there is no input {quoted(name)}; there are {_some(known)}")
        if name in tensors.named:
            raise refused(name, "it occurs twice")
        tensors.named[name] = _tensor(each, raw[place] if raw else None, known[name], tensors)
    return tensors


def _tensor(
    sent: oip.ModelInferRequest.InferInputTensor, raw: bytes | None, datatypes: Sequence[str], tensors: Tensors
) -> Tensor:
    name, datatype = sent.name, sent.datatype
    if datatype not in datatypes:
        raise refused(name, f"its datatype is {quoted(datatype)}, and one of {', '.join(datatypes)} is wanted")
    if any(key.startswith("shared_memory") for key in sent.parameters):
        raise refused(name, "shared memory is not taken: send the contents")
    if len(sent.shape) > _MOST_DIMENSIONS or not sent.shape or min(sent.shape) < 0:
        raise refused(name, f"its shape is {quoted(sent.shape[:8])}, and one or two dimensions of 0 or more are wanted")
    shape = tuple(sent.shape)
    size = math.prod(shape)
    if raw is not None:
        if sent.HasField("contents"):
            raise refused(name, "it has both typed and raw contents: send one of them")
        return Tensor(name, shape, _raw_elements(name, datatype, raw, size))
    return Tensor(name, shape, _typed_elements(name, datatype, sent.contents, size, tensors))


def _raw_elements(name: str, datatype: str, raw: bytes, size: int) -> Numbers | Texts:
    if datatype == "BYTES":
        if size * _LENGTH_BYTES > len(raw) or (raw and not size):
            raise _wrong_size(name)
        return Texts(name, raw, size)
    dtype = np.dtype(_NUMBERS[datatype])
    if len(raw) != size * dtype.itemsize:
        raise refused(
            name, f"its raw contents have {len(raw)} bytes, and its shape and {datatype} make {size * dtype.itemsize}"
        )
    numbers: Numbers = np.frombuffer(raw, dtype)
    return numbers


def _typed_elements(
    name: str, datatype: str, contents: oip.InferTensorContents, size: int, tensors: Tensors
) -> Numbers | Texts:
    wanted = _TYPED[datatype]
    others = [each.name for each, _ in contents.ListFields() if each.name != wanted]
    if others:
        raise refused(name, f"it has {others[0]}, and {datatype} stands in {wanted}")
    elements = getattr(contents, wanted)
    if len(elements) != size:
        raise refused(name, f"{wanted} has {len(elements)} elements, and its shape makes {size}")
    if datatype == "BYTES":
        return Texts(name, elements, size)
    return tensors.copy(elements, _NUMBERS[datatype])


def _some(names: Iterable[str]) -> str:
    """Names for a message that stays small."""
    first = [*islice(names, _MOST_NAMES + 1)]
    return ", ".join(first[:_MOST_NAMES]) + (" and others" if len(first) > _MOST_NAMES else "")


def _wrong_size(name: str) -> InvalidRequestError:
    return refused(
        name, "its raw contents do not have the elements of its shape, each after its length in four bytes, and no more"
    )


def refused(name: str, description: str) -> InvalidRequestError:
    """The refusal of a request for one of its fields, or of its inputs."""
    return InvalidRequestError(Violation(name, description))
