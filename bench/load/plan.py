"""A load generator's plan and its outcome of each request: the two files between it and `just bench`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.load import histories

Method: TypeAlias = Literal["unary", "batch", "stream"]

DISTINCT = 20_000
"""Histories drawn; the load starts over when all were sent."""
LOST = -1
"""The status of a request that had no answer when the run ended."""
GOOD, LEAVING, HURRIED, SLOW = range(4)
"""Kinds of callers: a usual one, one that cancels, one with a short deadline, one that reads
nothing."""


@dataclass(frozen=True)
class Phase:
    """A part of a run. Open loop: requests/s from `rate` to `to`; closed loop: `in_flight` at any time."""

    seconds: float
    rate: float = 0.0
    to: float = 0.0
    in_flight: int = 0

    @property
    def name(self) -> str:
        """For tables."""
        if self.in_flight:
            return f"{self.in_flight:,} in flight"
        return f"{self.rate:,.0f}/s" if self.rate == self.to else f"{self.rate:,.0f} → {self.to:,.0f}/s"


@dataclass(frozen=True)
class Plan:
    """A run. Rates and numbers in flight count requests.

    A unary call or a message of a stream is one; so is a batch call, with `rows` histories.
    Shares of the callers may misbehave: `leaving` cancel within `leave_ms` of sending, `hurried` give only `hurry_ms`;
    `slow` more connections send `slow_calls` each at the start and read no reply.
    """

    target: str
    phases: tuple[Phase, ...]
    method: Method = "unary"
    rows: int = 64
    connections: int = 4
    streams: int = 8
    timeout: float = 5.0
    arrivals: Literal["even", "poisson"] = "even"
    token: str = ""
    items: int = 10_000
    longest: int = 279
    file: str = ""
    seed: int = 1
    leaving: float = 0.0
    leave_ms: float = 5.0
    hurried: float = 0.0
    hurry_ms: float = 5.0
    slow: int = 0
    slow_calls: int = 50

    @property
    def open_loop(self) -> bool:
        """Whether arrivals do not wait for answers."""
        return not self.phases[0].in_flight

    @property
    def seconds(self) -> float:
        """How long it lasts, without the wait for the last answers."""
        return sum(phase.seconds for phase in self.phases)

    def histories(self) -> histories.Histories:
        """Histories of the requests, in order."""
        if self.file:
            return histories.read(Path(self.file))
        return histories.drawn(DISTINCT, self.items, longest=self.longest, seed=self.seed)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """What `write` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "phases": tuple(Phase(**phase) for phase in told["phases"])})


@dataclass(frozen=True)
class Outcomes:
    """Every request of a run, in the order of sending; times in seconds from its start."""

    intended: npt.NDArray[np.float64]
    sent: npt.NDArray[np.float64]
    done: npt.NDArray[np.float64]
    """When it ended; NaN where it never did."""
    status: npt.NDArray[np.int64]
    """Of gRPC, or LOST; a batch call that was OK has the status of the first history that was refused in it."""
    kind: npt.NDArray[np.int64]
    rows: int = 1
    """Histories in a request."""
    row_errors: int = 0
    """Histories refused within batch calls."""
    cpu_seconds: float = 0.0
    """CPU time of the generator itself."""
    began: float = field(default=0.0)
    """The monotonic clock at the start."""

    def write(self, path: Path) -> None:
        """As a file of NumPy."""
        np.savez(path, **dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        """What `write` wrote."""
        with np.load(path) as told:
            arrays = {name: told[name] for name in ("intended", "sent", "done", "status", "kind")}
            return cls(
                **arrays,
                rows=int(told["rows"]),
                row_errors=int(told["row_errors"]),
                cpu_seconds=float(told["cpu_seconds"]),
                began=float(told["began"]),
            )
