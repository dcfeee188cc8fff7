"""What each command imports: its own module and what it needs, no more."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from recommender.cli.main import COMMANDS

HEAVY = {"asyncio", "grpc", "google.protobuf", "numpy", "onnxruntime", "rich", "structlog", "torch", "uvloop"}


def imported_by(*words: str) -> set[str]:
    """The heavy packages that a command has imported when it ends."""
    program = (
        "import atexit, json, sys\n"
        f"heavy = {sorted(HEAVY)}\n"
        "atexit.register(lambda: print('\\n' + json.dumps([name for name in heavy if name in sys.modules])))\n"
        "from recommender.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--version",), ("srve",)])
def test_no_command_no_heavy_import(words: tuple[str, ...]) -> None:
    assert not imported_by(*words)


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (("client", "--help"), {"numpy", "onnxruntime", "uvloop"}),
        (("health", "--help"), HEAVY - {"asyncio", "grpc"}),
        (("health",), HEAVY - {"asyncio", "grpc"}),
        (("config",), {"grpc", "numpy", "onnxruntime"}),
        (("export", "--help"), {"torch", "grpc"}),
        (("serve", "--help"), {"numpy", "onnxruntime", "torch"}),
    ],
)
def test_a_command_imports_nothing_of_the_others(words: tuple[str, ...], spared: set[str]) -> None:
    assert not imported_by(*words) & spared


def test_help_takes_less_than_three_tenths_of_a_second_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "recommender", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("name", [name for name, lazy in COMMANDS.items() if lazy.summary])
def test_the_help_of_a_command_begins_as_its_line_in_the_list(name: str) -> None:
    words = {"COLUMNS": "200", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "recommender", name, "-h"], capture_output=True, text=True, check=True, env=words
    )
    assert COMMANDS[name].summary.rstrip(".") in " ".join(done.stdout.split())


PROBE = """
import atexit, resource, sys
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = ("typer", "pydantic", "google.protobuf")
    print(used.ru_utime + used.ru_stime, [name for name in heavy if name in sys.modules])
atexit.register(tell)
from recommender.__main__ import main
main()
"""


@pytest.mark.parametrize("words", [(), ("--name", "liveness", "--timeout", "1")])
def test_a_probe_imports_neither_parser_nor_settings_and_takes_a_fifth_of_a_second_of_cpu(
    words: tuple[str, ...],
) -> None:
    environment = {**os.environ, "RECOMMENDER_HOST": "::", "RECOMMENDER_HEALTH_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "health", *words], env=environment, capture_output=True, text=True, check=False
    )
    seconds, _, imported = done.stdout.partition(" ")

    assert "[::1]:1: UNAVAILABLE: no server listens there" in done.stderr
    assert done.returncode == 1
    assert imported.strip() == "[]"
    assert float(seconds) < 0.3  # 0.15 on a machine that does nothing else
