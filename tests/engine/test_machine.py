"""What a process may use, read from cgroup files that the test writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recommender.engine.machine import available_cpus, available_memory, resident_memory

KIB, MIB = 1 << 10, 1 << 20


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


def affinity() -> int:
    return len(os.sched_getaffinity(0))


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")


@needs_affinity
def test_without_any_limit_the_cpus_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == affinity()
    everything = machine(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"})
    assert available_cpus(everything) == affinity()


@needs_affinity
def test_cpus_follow_the_affinity_of_the_process(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quota", "cpus"), [("100000", 1), ("150000", 1), ("50000", 1), ("1000", 1), ("200000", 2), ("6400000", None)]
)
def test_a_quota_of_cgroup_v2_is_rounded_down_to_whole_cpus(tmp_path: Path, quota: str, cpus: int | None) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": "0::/app", "sys/fs/cgroup/app/cpu.max": f"{quota} 100000"})
    assert available_cpus(root) == min(cpus or affinity(), affinity())


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_cgroup_v1_counts_too(tmp_path: Path, folder: str) -> None:
    files = {
        "proc/self/cgroup": f"3:memory:/\n2:{folder}:/docker/abc\n0::/",
        f"sys/fs/cgroup/{folder}/docker/abc/cpu.cfs_quota_us": "170000",
        f"sys/fs/cgroup/{folder}/docker/abc/cpu.cfs_period_us": "100000",
    }
    assert available_cpus(machine(tmp_path, files)) == 1


def test_no_quota_of_cgroup_v1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "2:cpu:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert available_cpus(machine(tmp_path, files)) == affinity()


def test_the_quota_of_a_group_above_holds_as_well(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/app",
        "sys/fs/cgroup/pod/cpu.max": "100000 100000",
        "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
    }
    assert available_cpus(machine(tmp_path, files)) == 1


def test_in_a_container_the_quota_stands_at_the_root_of_the_mount(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/host/path/of/the/container", "sys/fs/cgroup/cpu.max": "120000 100000"}
    assert available_cpus(machine(tmp_path, files)) == 1


def test_memory_is_what_the_kernel_says_where_no_group_has_a_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 4096 kB\nMemAvailable:    2048 kB",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.current": "100",
        "sys/fs/cgroup/memory.stat": "inactive_file 0",
    }
    assert available_memory(machine(tmp_path, files)) == 2048 * KIB


def test_a_memory_limit_of_cgroup_v2_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 9999999 kB",
        "proc/self/cgroup": "0::/app",
        "sys/fs/cgroup/app/memory.max": str(100 * MIB),
        "sys/fs/cgroup/app/memory.current": str(70 * MIB),
        "sys/fs/cgroup/app/memory.stat": f"anon 1\nactive_file 7\ninactive_file {30 * MIB}",
    }
    assert available_memory(machine(tmp_path, files)) == 60 * MIB


def test_a_memory_limit_of_cgroup_v1_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 9999999 kB",
        "proc/self/cgroup": "4:memory:/job",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(50 * MIB),
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(20 * MIB),
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 0",
    }
    assert available_memory(machine(tmp_path, files)) == 30 * MIB


def test_a_group_above_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 9999999 kB",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": "100",
        "sys/fs/cgroup/memory.current": "200",
        "sys/fs/cgroup/memory.stat": "inactive_file 0",
    }
    assert available_memory(machine(tmp_path, files)) == 0


def test_where_nobody_tells_memory_is_unknown(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    assert resident_memory(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system has no /proc")
def test_this_very_process_holds_some_memory_and_may_take_more() -> None:
    assert (resident_memory() or 0) > 10 * MIB
    assert (available_memory() or 0) > 10 * MIB
