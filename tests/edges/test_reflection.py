"""The service through reflection: with the real grpcurl, the real buf, and a client of an older proto."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.facts import FACTS
from tests.support.programs import program, run
from tests.support.serving import AnyServer

pytestmark = pytest.mark.both_edges

METHOD = "recommend_api.v1.RecommenderService/Recommend"


async def grpcurl(server: AnyServer, *words: str) -> str:
    *options, last = words
    code, out, err = await run(program("grpcurl"), "-plaintext", *options, f"localhost:{server.port}", *last.split())
    assert code == 0, err
    return out


async def test_grpcurl_lists_the_services(server: AnyServer) -> None:
    assert (await grpcurl(server, "list")).split() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "recommend_api.v1.RecommenderService",
    ]


@pytest.mark.parametrize(
    ("symbol", "comment"),
    [
        ("recommend_api.v1.RecommenderService", "// Ranks the catalogue for one history"),
        ("recommend_api.v1.RecommendRequest", "// The history: ids of the items that the user has seen, oldest first."),
        ("recommend_api.v1.RecommendResponse", "// Ids of the recommended items, best first."),
        ("inference.GRPCInferenceService", "// Ranks the catalogue for each row of the inputs."),
    ],
)
async def test_grpcurl_describes_with_the_comments_of_the_proto(server: AnyServer, symbol: str, comment: str) -> None:
    assert comment in await grpcurl(server, f"describe {symbol}")


@pytest.mark.parametrize("symbol", ["grpc.reflection.v1.ServerReflection", "grpc.health.v1.Health"])
async def test_grpcurl_describes_the_other_services_too(server: AnyServer, symbol: str) -> None:
    assert f"{symbol} is a service" in await grpcurl(server, f"describe {symbol}")


@pytest.mark.parametrize(("history", "expected"), FACTS.items())
async def test_grpcurl_gets_the_known_answers(server: AnyServer, history: tuple[int, ...], expected: list[int]) -> None:
    out = await grpcurl(server, "-d", json.dumps({"item_ids": history}), METHOD)

    assert json.loads(out)["itemIds"] == expected


async def test_grpcurl_shows_which_field_was_wrong(server: AnyServer) -> None:
    code, _, err = await run(
        program("grpcurl"), "-plaintext", "-d", '{"item_ids": [1, -2]}', f"localhost:{server.port}", METHOD
    )

    assert code != 0
    assert "InvalidArgument" in err
    assert '"field":"item_ids[1]"' in err.replace(" ", "")


async def test_a_client_that_speaks_reflection_v1_gets_the_known_answer(server: AnyServer) -> None:
    code, out, err = await run(
        program("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", "grpc-v1",
        "--data", '{"item_ids": [0]}', f"http://localhost:{server.port}/{METHOD}",
    )  # fmt: skip

    assert code == 0, err
    assert json.loads(out)["itemIds"] == FACTS[0,]


OLD_PROTO = """
syntax = "proto3";
package recommend_api.v1;
service RecommenderService { rpc Recommend(RecommendRequest) returns (RecommendResponse); }
message RecommendRequest { repeated int32 item_ids = 1; }
message RecommendResponse { repeated int32 item_ids = 1; }
"""
OLD_CLIENT = """
import sys, grpc, old_pb2, old_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = old_pb2_grpc.RecommenderServiceStub(channel)
    for line in sys.stdin:
        reply = stub.Recommend(old_pb2.RecommendRequest(item_ids=map(int, line.split())), timeout=30)
        print(*reply.item_ids)
"""


async def test_a_client_of_the_first_proto_gets_the_same_ids(server: AnyServer, tmp_path: Path) -> None:
    (tmp_path / "old.proto").write_text(OLD_PROTO, encoding="utf-8")
    (tmp_path / "client.py").write_text(OLD_CLIENT, encoding="utf-8")
    generated = await run(
        sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--grpc_python_out=.", "old.proto",
        cwd=tmp_path,
    )  # fmt: skip
    assert generated[0] == 0, generated[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "client.py", f"127.0.0.1:{server.port}",
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    lines = "".join(f"{' '.join(map(str, history))}\n" for history in FACTS)

    out, _ = await asyncio.wait_for(process.communicate(lines.encode()), 60)

    assert [list(map(int, line.split())) for line in out.decode().splitlines()] == list(FACTS.values())
