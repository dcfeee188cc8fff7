"""What the reference model answers, in order: shared by every test that asks it."""

from __future__ import annotations

FACTS: dict[tuple[int, ...], list[int]] = {
    (1, 2, 3, 4): [5510, 1021, 9640, 1682, 2544, 3281, 874, 8599, 3572, 2766],
    (0,): [3281, 5510, 9714, 6790, 2354, 6067, 4473, 831, 8727, 3470],
    (9999, 999, 99): [5510, 1682, 1021, 9640, 3426, 3281, 4982, 8274, 8599, 5884],
}
