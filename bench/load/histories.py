"""Histories of benchmarks: drawn from the power laws that ETUDE fitted to real shops, or read from a file.

Kersbergen et al., ETUDE (ICDE 2024), fit two power laws to the sessions of a large shop: the items of a session,
`powerlaw(a=0.0700, loc=2, scale=277)`, and the clicks of an item, `powerlaw(a=0.0407, loc=1, scale=2335)`. Here each
item of a catalogue of any size draws its clicks from the second law, and items are drawn in proportion to them. So few
items are frequent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

import numpy as np

Histories: TypeAlias = list[list[int]]

SESSION_EXPONENT, SESSION_LEAST, SESSION_SCALE = 0.0700, 2, 277
CLICKS_EXPONENT, CLICKS_LEAST, CLICKS_SCALE = 0.0407, 1, 2335


def drawn(count: int, items: int, *, longest: int = 279, seed: int = 1) -> Histories:
    """Histories of a catalogue of `items`, cut to the most recent `longest`; equal seeds draw equal ones."""
    chance = np.random.default_rng(seed)
    clicks = CLICKS_LEAST + CLICKS_SCALE * chance.power(CLICKS_EXPONENT, items)
    up_to = np.cumsum(clicks)
    lengths = (SESSION_LEAST + SESSION_SCALE * chance.power(SESSION_EXPONENT, count)).astype(np.int64)
    ids = np.searchsorted(up_to, chance.random(int(lengths.sum())) * up_to[-1])
    ends = np.cumsum(lengths)[:-1]
    return [history[-longest:].tolist() for history in np.split(np.minimum(ids, items - 1), ends)]


def read(path: Path) -> Histories:
    """One history a line, oldest item first, ids apart by spaces or commas. Raises ValueError naming the line."""
    found: Histories = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = re.split(r"[,\s]+", line.strip())
        if not all(word.isdecimal() for word in words):
            raise ValueError(f"{path}, line {number}: a history is item ids apart by spaces or commas, not {line!r}")
        found.append([int(word) for word in words])
    if not found:
        raise ValueError(f"{path} holds no history: write one a line, item ids apart by spaces")
    return found
