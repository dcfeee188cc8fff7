"""A candidate beside the live version: who meets it, how the two compare, and when it must go.

A canary answers a share of the requests, the same users' always: a stable hash of the routing key decides. A shadow
is sent copies of a share of them, and nobody gets its answers; under load copies are the first to be left out. Both
are compared with the live version over the same time, and a candidate that fails or dawdles more than its bounds allow
goes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recommender.models.version import Version
from recommender.settings.models import CandidateMode

_WINDOW = 2000
"""Requests of each side that are compared: the last ones."""
_JUDGED_EVERY = 20
_NOISE_SECONDS = 0.002
"""A difference of latencies below this is the machine's."""
_MIRRORED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a candidate may do before it goes.

    `errors` is a share above the live version's, `latency` a multiple of its 99th percentile, 0 for no bound, and
    `least` how many of its requests must have ended before it is judged.
    """

    errors: float
    latency: float
    least: int


@dataclass(slots=True)
class Side:
    """How the last requests of one version ended: seconds each, and whether it failed."""

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
        """The latency that this share of the last requests that did not fail kept to; 0 if there are none."""
        answered = sorted(seconds for seconds, failed in self.seen if not failed)
        return answered[min(int(len(answered) * share), len(answered) - 1)] if answered else 0.0


def verdict(live: Side, candidate: Side, bounds: Bounds) -> str | None:
    """Why the candidate must go, or None if it may stay."""
    if len(candidate.seen) < bounds.least:
        return None
    errors, allowed = candidate.error_rate, live.error_rate + bounds.errors
    if errors > allowed:
        return f"{errors:.1%} of its requests failed, and {allowed:.1%} are allowed beside the live version"
    if bounds.latency and len(live.seen) >= bounds.least:
        slow, usual = candidate.percentile(0.99), live.percentile(0.99)
        if slow > bounds.latency * usual and slow - usual > _NOISE_SECONDS:
            return f"its 99th percentile is {slow * 1e3:.1f} ms, {slow / usual:.1f} times that of the live version"
    return None


def place_of(key: str, salt: str) -> float:
    """Where a key stands between 0 and 1, the same for ever; another `salt` deals anew."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """How a candidate does, as of now; latencies are seconds.

    `overlap` is the mean share of a mirrored request's items that both recommend, None where nothing was mirrored.
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
    """A version on trial beside the live one; `give_up` is called once, with the reason, when it must go."""

    def __init__(
        self, served: Version, *, mode: CandidateMode, share: float, bounds: Bounds, give_up: Callable[[str], None]
    ) -> None:
        self.served = served
        self.mode = mode
        self._share = share
        self._bounds = bounds
        self._give_up = give_up
        self._live, self._own = Side(), Side()
        self._copies: set[asyncio.Task[None]] = set()
        self._mirrored = self._shed = 0
        self._overlap = 0.0
        self._given_up = False

    def meets(self, key: str) -> bool:
        """Whether a request with this key is among the candidate's share."""
        return place_of(key, self.served.label) < self._share

    def note(self, served: Version, seconds: float, *, failed: bool) -> None:
        """Count a request that a version has ended, and judge."""
        if served is not self.served:
            self._live.note(seconds, failed=failed)
            return
        self._own.note(seconds, failed=failed)
        if self._own.requests % _JUDGED_EVERY == 0 and not self._given_up:
            reason = verdict(self._live, self._own, self._bounds)
            if reason is not None:
                self.abandon(reason)

    def abandon(self, reason: str) -> None:
        """Give it up, whatever was counted."""
        if not self._given_up:
            self._given_up = True
            self._give_up(reason)

    def has_room(self, live: Version) -> bool:
        """Whether another copy may be sent: not while the live version has a batch's worth waiting."""
        if len(self._copies) < _MIRRORED_AT_ONCE and live.batcher.waiting < live.batcher.max_batch_size:
            return True
        self._shed += 1
        return False

    def keep(self, copy: asyncio.Task[None]) -> None:
        """Own the task of a copy until it ends."""
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)

    def compare(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        """Count what a mirrored request's two answers have in common."""
        self._mirrored += 1
        self._overlap += len(set(ours) & set(theirs)) / max(len(ours), len(theirs), 1)

    def close(self) -> None:
        """End the copies that are under way."""
        for copy in tuple(self._copies):
            copy.cancel()

    def statistics(self) -> CandidateReport:
        """How it does; the record does not change afterwards."""
        return CandidateReport(
            candidate=self.served.label,
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
