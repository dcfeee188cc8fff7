"""Rankings by the Open Inference Protocol: the forms of inputs, and rows of one call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.facts import FACTS
from tests.support.feature_models import vector_of
from tests.support.inference import infer, rankings, tensor
from tests.support.models import brute_force
from tests.support.paths import WEIGHTS
from tests.support.serving import Shared
from tests.support.versions import MORNING, UNTRIED, K, answer_of, embeddings_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
USERS = 4
TABLE = np.random.default_rng(3).normal(0, 2, (USERS + 1, 8)).astype(np.float32)
TYPES = np.random.default_rng(4).normal(0, 2, (3, 8)).astype(np.float32)
USER_KEYS = [f"user-{number}" for number in range(1, USERS + 1)]
HISTORIES = [list(history) for history in FACTS]
PADDED = [[*history, *[-7] * (4 - len(history))] for history in HISTORIES]
LENGTHS = [len(history) for history in HISTORIES]
ANSWERS = [answer[:K] for answer in FACTS.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: `shop` has keys and a fallback list, `users` takes users, `events` types and times, and so on."""
    folder = tmp_path_factory.mktemp("models")
    write_version(folder / "shop" / "1", 1, keys=50, fallback=(7, 3, 11))
    write_version(folder / "users" / "1", 1, users=TABLE, user_keys=USER_KEYS)
    write_version(folder / "events" / "1", 1, types=TYPES, timed=True, type_keys=["view", "cart"])
    write_version(folder / "features" / "1", 1, users=TABLE, featured=True)
    write_version(folder / "nan" / "1", 1, flaws={UNTRIED: math.nan})
    return folder


@pytest.fixture(scope="module")
def channel(shared: Shared, folder: Path) -> Iterator[grpc.Channel]:
    models = [
        *(f"{folder / name}@1" for name in ("shop", "users", "events", "features", "nan")),
        str(WEIGHTS / "10_model.onnx"),
    ]
    server = shared(model=",".join(models), num_recommendations=K)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> oip_grpc.GRPCInferenceServiceStub:
    return oip_grpc.GRPCInferenceServiceStub(channel)


FORMS = {
    "rows of raw numbers": infer({"user_history": PADDED, "history_length": LENGTHS}),
    "rows of typed numbers": infer({"user_history": PADDED, "history_length": LENGTHS}, typed=True),
    "small numbers": infer(
        {"user_history": PADDED, "history_length": LENGTHS},
        datatypes={"user_history": "INT32", "history_length": "INT32"},
    ),
    "lengths with a dimension of their own": infer(
        {"user_history": PADDED, "history_length": [[length] for length in LENGTHS]}
    ),
    "one history after another": infer({"user_history": [*chain.from_iterable(HISTORIES)], "history_length": LENGTHS}),
}


@pytest.mark.parametrize("request_", FORMS.values(), ids=FORMS)
def test_histories_come_in_several_forms(
    stub: oip_grpc.GRPCInferenceServiceStub, request_: oip.ModelInferRequest
) -> None:
    request_.model_name = "reference"
    reply = stub.ModelInfer(request_, timeout=TIMEOUT)

    assert rankings(reply) == ANSWERS
    assert bool(reply.raw_output_contents) == bool(request_.raw_input_contents), "as the inputs came"
    assert (reply.model_name, reply.model_version) == ("reference", "1")


@pytest.mark.parametrize("history", FACTS, ids=str)
@pytest.mark.parametrize("shape", [1, 2])
def test_one_history_needs_no_lengths(
    stub: oip_grpc.GRPCInferenceServiceStub, history: tuple[int, ...], shape: int
) -> None:
    sent = [list(history)] if shape == 2 else list(history)
    for typed in (False, True):
        reply = stub.ModelInfer(infer({"user_history": sent}, typed=typed, model_name="reference"), timeout=TIMEOUT)

        assert rankings(reply) == [FACTS[history][:K]]
        assert [output.name for output in reply.outputs] == ["recommendations", "scores"]
        assert sorted(tensor(reply, "scores")[0], reverse=True) == tensor(reply, "scores")[0]


def test_the_id_comes_back_and_parameters_without_a_meaning_are_ignored(
    stub: oip_grpc.GRPCInferenceServiceStub,
) -> None:
    request = infer({"user_history": [[0]]}, id="mine", model_name="reference")
    request.parameters["priority"].uint64_param = 1
    request.parameters["anything"].string_param = "else"

    reply = stub.ModelInfer(request, timeout=TIMEOUT)

    assert reply.id == "mine"
    assert rankings(reply) == [FACTS[0,][:K]]


