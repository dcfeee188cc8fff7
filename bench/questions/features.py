"""Cost of a user id and two features for a unary call: calls/s of one server with them, as a share of those without.

A network of 10,000 items after the reference one is exported, which takes users, a number and a string. h2load (Debian:
nghttp2-client) sends it a history of 20 items, alone and with all three, in interleaved rounds; a round's share is one
quotient. CPU is the server's, which depends less on what else the machine does. `just bench-features`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import get_args

import grpc
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.figures import kept, spread
from bench.questions.many import SERVICE, framed, histories, load
from bench.serving import Server, serving
from recommender.client import feature_value
from recommender.export import ExportOptions, export_model
from recommender.export.networks.network import ReferenceNetwork
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge

ITEMS, DIM, USERS = 10_000, 32, 100_000
COUNTRIES = [f"country-{number}" for number in range(200)]
LEAST = 0.9
"""The least share of calls/s."""
RECOMMEND = f"{SERVICE}/Recommend"


class Shop(nn.Module):
    """The mean of the history, and vectors for the user, the country and, times a number, the age."""

    known_users = USERS
    feature_inputs = {  # noqa: RUF012 (as a user writes it)
        "age": {"type": "float32", "minimum": 0, "maximum": 150, "default": 35},
        "country": {"type": "string", "tokens": COUNTRIES, "default": COUNTRIES[0]},
    }

    def __init__(self) -> None:
        super().__init__()
        self.reference = ReferenceNetwork(ITEMS, DIM, seed=0)
        self.users = nn.Embedding(USERS + 1, DIM)
        self.countries = nn.Embedding(len(COUNTRIES) + 1, DIM)
        self.ages = nn.Parameter(torch.rand(DIM))

    def forward(
        self, user_history: Tensor, history_length: Tensor, user: Tensor, age: Tensor, country: Tensor
    ) -> Tensor:
        """User vectors float32 [batch, dim]."""
        mean = self.reference(user_history, history_length)
        vectors: Tensor = mean + self.users(user) + self.countries(country) + age[:, None] * self.ages
        return vectors

    def item_embeddings(self) -> Tensor:
        """The reference network's."""
        return self.reference.item_embeddings()


def requests() -> dict[str, api.RecommendRequest]:
    """The request without and with a user and features."""
    (history,) = histories(1)
    features = {"age": feature_value(33.5), "country": feature_value("country-77")}
    return {
        "history": api.RecommendRequest(item_ids=history),
        "history, user and two features": api.RecommendRequest(item_ids=history, user_id=77_777, features=features),
    }


def check(port: int) -> None:
    """Both requests are answered, and differently: h2load sees HTTP statuses only."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = api_grpc.RecommenderServiceStub(channel)
        replies = [stub.Recommend(request, timeout=10) for request in requests().values()]
    assert replies[0].item_ids != replies[1].item_ids
    assert not any(reply.unknown_user or reply.ignored_inputs for reply in replies)


def measured(server: Server, rounds: int, seconds: float) -> tuple[list[float], ...]:
    """Calls/s without and with, then the server's CPU time for a call of each in µs."""
    bodies = {name: framed(request.SerializeToString()) for name, request in requests().items()}
    rates: dict[str, list[float]] = {name: [] for name in bodies}
    cpu: dict[str, list[float]] = {name: [] for name in bodies}
    first = min(load(server.port, RECOMMEND, body, 1, 2000) for body in bodies.values())
    calls = max(int(first * seconds), 100)
    for number in range(rounds):
        for name in bodies if number % 2 else reversed(bodies):
            before = server.cpu_seconds()
            rates[name].append(load(server.port, RECOMMEND, bodies[name], 1, calls))
            cpu[name].append((server.cpu_seconds() - before) / calls * 1e6)
    return (*rates.values(), *cpu.values())


def main() -> int:
    """Show the shares; 1 if a median is below its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", choices=get_args(Edge), action="append", help="by default both")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round of one request")
    options = parser.parse_args()
    table = Table("edge", "calls/s without", "with", "share, and whether it is kept", "µs CPU without", "with")
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "10_model.onnx")
        export_model(ExportOptions(network="bench.questions.features:Shop", output=path))
        for edge in options.edge or get_args(Edge):
            with serving(settings={"RECOMMENDER_EDGE": edge, "RECOMMENDER_MODEL": str(path)}) as server:
                check(server.port)
                without, beside, cpu_without, cpu_beside = measured(server, options.rounds, options.seconds)
            quotients = [ours / theirs for ours, theirs in zip(beside, without, strict=True)]
            missed |= statistics.median(quotients) < LEAST
            rates, cpu = (spread(without, ",.0f"), spread(beside, ",.0f")), (spread(cpu_without), spread(cpu_beside))
            table.add_row(edge, *rates, kept(quotients, LEAST), *cpu)
    Console(width=200).print(table)
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
