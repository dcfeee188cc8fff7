"""Requests of the Open Inference Protocol, and what their replies hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recommender.recommend_api.open_inference import open_inference_pb2 as oip

METHODS = "/inference.GRPCInferenceService"
_DTYPES: Mapping[str, str] = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
_FIELDS: Mapping[str, str] = {
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}


def infer(
    inputs: Mapping[str, Any],
    *,
    datatypes: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] = (),
    typed: bool = False,
    **fields: Any,
) -> oip.ModelInferRequest:
    """A request with these inputs as nested lists. Texts are BYTES and numbers INT64 by default."""
    request = oip.ModelInferRequest(**fields)
    for name, given in inputs.items():
        values = np.array(given, dtype=object)
        flat = values.reshape(-1).tolist()
        texts = [each.encode() if isinstance(each, str) else each for each in flat]
        is_text = bool(texts) and isinstance(texts[0], bytes)
        datatype = (datatypes or {}).get(name, "BYTES" if is_text else "INT64")
        tensor = request.inputs.add(name=name, datatype=datatype, shape=(shapes or {}).get(name, values.shape))
        if typed:
            getattr(tensor.contents, _FIELDS[datatype]).extend(texts)
        elif datatype == "BYTES":
            request.raw_input_contents.append(packed(texts))
        else:
            request.raw_input_contents.append(np.array(flat, _DTYPES[datatype]).tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    return request


def packed(texts: Sequence[bytes]) -> bytes:
    """Elements of BYTES as raw contents."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def tensor(reply: oip.ModelInferResponse, name: str) -> Any:
    """An output as nested lists, raw or typed."""
    place = [output.name for output in reply.outputs].index(name)
    output = reply.outputs[place]
    if not reply.raw_output_contents:
        flat: npt.NDArray[Any] = np.array(getattr(output.contents, _FIELDS[output.datatype])[:], dtype=object)
    elif output.datatype == "BYTES":
        flat = np.array(_unpacked(reply.raw_output_contents[place]), dtype=object)
    else:
        flat = np.frombuffer(reply.raw_output_contents[place], _DTYPES[output.datatype])
    return flat.reshape(tuple(output.shape)).tolist()


def rankings(reply: oip.ModelInferResponse) -> list[list[int]]:
    """The ids of each row, without the filling."""
    return [[item for item in row if item >= 0] for row in tensor(reply, "recommendations")]


def _unpacked(raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : end])
        at = end
    return found