def test_each_row_asks_for_a_number_of_its_own_and_shorter_ones_are_filled_up(
    stub: oip_grpc.GRPCInferenceServiceStub,
) -> None:
    reply = stub.ModelInfer(infer({"user_history": [[1], [2]], "k": [1, 3]}), timeout=TIMEOUT)

    assert rankings(reply) == [list(answer_of(1, (1,), 1)), list(answer_of(1, (2,), 3))]
    assert tensor(reply, "recommendations")[0][1:] == [-1, -1]
    assert np.isnan(tensor(reply, "scores")[0][1:]).all()
    for k in ([2], [[2]], [[2], [2]]):
        both = stub.ModelInfer(infer({"user_history": [[1], [2]], "k": k}), timeout=TIMEOUT)
        assert rankings(both) == [list(answer_of(1, (1,), 2)), list(answer_of(1, (2,), 2))]


@pytest.mark.parametrize("outputs", [("recommendations",), ("item_keys", "recommendations"), ("scores", "item_keys")])
@pytest.mark.parametrize("typed", [False, True])
def test_outputs_come_as_and_in_the_order_in_which_they_are_asked_for(
    stub: oip_grpc.GRPCInferenceServiceStub, outputs: tuple[str, ...], *, typed: bool
) -> None:
    reply = stub.ModelInfer(infer({"user_history": [[1, 2, 3]]}, outputs=outputs, typed=typed), timeout=TIMEOUT)

    assert tuple(output.name for output in reply.outputs) == outputs
    if "item_keys" in outputs:
        assert tensor(reply, "item_keys") == [[f"v1-{item}".encode() for item in answer_of(1)]]


@pytest.mark.parametrize("typed", [False, True])
def test_items_are_named_by_keys_and_rows_of_keys_end_with_the_last_that_is_not_empty(
    stub: oip_grpc.GRPCInferenceServiceStub, *, typed: bool
) -> None:
    for inputs in (
        {"user_history": [["v1-1", "v1-2", "v1-3"], ["v1-4", "", ""]]},
        {"user_history": ["v1-1", "v1-2", "v1-3", "v1-4"], "history_length": [3, 1]},
        {"user_history": [["v1-1", "v1-2", "v1-3"], ["v1-4", "\xff", "v1-5"]], "history_length": [3, 1]},
    ):
        if typed and "history_length" in inputs:
            continue
        reply = stub.ModelInfer(infer(inputs, typed=typed), timeout=TIMEOUT)

        assert rankings(reply) == [list(answer_of(1)), list(answer_of(1, (4,)))]


