"""Cost of the Open Inference Protocol compared with native calls: one history a call, and 64 rows a call.

One server of each edge; h2load (Debian: nghttp2-client) asks by both protocols in interleaved rounds. A round's share
is one quotient: ModelInfer's histories a second by those of the native call with as many rows. Beside them stands the
server's CPU a history, for a machine that is not quiet. Histories are the same, as raw contents here and as `item_ids`
there; replies hold ids and scores. `just bench-oip`
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from typing import get_args

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.figures import kept, spread
from bench.questions.many import ROWS, framed, histories, load
from bench.questions.many import SERVICE as NATIVE
from bench.serving import Server, serving
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge

INFERENCE = "inference.GRPCInferenceService"
LEAST = {1: 0.85, ROWS: 0.7}
"""The least shares, by the rows of a call."""


def infer(rows: int) -> oip.ModelInferRequest:
    """The first histories as one tensor."""
    drawn = np.array(histories(rows), np.int64)
    request = oip.ModelInferRequest(model_name="reference", raw_input_contents=[drawn.tobytes()])
    request.inputs.add(name="user_history", datatype="INT64", shape=drawn.shape)
    return request


def calls(rows: int) -> dict[str, bytes]:
    """The bodies of a native call and of ModelInfer with so many rows, by their paths."""
    requests = [api.RecommendRequest(item_ids=history) for history in histories(rows)]
    if rows == 1:
        native = {f"{NATIVE}/Recommend": requests[0].SerializeToString()}
    else:
        native = {f"{NATIVE}/BatchRecommend": api.BatchRecommendRequest(requests=requests).SerializeToString()}
    sent = native | {f"{INFERENCE}/ModelInfer": infer(rows).SerializeToString()}
    return {path: framed(message) for path, message in sent.items()}


def check(port: int) -> None:
    """Both protocols give the same rankings: h2load sees HTTP statuses only."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        requests = [api.RecommendRequest(item_ids=history) for history in histories(ROWS)]
        batch = api.BatchRecommendRequest(requests=requests)
        results = api_grpc.RecommenderServiceStub(channel).BatchRecommend(batch, timeout=10).results
        reply = oip_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer(ROWS), timeout=10)
    ids = np.frombuffer(reply.raw_output_contents[0], np.int64).reshape(tuple(reply.outputs[0].shape))
    assert ids.tolist() == [list(result.response.item_ids) for result in results]


@dataclass
class Seen:
    """Rounds of one kind of call."""

    rates: list[float] = field(default_factory=list)
    """Histories a second."""
    cpu: list[float] = field(default_factory=list)
    """Of the server, in µs a history."""


def measure(server: Server, rows: int, rounds: int, seconds: float) -> tuple[Seen, Seen]:
    """The native call and ModelInfer, in turn."""
    bodies = calls(rows)
    seen = {path: Seen() for path in bodies}
    first = {path: load(server.port, path, body, rows, 2000 if rows == 1 else 64) for path, body in bodies.items()}
    for number in range(rounds):
        for path in bodies if number % 2 else reversed(bodies):
            count = max(int(first[path] / rows * seconds), 8)
            before = server.cpu_seconds()
            seen[path].rates.append(load(server.port, path, bodies[path], rows, count))
            seen[path].cpu.append((server.cpu_seconds() - before) / (count * rows) * 1e6)
    native, inference = seen.values()
    return native, inference


def main() -> int:
    """Show the shares; 1 if a median is below its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", choices=get_args(Edge), action="append", help="by default both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round of one protocol")
    options = parser.parse_args()
    table = Table(
        "edge",
        "rows a call",
        "native: histories/s, CPU of one",
        "ModelInfer: the same",
        "share, and whether it is kept",
    )
    missed = False
    for edge in options.edge or get_args(Edge):
        with serving(settings={"RECOMMENDER_EDGE": edge}) as server:
            check(server.port)
            for rows, least in LEAST.items():
                native, inference = measure(server, rows, options.rounds, options.seconds)
                quotients = [ours / theirs for ours, theirs in zip(inference.rates, native.rates, strict=True)]
                missed |= statistics.median(quotients) < least
                table.add_row(
                    edge,
                    str(rows),
                    *(f"{spread(seen.rates, ',.0f')}\n{spread(seen.cpu, '.1f')} µs" for seen in (native, inference)),
                    kept(quotients, least),
                )
    Console(width=140).print(table)
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
