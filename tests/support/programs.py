"""Programs of this project's environment, found next to its interpreter and not on PATH."""

from __future__ import annotations

import asyncio
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path


def program(name: str) -> str:
    """The path of a program of the environment that runs the tests."""
    found = Path(sysconfig.get_path("scripts"), name)
    assert found.exists(), f"{name} is not installed: `just setup` installs it"
    return str(found)


async def run(
    *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, patience: float = 60
) -> tuple[int, str, str]:
    """Run a program to its end within `patience` seconds; returns its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), patience)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{command} did not end within {patience} s: {out.decode()}{err.decode()}") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