def test_unknown_items_and_answers_of_the_fallback_list_are_told_of(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    request = infer({"user_history": [[1, 2, 3], [70, 80, 90]]}, outputs=("scores", "recommendations"))
    reply = stub.ModelInfer(request, timeout=TIMEOUT)

    assert rankings(reply) == [list(answer_of(1)), [7, 3, 11]]
    assert np.isnan(tensor(reply, "scores")[1]).all()
    assert {key: value.int64_param for key, value in reply.parameters.items()} == {
        "unknown_items": 3,
        "fallback_rows": 1,
    }


@pytest.mark.parametrize("users", [[1, 2], [[1], [2]], USER_KEYS[:2], [[key] for key in USER_KEYS[:2]]], ids=str)
@pytest.mark.parametrize("history", [None, [[1], [2]]], ids=str)
def test_users_are_named_by_ids_or_keys_with_and_without_histories(
    stub: oip_grpc.GRPCInferenceServiceStub, users: list[object], history: list[list[int]] | None
) -> None:
    inputs = {"user": users} | ({"user_history": history} if history else {})
    reply = stub.ModelInfer(infer(inputs, model_name="users"), timeout=TIMEOUT)

    assert rankings(reply) == [
        brute_force(embeddings_of(1), row, K, TABLE[user])[0]
        for row, user in zip(history or [[], []], (1, 2), strict=True)
    ]


@pytest.mark.parametrize("types", [[[1, 2], [2, 0]], [["view", "cart"], ["cart", ""]]], ids=str)
def test_types_and_times_have_the_shape_of_the_history(
    stub: oip_grpc.GRPCInferenceServiceStub, types: list[list[object]]
) -> None:
    times = [[MORNING, MORNING + 1], [MORNING + 2, 0]]
    inputs = {"user_history": [[1, 2], [3, 0]], "history_length": [2, 1], "history_types": types}
    call = stub.ModelInfer(infer({**inputs, "history_times": times}, model_name="events"), timeout=TIMEOUT)
    refused = stub.ModelInfer.future(infer({**inputs, "history_times": [1, 2]}, model_name="events"), timeout=TIMEOUT)

    expected = [((1, 2), (1, 2), times[0]), ((3,), (2,), times[1][:1])]
    assert rankings(call) == [
        brute_force(embeddings_of(1), history, K, of_types=TYPES[list(of)], times=at)[0] for history, of, at in expected
    ]
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "history_times: its shape is [2], and that of user_history is wanted" in (refused.details() or "")


@pytest.mark.parametrize("typed", [False, True])
def test_features_are_inputs_of_their_own_names_and_types(
    stub: oip_grpc.GRPCInferenceServiceStub, *, typed: bool
) -> None:
    given: list[dict[str, Any]] = [
        {"age": 64.0, "city": "köln", "level": 2, "premium": True, "tastes": [0.25, 8.0]},
        {"age": 0.0, "city": "", "level": 0, "premium": False, "tastes": [1.0, 2.0]},
    ]
    inputs = {name: [row[name] for row in given] for name in given[0]} | {"user_history": [[1, 2], [3, 4]]}
    datatypes = {"age": "FP32", "premium": "BOOL", "tastes": "FP64", "level": "INT32"}
    reply = stub.ModelInfer(infer(inputs, datatypes=datatypes, typed=typed, model_name="features"), timeout=TIMEOUT)
    told = stub.ModelMetadata(oip.ModelMetadataRequest(name="features"), timeout=TIMEOUT).inputs

    assert rankings(reply) == [
        brute_force(embeddings_of(1), history, K, TABLE[0] + vector_of(row))[0]
        for history, row in zip(((1, 2), (3, 4)), given, strict=True)
    ]
    assert {each.name: (each.datatype, list(each.shape)) for each in told if each.name in given[0]} == {
        "age": ("FP32", [-1, 1]),
        "city": ("BYTES", [-1, 1]),
        "level": ("INT64", [-1, 1]),
        "premium": ("BOOL", [-1, 1]),
        "tastes": ("FP32", [-1, 2]),
    }


@pytest.mark.parametrize(
    ("inputs", "datatype", "sentence"),
    [
        ({"age": [1.0, 2.0]}, "FP32", "age: its shape is [2], and [1] or [1, 1] is wanted"),
        ({"tastes": [1.0]}, "FP32", "tastes: its shape is [1], and [1, values] is wanted"),
        ({"age": [math.nan]}, "FP32", "age: it has a NaN or an infinity"),
        ({"age": ["old"]}, "BYTES", "age: model features@1 takes one float32 here, not one string"),
        ({"age": [121.0]}, "FP64", "age: model features@1 takes no number above 120"),
        ({"tastes": [[1.0]]}, "FP32", "tastes: model features@1 takes a list of 2 float32 here, not 1"),
        ({"height": [1.0]}, "FP32", "there is no input 'height'"),
    ],
    ids=str,
)
def test_a_feature_that_cannot_be_is_refused(
    stub: oip_grpc.GRPCInferenceServiceStub, inputs: dict[str, Any], datatype: str, sentence: str
) -> None:
    request = infer({"user_history": [[1]], **inputs}, datatypes=dict.fromkeys(inputs, datatype), model_name="features")
    call = stub.ModelInfer.future(request, timeout=TIMEOUT)

    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in (call.details() or "")


def test_rows_that_are_answered_in_several_parts_keep_their_places(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    rows, length = 40, 4000
    histories = np.arange(rows, dtype=np.int64)[:, None].repeat(length, axis=1)
    reply = stub.ModelInfer(infer({"user_history": histories.tolist()}), timeout=TIMEOUT)
    histories[rows - 1, 7] = -1
    refused = stub.ModelInfer.future(infer({"user_history": histories.tolist()}), timeout=TIMEOUT)

    assert rankings(reply) == [list(answer_of(1, (item,))) for item in range(rows)]
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"user_history[7]: row {rows - 1}: -1 is not" in (refused.details() or "")


def test_a_row_that_fails_fails_its_call_by_name_and_nobody_else(
    channel: grpc.Channel, stub: oip_grpc.GRPCInferenceServiceStub
) -> None:
    native = api_grpc.RecommenderServiceStub(channel)
    bad = infer({"user_history": [[1], [-5], [2]]}, model_name="shop")
    beside = [native.Recommend.future(api.RecommendRequest(item_ids=[3]), timeout=TIMEOUT) for _ in range(8)]
    failing = [stub.ModelInfer.future(bad, timeout=TIMEOUT) for _ in range(8)]
    faulty = stub.ModelInfer.future(infer({"user_history": [[1], [UNTRIED]]}, model_name="nan"), timeout=TIMEOUT)

    for call in failing:
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "row 1: -5 is not from 0" in (call.details() or "")
    assert faulty.code() is grpc.StatusCode.INTERNAL
    for answered in beside:
        assert tuple(answered.result().item_ids) == answer_of(1, (3,))


def test_a_request_of_thousands_of_empty_tensors_is_refused_before_it_is_parsed(channel: grpc.Channel) -> None:
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer"
    )
    with pytest.raises(grpc.RpcError) as refused:
        method(b"\x2a\x00" * 100_000, timeout=TIMEOUT)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "may have 1000 fields" in (refused.value.details() or "")
