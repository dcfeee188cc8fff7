"""Whether the time of a refusal tells how much of a guessed token is right: `python -m bench.questions.tokens`.

Among ten tokens one digest differs from that of the guess in its last byte only, or in its first. If look-ups gave up
at the first wrong byte, the former would take longer. Each round has tokens of its own, as where they lie in memory
makes a difference too. The differences of the rounds are held to Student's t: beyond 4.5 the two are told apart, as in
dudect (Reparaz et al. 2017). Python's `==` of longer values shows that a difference would be seen.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog
from rich.console import Console
from rich.table import Table

from recommender.errors import UnauthenticatedError
from recommender.security.access import Access, Grant, digest_of, new_token

OTHERS = 9
LONGER = 640
LEAK = 4.5
"""The t beyond which times differ."""


def altered(digest: bytes, place: int) -> bytes:
    """A digest with one byte changed."""
    changed = bytearray(digest)
    changed[place] ^= 0xFF
    return bytes(changed)


def access_with(digest: bytes, others: Sequence[bytes]) -> Access:
    """Tokens of these digests, one in the middle of the others."""
    middle = len(others) // 2
    digests = (*others[:middle], digest, *others[middle:])
    access = Access()
    access.replace({f"name-{place}": Grant(sha256=(each.hex(),)) for place, each in enumerate(digests)})
    return access


def refusing(access: Access, guess: str) -> Callable[[], None]:
    """A call with this token, which is refused."""
    authorization = f"Bearer {guess}"

    def call() -> None:
        try:
            access.enter(authorization)
        except UnauthenticatedError:
            return
        raise AssertionError("it was let in")

    return call


def medians(first: Callable[[], object], second: Callable[[], object], count: int) -> tuple[float, float]:
    """The median times of two calls in nanoseconds, each made `count` times in random order."""
    order = [first, second] * count
    random.shuffle(order)
    times: dict[Callable[[], object], list[int]] = {first: [], second: []}
    for call in order:
        began = time.perf_counter_ns()
        call()
        times[call].append(time.perf_counter_ns() - began)
    return float(np.median(times[first])), float(np.median(times[second]))


def pairs() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """For each kind of comparison a call where all bytes but one are right, and one where the first is wrong."""
    guess = new_token()
    digest = digest_of(guess)
    others = [digest_of(new_token()) for _ in range(OTHERS)]
    near, far = (access_with(altered(digest, place), others) for place in (-1, 0))
    long = digest * LONGER
    long_near, long_far = altered(long, -1), altered(long, 0)
    return {
        "Access.enter": (refusing(near, guess), refusing(far, guess)),
        "== of 20 kB": (lambda: long == long_near, lambda: long == long_far),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--count", type=int, default=2_000, help="refusals of each kind in a round")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))  # as a server logs
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for name, calls in pairs().items():
            found.setdefault(name, []).append(medians(*calls, options.count))
    table = Table("refusal by", "all bytes but one right, ns", "the first wrong, ns", "t", "told apart")
    told = dict[str, bool]()
    for name, rounds in found.items():
        near, far = np.array(rounds).T
        difference = near - far
        t = difference.mean() / (difference.std(ddof=1) / math.sqrt(options.rounds))
        told[name] = abs(t) > LEAK
        table.add_row(name, f"{near.mean():,.0f}", f"{far.mean():,.0f}", f"{t:+.1f}", "yes" if told[name] else "no")
    Console(width=110).print(table)
    return int(told["Access.enter"])


if __name__ == "__main__":
    sys.exit(main())
