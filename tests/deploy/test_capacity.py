"""The capacity page's tables are what the arithmetic gives for the figures that the page names."""

from __future__ import annotations

import subprocess
import sys

from tests.support.declared import manifest
from tests.support.paths import ROOT


def capacity(*options: str) -> str:
    return subprocess.run(
        [sys.executable, ROOT / "deploy" / "capacity.py", *options], capture_output=True, text=True, check=True
    ).stdout


def replicas(table: str, catalogue: str) -> list[int]:
    row = next(line for line in table.splitlines() if line.startswith(f"| {catalogue}"))
    return [int(cell.replace(",", "")) for cell in row.split("|")[4:-1]]


def test_the_page_has_the_tables_of_its_own_figures() -> None:
    assert capacity() in (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")


def test_ten_times_the_rate_takes_ten_times_the_replicas() -> None:
    _, ten, hundred, million = replicas(capacity(), "1,000,000")

    assert hundred in range(9 * ten, 10 * ten + 1)
    assert million in range(9 * hundred, 10 * hundred + 1)


def test_more_cpus_help_until_the_event_loop_is_full() -> None:
    assert replicas(capacity("--cpus", "4"), "1,000,000")[-1] < replicas(capacity(), "1,000,000")[-1]
    assert replicas(capacity("--cpus", "8"), "10,000") == replicas(capacity("--cpus", "4"), "10,000")


def test_two_replicas_are_the_least() -> None:
    assert replicas(capacity("--most-calls", "1000000", "--call-us", "30"), "10,000")[0] == 2


def test_the_autoscaler_s_calls_are_what_the_page_plans_for_one_replica() -> None:
    targets = [
        int(metric["pods"]["target"]["averageValue"])
        for metric in manifest("autoscaler")["spec"]["metrics"]
        if metric["pods"]["metric"]["name"] == "recommender_calls_per_second"
    ]
    row = next(line for line in capacity().splitlines() if line.startswith("| 10,000"))

    assert targets == [round(int(row.split("|")[3].replace(",", "")), -2)]
