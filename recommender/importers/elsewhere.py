"""The library's side: our script run by the library's own interpreter, and the folder that it writes."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from recommender.export.errors import ExportError

LIBRARIES = ("rectools", "recbole", "implicit")
"""Libraries whose models are read in their own environment."""
_COMMON = "recommender.importers.there.common"
_REFUSED = "refused: "
_SHOWN = 400


def script_of(library: str) -> str:
    """The script that hands a model of this library over: one file, which needs the library and NumPy only."""
    folder = files("recommender.importers") / "there"
    common, own = ((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("common", library))
    lines = own.splitlines()
    for node in reversed(ast.parse(own).body):
        if isinstance(node, ast.ImportFrom) and node.module in ("__future__", _COMMON):
            del lines[node.lineno - 1 : node.end_lineno]
    return common + "\n\n" + "\n".join(lines) + "\n"


def hand_over(
    library: str, python: Path, source: Path, folder: Path, options: Sequence[str], *, timeout: float
) -> None:
    """Run the script in the library's environment; it writes the hand-over into `folder`.

    Raises ExportError if the interpreter, the library or the model is not what it has to be, or after `timeout` s.
    """
    script = folder.with_suffix(".py")
    script.write_text(script_of(library), encoding="utf-8")
    try:
        ended = subprocess.run(  # noqa: S603 (the interpreter that the user names)
            [python, "-u", script, source, folder, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise ExportError(
            f"{python} cannot be run: {error.strerror or error}; give the interpreter of {library}'s environment."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{library} has not handed {source} over within {timeout:g} s; nothing was written."
        ) from error
    if ended.returncode:
        raise ExportError(_told(library, python, ended.returncode, ended.stderr))


def _told(library: str, python: Path, code: int, stderr: str) -> str:
    """The sentence for a script that failed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    refused = next((line.removeprefix(_REFUSED) for line in reversed(lines) if line.startswith(_REFUSED)), None)
    if refused is not None:
        return f"{library}: {refused}. Nothing was written."
    last = lines[-1][:_SHOWN] if lines else f"exit code {code}"
    if last.startswith("ModuleNotFoundError"):
        return f"{python} cannot import what {library} needs: {last}. Give the interpreter of its environment."
    if _while_importing(lines):
        return (
            f"{library} cannot be imported by {python}: {last}. The packages of this environment do not fit each "
            "other; make a new one with the versions that the model was trained with. Nothing was written."
        )
    return f"{library} failed in {python}: {last}. Nothing was written."


def _while_importing(lines: Sequence[str]) -> bool:
    """Whether the innermost frame of a traceback is the body of a module that another one imports."""
    frames = [line for line in lines if line.startswith("File ")]
    return len(frames) > 1 and frames[-1].endswith(", in <module>")
