"""The points of KServe's and Triton's specifications that end a request, and hostile tensors: a status for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.settings.network import Edge
from tests.support.facts import FACTS
from tests.support.inference import infer, packed, rankings
from tests.support.serving import AnyServer, Shared

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
MOST_ROWS = 1000
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def stub(edge: Edge, request: pytest.FixtureRequest) -> Iterator[oip_grpc.GRPCInferenceServiceStub]:
    """A caller of the reference model at the default settings."""
    shared: Shared = request.getfixturevalue("shared")
    server: AnyServer = request.getfixturevalue("behind_envoy") if edge == "envoy" else shared()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield oip_grpc.GRPCInferenceServiceStub(channel)


def good() -> oip.ModelInferRequest:
    return infer({"user_history": [[0]]})


def changed(change: Callable[[oip.ModelInferRequest], object]) -> oip.ModelInferRequest:
    request = good()
    change(request)
    return request


def shaped(*shape: int, raw: bytes = b"", datatype: str = "INT64") -> oip.ModelInferRequest:
    """A history of any shape, with any contents."""
    request = oip.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="user_history", datatype=datatype, shape=shape)
    return request


def typed_otherwise(request: oip.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.int_contents.append(1)


def with_parameter(request: oip.ModelInferRequest, where: str) -> oip.ModelInferRequest:
    tensor = request.inputs[0] if where == "input" else request.outputs.add(name="recommendations")
    tensor.parameters["shared_memory_region"].string_param = "region"
    return request


CONFORMANCE: dict[str, tuple[oip.ModelInferRequest, grpc.StatusCode, str]] = {
    "unknown model": (infer({"user_history": [[1]]}, model_name="none"), NOT_FOUND, "no model 'none' is served"),
    "unknown version": (
        infer({"user_history": [[1]]}, model_name="reference", model_version="9"),
        NOT_FOUND,
        "no model 'reference@9' is served",
    ),
    "no inputs": (oip.ModelInferRequest(), INVALID, "user_history is missing"),
    "unknown input": (infer({"user_history": [[1]], "image": [[1]]}), INVALID, "no input 'image'"),
    "input twice": (changed(lambda r: r.MergeFrom(good())), INVALID, "user_history: it occurs twice"),
    "unknown output": (infer({"user_history": [[1]]}, outputs=["logits"]), INVALID, "has no output 'logits'"),
    "keys of a model without": (infer({"user_history": [[1]]}, outputs=["item_keys"]), INVALID, "has no output"),
    "output twice": (infer({"user_history": [[1]]}, outputs=["scores", "scores"]), INVALID, "wanted twice"),
    "wrong datatype": (shaped(1, 1, raw=bytes(4), datatype="FP32"), INVALID, "its datatype is 'FP32'"),
    "keys where lengths belong": (
        infer({"user_history": [[1]], "history_length": ["one"]}),
        INVALID,
        "history_length: its datatype is BYTES",
    ),
    "too many dimensions": (shaped(1, 1, 1, raw=bytes(8)), INVALID, "its shape is [1, 1, 1]"),
    "no dimension": (shaped(raw=bytes(8)), INVALID, "its shape is []"),
    "wrong shape of lengths": (
        infer({"user_history": [[1], [2]], "history_length": [1]}),
        INVALID,
        "history_length: its shape is [1], and [2] or [2, 1] is wanted",
    ),
    "lengths beyond the history": (
        infer({"user_history": [[1], [2]], "history_length": [1, 2]}),
        INVALID,
        "history_length: each must be from 0 to 1",
    ),
    "lengths that do not add up": (
        infer({"user_history": [1, 2, 3], "history_length": [1, 1]}),
        INVALID,
        "the lengths make 2, and user_history has 3 elements",
    ),
    "lengths without a history": (infer({"user": [1], "history_length": [1]}), INVALID, "needs user_history"),
    "raw contents too short": (shaped(1, 3, raw=bytes(16)), INVALID, "have 16 bytes, and its shape and INT64 make 24"),
    "raw contents too long": (shaped(1, 1, raw=bytes(16)), INVALID, "have 16 bytes"),
    "raw contents missing": (changed(lambda r: r.raw_input_contents.pop()), INVALID, "int64_contents has 0 elements"),
    "more raw contents than inputs": (
        changed(lambda r: r.raw_input_contents.append(b"")),
        INVALID,
        "raw_input_contents: it has the contents of 2 inputs, and there are 1",
    ),
    "both kinds of contents": (
        changed(lambda r: r.inputs[0].contents.int64_contents.append(1)),
        INVALID,
        "both typed and raw contents",
    ),
    "contents of another type": (
        changed(typed_otherwise),
        INVALID,
        "it has int_contents, and INT64 stands in int64_contents",
    ),
    "fewer contents than the shape": (
        infer({"user_history": [[1]]}, typed=True, shapes={"user_history": [1, 2]}),
        INVALID,
        "int64_contents has 1 elements, and its shape makes 2",
    ),
    "more rows than may be": (
        infer({"user_history": [[1]] * (MOST_ROWS + 1)}),
        INVALID,
        f"it has {MOST_ROWS + 1} rows, and a request may have 1 to {MOST_ROWS}",
    ),
    "no rows": (shaped(0, 4), INVALID, "it has 0 rows"),
    "a longer history than may be": (
        infer({"user_history": [[1] * 4097]}),
        INVALID,
        "4097 items are more than the 4096",
    ),
    "shared memory of an input": (with_parameter(good(), "input"), INVALID, "shared memory is not taken"),
    "shared memory of an output": (with_parameter(good(), "output"), INVALID, "'shared_memory_region' is not given"),
    "a time-out that is a text": (
        changed(lambda r: r.parameters["timeout"].MergeFrom(oip.InferParameter(string_param="1s"))),
        INVALID,
        "timeout: it is a whole number of microseconds",
    ),
    "k below 0": (infer({"user_history": [[1]], "k": [-1]}), INVALID, "k: -1 is not a number from 0 to 10000"),
    "k beyond the model": (infer({"user_history": [[1]], "k": [1001]}), INVALID, "k: 1001 is more than the 1000"),
    "k for other rows": (infer({"user_history": [[1]], "k": [1, 2]}), INVALID, "k: its shape is [2]"),
    "a user whom the model does not take": (
        infer({"user_history": [[1]], "user": [1]}),
        INVALID,
        "user: model reference@1 takes no user: leave user out",
    ),
    "nothing to rank by": (shaped(1, 0), INVALID, "the request names no item"),
}

HOSTILE: dict[str, tuple[oip.ModelInferRequest, str]] = {
    "a giant shape": (shaped(2**40, 1, raw=bytes(8)), "its raw contents have 8 bytes"),
    "a giant shape without elements": (shaped(2**40, 0), f"it has {2**40} rows"),
    "a shape whose size overflows 64 bits": (shaped(2**62, 2**62, raw=bytes(8)), "its raw contents have 8 bytes"),
    "a size that overflows to what is there": (shaped(2**33, 2**31, raw=b""), "its raw contents have 0 bytes"),
    "a negative dimension": (shaped(-1, 1, raw=bytes(8)), "its shape is [-1, 1]"),
    "two negative dimensions": (shaped(-1, -1, raw=bytes(8)), "its shape is [-1, -1]"),
    "thousands of dimensions": (shaped(*[1] * 10_000, raw=bytes(8)), "one or two dimensions"),
    "bytes that are no number": (shaped(1, 1, raw=bytes(7)), "its raw contents have 7 bytes"),
    "a negative id": (infer({"user_history": [[1, -1]]}), "user_history[1]: -1 is not from 0 to 2147483647"),
    "an id beyond int32": (infer({"user_history": [[2**31]]}), "2147483648 is not from 0 to"),
    "the least id": (infer({"user_history": [[-(2**63)]]}), "is not from 0 to"),
    "negative lengths": (infer({"user_history": [[1]], "history_length": [-1]}), "each must be from 0 to 1"),
    "lengths whose sum overflows": (
        infer({"user_history": [1, 2], "history_length": [2**63 - 1, 2**63 - 1]}),
        "each must be from 0 to 2",
    ),
    "a pair of a row that is not there": (
        infer({"user_history": [[1]], "excluded": [[1, 1]]}),
        "each pair begins with a row, from 0 to 0",
    ),
    "pairs of three": (infer({"user_history": [[1]], "excluded": [[0, 1, 1]]}), "[pairs, 2]"),
    "a key whose length is beyond the end": (
        shaped(1, 1, raw=(5).to_bytes(4, "little") + b"key", datatype="BYTES"),
        "do not have the elements of its shape",
    ),
    "a key of four gigabytes": (shaped(1, 1, raw=b"\xff" * 4, datatype="BYTES"), "do not have the elements"),
    "keys that are cut": (shaped(1, 2, raw=packed([b"ab"]) + b"\0\0\0", datatype="BYTES"), "do not have the elements"),
    "more keys than the shape": (shaped(1, 1, raw=packed([b"a", b"b"]), datatype="BYTES"), "do not have the elements"),
    "a giant shape of keys": (shaped(2**40, 1, raw=packed([b"a"]), datatype="BYTES"), "do not have the elements"),
    "keys without a row": (shaped(0, 1, raw=packed([b"a"]), datatype="BYTES"), "do not have the elements"),
    "a key that is not UTF-8": (shaped(1, 1, raw=packed([b"\xff"]), datatype="BYTES"), "is not UTF-8"),
    "a key too long": (shaped(1, 1, raw=packed([b"k" * 257]), datatype="BYTES"), "a key of 257 bytes is invalid"),
    "a hole between keys": (shaped(1, 2, raw=packed([b"", b"a"]), datatype="BYTES"), "an empty key before the end"),
    "a hundred inputs": (oip.ModelInferRequest(inputs=[{}] * 100), "100 inputs are more than there are"),
    "thousands of inputs": (oip.ModelInferRequest(inputs=[{}] * 100_000), "may have 1000 fields"),
    "thousands of outputs": (
        changed(lambda r: [r.outputs.add(name="scores") for _ in range(1000)]),
        "1000 outputs are more than there are",
    ),
    "a name of a megabyte": (oip.ModelInferRequest(inputs=[{"name": "x" * 2**20}]), "there is no input 'xxx"),
}


@pytest.mark.parametrize(("request_", "code", "sentence"), CONFORMANCE.values(), ids=CONFORMANCE)
def test_a_request_that_breaks_the_protocol_is_told_why(
    stub: oip_grpc.GRPCInferenceServiceStub, request_: oip.ModelInferRequest, code: grpc.StatusCode, sentence: str
) -> None:
    call = stub.ModelInfer.future(request_, timeout=TIMEOUT)

    assert call.code() is code
    assert sentence in (call.details() or "")


@pytest.mark.parametrize(("request_", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_in_a_sentence_and_harm_nobody(
    stub: oip_grpc.GRPCInferenceServiceStub, request_: oip.ModelInferRequest, sentence: str
) -> None:
    call = stub.ModelInfer.future(request_, timeout=TIMEOUT)
    told = call.details() or ""

    assert call.code() is INVALID, told
    assert sentence in told
    assert "Traceback" not in told
    assert len(told) < 2000
    assert rankings(stub.ModelInfer(good(), timeout=TIMEOUT)) == [FACTS[0,]]
