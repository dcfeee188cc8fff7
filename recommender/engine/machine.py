"""CPUs and memory available to this process, as its affinity and its cgroups limit them.

Both generations of cgroups are read, from the process's own group up to the root, since every limit on the way holds.
In a container the own group is often at the root of the mount; both places are tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_TELLING_BYTES = 1 << 25
"""Constants below this disappear in a session's own memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a model takes: its constants, and the growth of the process while it loaded.

    `loaded` is None on systems that do not report it.
    """

    constants: int
    loaded: int | None

    @property
    def copies(self) -> float | None:
        """Copies of the constants in memory; None if they are too small to measure.

        ONNX Runtime keeps the constant operand of a product twice: as it was, and packed for its kernel.
        """
        return None if self.loaded is None or self.constants < _TELLING_BYTES else self.loaded / self.constants


def available_cpus(root: Path = _ROOT) -> int:
    """How many whole CPUs this process may use: its affinity, or its cgroups' quota where that is less.

    A quota's fraction is rounded down, to 1 at least: a thread more than the quota carries is paid back by
    the kernel with a stall in every period, and the fraction is what the event loop lives on.
    `root` is where /proc and /sys stand.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for group in _groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = _text(group / "cpu.max").split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            limit = int(_text(group / "cpu.cfs_quota_us"))
            if limit > 0:
                quotas.append(limit / int(_text(group / "cpu.cfs_period_us")))
    return max(int(min([cpus, *quotas])), 1)


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that this process can still take without swapping or being killed; None if unknown.

    The kernel's estimate for the machine, or what its cgroups leave if that is less. Cached files count as free: the
    kernel releases them. `root` is the parent of /proc and /sys.
    """
    left = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = _text(root / "proc/meminfo").splitlines()
        left.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    for group in _groups(root, "memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                used = int(_text(group / usage)) - _counter(group / "memory.stat", cached)
                left.append(max(int(_text(group / limit)) - used, 0))
    return min(left, default=None)


def resident_memory(root: Path = _ROOT) -> int | None:
    """Bytes of physical memory that this process holds now; None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        return int(_text(root / "proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def memory_growth(before: int | None) -> int | None:
    """Bytes that this process holds more than `before`; None if unknown."""
    now = resident_memory()
    return None if before is None or now is None else max(now - before, 0)


def release_memory() -> None:
    """Give what is free in the heaps of all threads back to the system; a no-op without glibc.

    Blocks for milliseconds. Without it a server would grow with each version that it replaces: large blocks come from
    a thread's heap, which shrinks only from its end.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit it through a controller, of either generation."""
    mount = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in _text(root / "proc/self/cgroup").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            tops = [mount / controllers, mount / controller] if controllers else [mount, mount / "unified"]
            for top in dict.fromkeys(tops):
                group = Path(own)
                for folder in (group, *group.parents):
                    yield top / folder.relative_to("/")


def _counter(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii")
