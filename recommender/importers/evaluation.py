"""How good a model file is: the last item of each user by the items before it, offline and through a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from recommender.client import Client, Refusal, Request
from recommender.export.check import ModelFile
from recommender.export.errors import ExportError
from recommender.export.networks.inputs import padded
from recommender.importers.interactions import Held, Interactions
from recommender.importers.networks.hstu import REQUEST_TIME
from recommender.models.artifact import Artifact, open_artifact
from recommender.models.card import Card
from recommender.models.vocabulary import Vocabulary
from recommender.server.server import Server
from recommender.settings.settings import Settings

K = 10
"""Recommendations of which the metrics speak."""
EQUAL = 1e-6
"""How far metrics offline and through the wire may lie apart."""
_ROWS = 64
_MOST_ITEMS = 4096
_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over users: Recall@10, NDCG@10 and MRR of the one item that is wanted; `coverage` is of the catalogue."""

    recall: float
    ndcg: float
    mrr: float
    coverage: float

    @classmethod
    def of(cls, answers: Sequence[Sequence[str]], wanted: Sequence[str], items: int) -> Metrics:
        """Measure the answers, of at most ten keys each, best first."""
        places = [answer.index(item) if item in answer else None for answer, item in zip(answers, wanted, strict=True)]
        found = [place for place in places if place is not None]
        count = max(len(answers), 1)
        return cls(
            recall=len(found) / count,
            ndcg=sum(1 / math.log2(place + 2) for place in found) / count,
            mrr=sum(1 / (place + 1) for place in found) / count,
            coverage=len({item for answer in answers for item in answer}) / items,
        )

    def differs(self, other: Metrics) -> bool:
        """Whether one of the numbers is another."""
        return any(abs(one - another) > EQUAL for one, another in zip(astuple(self), astuple(other), strict=True))

    def __str__(self) -> str:
        return (
            f"Recall@{K} {self.recall:.6f}, NDCG@{K} {self.ndcg:.6f}, MRR@{K} {self.mrr:.6f}, "
            f"coverage {self.coverage:.6f}"
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One file's metrics, and how many users they are of.

    `unknown` users have no item that the model knows before their last one. `tied` ones have scores in their best ten
    that lie within the card's tolerance of each other: their order says nothing. Neither is among the `users`.
    """

    offline: Metrics
    wire: Metrics
    users: int
    tied: int
    unknown: int

    def lines(self) -> list[str]:
        """Lines to print."""
        share = self.tied / max(self.users + self.tied, 1)
        counted = f"{self.users:,} users, of each the last item by those before, which are not recommended again."
        left = f"{self.tied:,} with a tie ({share:.2%}), {self.unknown:,} without a known item."
        return [
            f"Offline: {self.offline}",
            f"Through the server: {self.wire}",
            f"Of {counted} Left out: {left}",
        ]


async def evaluate(path: Path, data: Interactions, settings: Settings) -> Evaluation:
    """Rank for each user by ONNX Runtime and through a server on a free port of this machine.

    The server has the device and the threads of these settings, and no others. Raises ExportError if no user can be
    ranked for, or the two differ by more than 1e-6; StartError if the server cannot start.
    """
    artifact = open_artifact(path)
    if artifact.card is None:
        raise ExportError(f"{path} has no card; write one by `recommender models card`.")
    card, names = artifact.card, _Names.of(artifact, artifact.card)
    if names.takes_times:
        data.need_times()
    held = [each for each in data.held_out() if any(names.item(key) is not None for key in each.history)]
    offline, ties = _offline(ModelFile(path), card, names, held)
    kept = [row for row, tied in enumerate(ties) if not tied]
    if not kept:
        raise ExportError("No user of these interactions can be ranked for: none has a known item and no tie.")
    wire = await _wire(names, held, _private(artifact.path, settings))
    wanted = [held[row].wanted for row in kept]
    told = Evaluation(
        offline=Metrics.of([offline[row] for row in kept], wanted, card.items),
        wire=Metrics.of([wire[row] for row in kept], wanted, card.items),
        users=len(kept),
        tied=len(held) - len(kept),
        unknown=len(data.held_out()) - len(held),
    )
    if told.offline.differs(told.wire):
        raise ExportError("; ".join(["The server's answers differ from the file's", *told.lines()]))
    return told


@dataclass(frozen=True, slots=True)
class _Names:
    """Keys of items and users to numbers and back; without a vocabulary the key is the number as text."""

    items: int
    keys: Vocabulary | None
    users: Vocabulary | None
    first_user: int
    takes_users: bool
    takes_times: bool
    takes_request_time: bool

    @classmethod
    def of(cls, artifact: Artifact, card: Card) -> _Names:
        users = card.users
        return cls(
            items=card.items,
            keys=None if artifact.vocabulary is None else Vocabulary.open(artifact.vocabulary, card.items),
            users=None
            if artifact.user_vocabulary is None or users is None
            else Vocabulary.open(artifact.user_vocabulary, users.count, "user"),
            first_user=0 if users is None else users.first,
            takes_users=users is not None,
            takes_times=card.history_times is not None,
            takes_request_time=any(feature.name == REQUEST_TIME for feature in card.features),
        )

    def item(self, key: str) -> int | None:
        if self.keys is not None:
            return self.keys.ids([key])[0]
        return int(key) if key.isdecimal() and int(key) < self.items else None

    def known(self, held: Held) -> list[tuple[int, int]]:
        """The places and numbers of the items before the last that the model knows."""
        read = _read(held)
        items = zip(range(len(held.history) - len(read), len(held.history)), map(self.item, read), strict=True)
        return [(place, item) for place, item in items if item is not None]

    def key(self, item: int) -> str:
        return str(item) if self.keys is None else self.keys.keys([item])[0]

    def user(self, key: str) -> int:
        number = None if self.users is None else self.users.ids([key])[0]
        return 0 if number is None else number + self.first_user


def _offline(model: ModelFile, card: Card, names: _Names, held: Sequence[Held]) -> tuple[list[list[str]], list[bool]]:
    """The best ten of each user, and whether two of the best eleven tie."""
    answers: list[list[str]] = []
    ties: list[bool] = []
    for start in range(0, len(held), _ROWS):
        rows = held[start : start + _ROWS]
        known = [[item for _, item in names.known(each)] for each in rows]
        excluded = [(row, item) for row, history in enumerate(known) for item in sorted(set(history))]
        cut = [history[-(card.longest_history or len(history)) :] for history in known]
        beside = {}
        if names.takes_users:
            beside["user"] = np.array([names.user(each.user) for each in rows], np.int64)
        if names.takes_times:
            times = [[1000 * each.times[at] for at, _ in names.known(each)] for each in rows]
            beside["history_times"] = padded([own[-len(kept) :] for own, kept in zip(times, cut, strict=True)])[0]
        if names.takes_request_time:
            beside[REQUEST_TIME] = np.array([1000 * each.times[-1] for each in rows], np.int64)
        got = model.rank(cut, min(K + 1, card.max_k), excluded, beside=beside)
        for ids, scores in zip(got.ids, got.scores, strict=True):
            real = ids >= 0
            answers.append([names.key(item) for item in ids[real][:K].tolist()])
            ties.append(bool((-np.diff(scores[real]) <= card.score_tolerance).any()))
    return answers, ties


def _private(path: Path, settings: Settings) -> Settings:
    """Settings of a private server for this file, without the tokens, TLS, limits and candidate of production."""
    engine = settings.engine
    return Settings(
        model=str(path),
        port=0,
        num_recommendations=settings.models.num_recommendations,
        model_cache_dir=settings.models.model_cache_dir,
        device=engine.device,
        cuda_device_id=engine.cuda_device_id,
        cuda_memory_limit_mb=engine.cuda_memory_limit_mb,
        threads=engine.threads,
    )


async def _wire(names: _Names, held: Sequence[Held], settings: Settings) -> list[list[str]]:
    server = Server(settings)
    await server.start()
    try:
        async with Client(f"127.0.0.1:{server.port}") as client:
            answers: list[list[str]] = []
            for start in range(0, len(held), _ROWS):
                asked = [_request(names, each) for each in held[start : start + _ROWS]]
                for answer in await client.recommend_many(asked, timeout=_TIMEOUT):
                    if isinstance(answer, Refusal):
                        raise ExportError(f"The server refuses a user of the interactions: {answer.message}")
                    answers.append(list(answer.item_keys) or [str(item) for item in answer.item_ids])
            return answers
    finally:
        await server.close()


def _request(names: _Names, held: Held) -> Request:
    request = Request(limit=K, exclude_history=True)
    known = names.known(held)
    if names.keys is None:
        request.item_ids.extend(item for _, item in known)
    else:
        request.item_keys.extend(_read(held))
    if names.takes_times:
        places = range(-len(_read(held)) - 1, -1) if names.keys is not None else [place for place, _ in known]
        request.history_times.extend(1000 * held.times[place] for place in places)
    if names.takes_request_time:
        request.features[REQUEST_TIME].int64_value = 1000 * held.times[-1]
    if names.takes_users and names.users is not None:
        request.user_key = held.user
    return request


def _read(held: Held) -> Sequence[str]:
    """As many items as a request may name."""
    return held.history[-_MOST_ITEMS:]
