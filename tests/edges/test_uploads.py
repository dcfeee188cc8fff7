"""Which messages that are coming in end, on a clock of the test's own."""

from __future__ import annotations

import math

from recommender.edges.uploads import MESSAGE_SECONDS, Uploads
from recommender.errors import DeadlineError, QuotaError

MIB = 1 << 20
MOST = 4
"""How many messages of 64 MiB are held."""


def uploads(woken: list[None] | None = None) -> Uploads[int]:
    return Uploads(64 * MIB, lambda: None if woken is None else woken.append(None))


def reasons(held: Uploads[int], now: float) -> dict[int, type[Exception]]:
    return {call: type(reason) for call, reason in held.ended(now)}


def test_a_message_ends_at_its_deadline_or_after_the_longest_time() -> None:
    held = uploads()
    held.begin(1, 0.0, deadline=1.0)
    held.begin(2, 0.0, deadline=math.inf)

    assert reasons(held, 0.9) == {}
    assert reasons(held, 1.1) == {1: DeadlineError}
    assert reasons(held, MESSAGE_SECONDS + 0.1) == {2: DeadlineError}
    assert len(held) == 0


def test_of_too_many_slow_messages_the_oldest_end() -> None:
    held = uploads()
    for call in range(MOST + 2):
        held.begin(call, call / 1e3, math.inf)

    assert reasons(held, 0.1) == {}  # they are young
    assert reasons(held, 1.0) == {0: QuotaError, 1: QuotaError}
    assert reasons(held, 1.0) == {}


def test_of_too_many_slow_messages_on_a_connection_the_oldest_end() -> None:
    held: Uploads[tuple[str, int]] = Uploads(1, lambda: None, lambda call: call[0])
    for number in range(18):
        held.begin(("many", number), 0.0, math.inf)
    held.begin(("few", 0), 0.0, math.inf)

    assert [call for call, _ in held.ended(1.0)] == [("many", 0), ("many", 1)]
    assert held.ended(1.0) == []


def test_an_honest_message_among_slow_ones_is_let_in() -> None:
    held = uploads()
    for call in range(MOST):
        held.begin(call, 0.0, math.inf)
    held.begin(MOST, 5.0, math.inf)

    assert list(reasons(held, 5.01)) == [0]


def test_a_message_that_goes_on_is_as_old_as_its_beginning() -> None:
    held = uploads()
    held.begin(1, 0.0, 1.0)
    held.begin(1, 0.9, 1.9)

    assert list(reasons(held, 1.1)) == [1]


def test_the_first_message_wakes_and_the_others_do_not() -> None:
    woken: list[None] = []
    held = uploads(woken)
    held.begin(1, 0.0, 1.0)
    held.begin(2, 0.0, 1.0)
    held.end(1)
    held.end(1)
    held.end(2)
    held.begin(3, 0.0, 1.0)

    assert len(woken) == 2
