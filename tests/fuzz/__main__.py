"""Fuzz targets with atheris, from their corpora, each for that many seconds in a separate process.

`python -m tests.fuzz SECONDS [TARGET ...]`. An input that crashes a target is written into its corpus, where the tests
find it. One that reaches new code is kept in `reports/fuzz`, and the next run starts from it.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("reports/fuzz")
WARM_UP = 500
MOST_GROWTH = 100_000_000
PORT = "port"
NAMES = (*sorted(folder.name for folder in CORPUS.iterdir()), PORT)


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris  # noqa: PLC0415 (what it instruments must be imported after it)

    instrumented = ["recommender", "dotenv", "pydantic", "pydantic_settings", "protovalidate", "tomllib"]
    with atheris.instrument_imports(include=instrumented):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    options = [*limits, "-print_final_stats=1", f"-artifact_prefix={CORPUS / name}/"]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


async def send_to_port(seconds: int) -> None:
    """Send broken sessions to a server in a separate process; raises if it affects a caller, or takes more memory."""
    from tests.fuzz.port import fuzz_port  # noqa: PLC0415
    from tests.support.process import running  # noqa: PLC0415

    seed, end = random.SystemRandom().randrange(2**32), time.monotonic() + seconds
    async with running() as server:
        await fuzz_port(server.port, seed=seed, until=lambda count: count == WARM_UP)
        before = server.resident_bytes()
        seen = await fuzz_port(server.port, seed=seed + 1, until=lambda _: time.monotonic() > end)
        grown = server.resident_bytes() - before
        assert server.process.returncode is None
    print(f"seeds {seed} and {seed + 1}: {seen.total()} sessions, {dict(seen)}, memory {grown / 1e6:+.1f} MB")  # noqa: T201
    assert grown < MOST_GROWTH, "the server kept what strangers sent"


def main() -> int:
    """Fuzz the named targets, or all; returns 1 if one crashed."""
    if sys.argv[1] == "--one":
        if sys.argv[2] == PORT:
            asyncio.run(send_to_port(int(sys.argv[3])))
            return 0
        fuzz(sys.argv[2], int(sys.argv[3]))
    seconds, *names = sys.argv[1:]
    failed = []
    for name in names or NAMES:
        print(f"fuzzing {name} for {seconds} s", flush=True)  # noqa: T201 (a script)
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, seconds]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"crashed: {', '.join(failed)}; the inputs are in {CORPUS}" if failed else "nothing crashed")  # noqa: T201
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
