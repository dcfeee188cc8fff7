"""Growth of memory and open files of long-lived processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

_HOUR = 3600.0
_WARM_UP = 6
"""One part in this many, at the beginning, is warm-up."""
_MORE_FILES = 32
"""Open files that a process may have more of at its end: connections come and go."""


@dataclass(slots=True)
class Growth:
    """Memory and open files of processes over time, by their names."""

    begun: float = field(default_factory=time.monotonic)
    seen: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    """By name: seconds since the beginning, MB of memory, open files."""

    def note(self, pids: Mapping[str, int]) -> None:
        """Note what these processes hold now."""
        for name, pid in pids.items():
            process = psutil.Process(pid)
            told = (time.monotonic() - self.begun, process.memory_info().rss / 1e6, process.num_fds())
            self.seen.setdefault(name, []).append(told)

    def lines(self) -> list[str]:
        """The result, a line of Markdown for each process."""
        lines = []
        for name, seen in self.seen.items():
            warm = seen[len(seen) // _WARM_UP :]
            slope = statistics.linear_regression(*zip(*((at, held) for at, held, _ in warm), strict=True)).slope * _HOUR
            (_, first, files), (_, last, more) = warm[0], warm[-1]
            lines.append(
                f"- memory of {name}: {first:.1f} MB after warm-up, {last:.1f} MB at the end, {slope:+.1f} MB/h; "
                f"open files {files} and {more}"
            )
        return lines

    def leaks(self) -> list[str]:
        """The processes that ended with many more files open than after warm-up."""
        firsts = {name: seen[len(seen) // _WARM_UP][2] for name, seen in self.seen.items()}
        return [
            f"{name} has {seen[-1][2]} files open, {firsts[name]} after warm-up"
            for name, seen in self.seen.items()
            if seen[-1][2] > firsts[name] + _MORE_FILES
        ]
