"""Where and of what a figure was taken: what a report says of the machine, the programs and the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import psutil

from recommender.engine.machine import available_cpus

ROOT = Path(__file__).parents[1]
_PACKAGES = ("recommender", "grpcio", "numpy", "uvloop")


def machine() -> dict[str, str]:
    """The facts, by name, in an order for people; the load is what others did just before."""
    return {
        "processor": _processor(),
        "CPUs": f"{available_cpus():g} usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5, 15 minutes)",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        # By the module: the GPU build is another distribution, onnxruntime-gpu.
        "onnxruntime": onnxruntime.__version__,
        "revision": revision(),
        "command": shlex.join(("python", *sys.orig_argv[1:])),
        "taken": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def revision() -> str:
    """The commit that is measured, and whether files were changed since."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=, with changes that are not committed", "--abbrev=12"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not in a git repository"
    return told.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
