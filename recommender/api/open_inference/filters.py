"""The filter of a request of tensors: parameters, as the protocol has no tensor for it. It holds for all rows."""

from __future__ import annotations

import math
from typing import Final

from recommender.api.open_inference.tensors import refused
from recommender.catalogue.attributes.filters import Filter, Scalar
from recommender.recommend_api.open_inference import open_inference_pb2 as oip

FILTER: Final = "filter"
_PARAMETER: Final = "filter."
_MOST_BYTES: Final = 2_048
_MOST_PARAMETERS: Final = 64
_LONGEST_NAME: Final = 64
_LONGEST_VALUE: Final = 1_024
_KINDS: Final = {
    "bool_param": "bool_value",
    "int64_param": "int64_value",
    "uint64_param": "int64_value",
    "double_param": "double_value",
    "string_param": "string_value",
}
"""The kinds of parameters, as native requests call them."""


def filter_of(request: oip.ModelInferRequest) -> Filter | None:
    """The parameter `filter`, with those called `filter.NAME` as its parameters; None if absent.

    Raises InvalidRequestError if one breaks the rules of native requests.
    """
    names = sorted(name for name in request.parameters if name.startswith(_PARAMETER))
    if FILTER not in request.parameters:
        if names:
            raise refused(names[0], "it belongs to a filter, which is missing")
        return None
    wanted = request.parameters[FILTER]
    if wanted.WhichOneof("parameter_choice") != "string_param" or len(wanted.string_param.encode()) > _MOST_BYTES:
        raise refused(FILTER, f"it is a string of {_MOST_BYTES} bytes at most")
    if len(names) > _MOST_PARAMETERS:
        raise refused(FILTER, f"it has {len(names)} parameters, and {_MOST_PARAMETERS} are the most")
    if not wanted.string_param:
        return None
    own = ((name, *_value(name, request.parameters[name])) for name in names)
    return Filter(wanted.string_param, tuple((name.removeprefix(_PARAMETER), kind, value) for name, kind, value in own))


def _value(name: str, parameter: oip.InferParameter) -> tuple[str, Scalar]:
    """The type of a parameter as a native request has it, and its value."""
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None or not 0 < len(name.removeprefix(_PARAMETER).encode()) <= _LONGEST_NAME:
        raise refused(name, f"it has a value, and a name of 1 to {_LONGEST_NAME} bytes")
    value: Scalar = getattr(parameter, choice)
    if isinstance(value, str) and len(value.encode()) > _LONGEST_VALUE:
        raise refused(name, f"it is longer than {_LONGEST_VALUE} bytes")
    if isinstance(value, float) and not math.isfinite(value):
        raise refused(name, "it is not a finite number")
    if choice == "uint64_param" and parameter.uint64_param >= 1 << 63:
        raise refused(name, "it is beyond the whole numbers of 64 bits")
    return _KINDS[choice], value
