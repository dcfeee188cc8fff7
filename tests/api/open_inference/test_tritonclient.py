"""NVIDIA's client from PyPI. It needs protobuf 6, so it runs in a separate environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.settings.network import Edge
from tests.support.documents import blocks
from tests.support.facts import FACTS
from tests.support.paths import ROOT
from tests.support.peers import told_by
from tests.support.serving import AnyServer, Shared

pytestmark = pytest.mark.peers

HERE = Path(__file__).parent
PACKAGES = ("tritonclient[grpc]==2.73.0",)
ANSWERS = list(FACTS.values())


@pytest.fixture(scope="module")
def port(edge: Edge, request: pytest.FixtureRequest) -> int:
    shared: Shared = request.getfixturevalue("shared")
    server: AnyServer = request.getfixturevalue("behind_envoy") if edge == "envoy" else shared()
    return server.port


@pytest.mark.both_edges
def test_every_call_of_tritonclient_is_answered(port: int) -> None:
    told: dict[str, Any] = told_by(HERE / "triton_calls.py", str(port), packages=PACKAGES)
    sync, asynchronous = told["sync"], told["asyncio"]

    assert sync["live"] == asynchronous["live"] == [True, True, True]
    assert sync["unknown model is ready"] is False
    assert sync["server"]["name"] == "recommender"
    assert sync["model"]["name"] == sync["config"]["name"] == asynchronous["metadata"] == asynchronous["config"]
    assert {each["name"] for each in sync["model"]["inputs"]} == {each["name"] for each in sync["config"]["input"]}
    assert (
        sync["index"] == asynchronous["index"] == {"models": [{"name": "reference", "version": "1", "state": "READY"}]}
    )
    assert sync["ids"] == ANSWERS
    assert (sync["scores"], sync["id"]) == ([3, 10], "mine")
    assert int(sync["statistics"]["model_stats"][0]["inference_count"]) >= 6
    assert asynchronous["statistics"] == "reference"
    assert sync["failures"] == {
        "unknown model": "StatusCode.NOT_FOUND",
        "unknown output": "StatusCode.INVALID_ARGUMENT",
        "load": "StatusCode.UNIMPLEMENTED",
        "unload": "StatusCode.UNIMPLEMENTED",
        "late": "StatusCode.DEADLINE_EXCEEDED",
    }
    assert told["callback"] == asynchronous["ids"] == [ANSWERS] * 8
    failed = told["stream"].pop(2)
    assert "no model 'none' is served" in failed
    assert told["stream"] == [[str(number), ANSWERS] for number in (0, 1, 3, 4, 5, 6, 7)]
    assert asynchronous["stream"] == [ANSWERS] * 4


def test_our_messages_are_tritons_by_name_number_and_type() -> None:
    theirs: dict[str, dict[str, Any]] = told_by(HERE / "triton_messages.py", packages=PACKAGES)
    ours = descriptor_pb2.FileDescriptorProto()
    oip.DESCRIPTOR.CopyToProto(ours)

    def check(message: descriptor_pb2.DescriptorProto, within: str) -> int:
        name = f"{within}.{message.name}"
        for field in message.field:
            told = [field.number, field.label, field.type, field.type_name, field.HasField("oneof_index")]
            assert told == theirs["messages"][name][field.name], f"{name}.{field.name}"
        return len(message.field) + sum(check(each, name) for each in message.nested_type)

    assert sum(check(message, f".{ours.package}") for message in ours.message_type) > 100
    for enum in ours.enum_type:
        assert {value.name: value.number for value in enum.value} == theirs["enums"][enum.name]
    (service,) = ours.service
    for method in service.method:
        assert theirs["methods"][f"{ours.package}.{service.name}/{method.name}"] == [
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        ]
    # What carries requests and replies is there whole.
    for whole in ("ModelInferRequest", "ModelInferResponse", "InferParameter", "InferTensorContents"):
        (found,) = [message for message in ours.message_type if message.name == whole]
        assert {field.name for field in found.field} == theirs["messages"][f".{ours.package}.{whole}"].keys()


def test_the_example_of_the_page_prints_what_the_page_says(port: int, tmp_path: Path) -> None:
    (example,) = [block for block in blocks(ROOT / "docs/open-inference-protocol.md") if "file:ask.py" in block.words]
    script = tmp_path / "ask.py"
    script.write_text(example.text.replace("50051", str(port)), encoding="utf-8")
    (said,) = re.findall(r"print\(.*\)  # (.*)", example.text)

    assert str(told_by(script, packages=PACKAGES)) == said
