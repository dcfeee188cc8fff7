"""A candidate next to the live version: its share of the requests, how both compare, and when it is given up.

A canary answers a share of the requests. A stable hash of the routing key picks them, so a user stays on one side. A
shadow gets copies of a share of them, and its answers are discarded. Under load copies are shed first. Both are
compared with the live version over the same time. A candidate that fails more often or is slower than its bounds allow
is given up.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recommender.models.version import Version
from recommender.settings.models import CandidateMode

_WINDOW = 2000
"""How many of the last requests of each side are compared."""
_JUDGED_EVERY = 20
_NOISE_SECONDS = 0.002
"""A smaller difference of latencies is the machine's noise."""
_COPIES_IN_FLIGHT = 64
"""The most copies of requests that a shadow has to answer at a time."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits that a candidate must keep.

    `errors` is a share above the live version's. `latency` is a multiple of its 99th percentile, 0 for no bound.
    `least` is how many of the candidate's requests must have ended before it is judged.
    """

    errors: float
    latency: float
    least: int


@dataclass(slots=True)
class Side:
    """How the last requests of one version ended: the seconds of each, and whether it failed."""

    seen: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    requests: int = 0
    failed: int = 0

    def note(self, seconds: float, *, failed: bool) -> None:
        """Count a request that has ended."""
        self.seen.append((seconds, failed))
        self.requests += 1
        self.failed += failed

    @property
    def error_rate(self) -> float:
        """The share of the last requests that failed."""
        return sum(failed for _, failed in self.seen) / len(self.seen) if self.seen else 0.0

    def percentile(self, share: float) -> float:
        """The latency in seconds that this share of the answered requests kept to; 0 if none was answered."""
        answered = sorted(seconds for seconds, failed in self.seen if not failed)
        return answered[min(int(len(answered) * share), len(answered) - 1)] if answered else 0.0


def verdict(live: Side, candidate: Side, bounds: Bounds) -> str | None:
    """Why the candidate must go; None if it may stay."""
    if len(candidate.seen) < bounds.least:
        return None
    errors, allowed = candidate.error_rate, live.error_rate + bounds.errors
    if errors > allowed:
        return f"{errors:.1%} of its requests failed, and {allowed:.1%} are allowed beyond the live version"
    if bounds.latency and len(live.seen) >= bounds.least:
        slow, usual = candidate.percentile(0.99), live.percentile(0.99)
        if slow > bounds.latency * usual and slow - usual > _NOISE_SECONDS:
            return f"its 99th percentile is {slow * 1e3:.1f} ms, {slow / usual:.1f} times that of the live version"
    return None


def place_of(key: str, salt: str) -> float:
    """The place of a key between 0 and 1, which never changes; another `salt` gives another place."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """The counts of a candidate and of the live version; latencies are seconds.

    `mirrored` counts copies that were compared, `shed` copies that were dropped under load. `overlap` is the mean share
    of the items that both recommend for a mirrored request, None if nothing was mirrored.
    """

    candidate: str
    mode: CandidateMode
    share: float
    live_requests: int
    live_failed: int
    live_p99: float
    candidate_requests: int
    candidate_failed: int
    candidate_p99: float
    mirrored: int
    shed: int
    overlap: float | None


class Candidate:
    """A version on trial next to the live one. `give_up` is called once, with the reason, when it fails the trial."""

    def __init__(
        self, version: Version, *, mode: CandidateMode, share: float, bounds: Bounds, give_up: Callable[[str], None]
    ) -> None:
        self.version = version
        self.mode = mode
        self._share = share
        self._bounds = bounds
        self._give_up = give_up
        self._live, self._own = Side(), Side()
        self._mirroring: dict[asyncio.Task[None], int] = {}
        self._mirrored = self._shed = 0
        self._overlap = 0.0
        self._given_up = False

    def meets(self, key: str) -> bool:
        """Whether a request is in the candidate's share; an empty key leaves it to chance."""
        return place_of(key or secrets.token_hex(8), self.version.label) < self._share

    def note(self, version: Version, seconds: float, *, failed: bool) -> None:
        """Count a request that a version answered or failed at, and judge."""
        if version is not self.version:
            self._live.note(seconds, failed=failed)
            return
        self._own.note(seconds, failed=failed)
        if self._own.requests % _JUDGED_EVERY == 0 and not self._given_up:
            reason = verdict(self._live, self._own, self._bounds)
            if reason is not None:
                self.abandon(reason)

    def abandon(self, reason: str) -> None:
        """Give the candidate up, regardless of the counts."""
        if not self._given_up:
            self._given_up = True
            self._give_up(reason)

    def room(self, live: Version, copies: int) -> int:
        """How many of these copies may be sent now; the others are counted as shed.

        None are sent while the live version has a batch's worth waiting.
        """
        free = 0
        if live.batcher.waiting < live.batcher.max_batch_size:
            free = max(_COPIES_IN_FLIGHT - sum(self._mirroring.values()), 0)
        sent = min(copies, free)
        self._shed += copies - sent
        return sent

    def keep(self, mirroring: asyncio.Task[None], copies: int) -> None:
        """Own the task that has so many copies answered, until it ends."""
        self._mirroring[mirroring] = copies
        mirroring.add_done_callback(self._mirroring.pop)

    def compare(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        """Count how much the two answers to a mirrored request have in common."""
        self._mirrored += 1
        self._overlap += len(set(ours) & set(theirs)) / max(len(ours), len(theirs), 1)

    def close(self) -> None:
        """Cancel the copies in flight."""
        for mirroring in tuple(self._mirroring):
            mirroring.cancel()

    def statistics(self) -> CandidateReport:
        """A record of the counts so far; it does not change afterwards."""
        return CandidateReport(
            candidate=self.version.label,
            mode=self.mode,
            share=self._share,
            live_requests=self._live.requests,
            live_failed=self._live.failed,
            live_p99=self._live.percentile(0.99),
            candidate_requests=self._own.requests,
            candidate_failed=self._own.failed,
            candidate_p99=self._own.percentile(0.99),
            mirrored=self._mirrored,
            shed=self._shed,
            overlap=self._overlap / self._mirrored if self._mirrored else None,
        )
