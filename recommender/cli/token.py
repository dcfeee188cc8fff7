"""`recommender token`: make a bearer token, and keep it in a tokens file."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, get_args

import typer
from filelock import FileLock

from recommender.cli.lazy import fail
from recommender.errors import StartError
from recommender.security.access import Scope, digest_of, new_token, read_grants

_MODE = 0o600
_LOCK_SECONDS = 10.0


def token(
    name: Annotated[str, typer.Argument(help="Name of its user, for logs and metrics.")],
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it expires; by default it never does.")
    ] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(help="Put its digest into this file, which RECOMMENDER_TOKENS_FILE names.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it is good for, {' or '.join(get_args(Scope))}; several times for more. [recommend]"),
    ] = None,
) -> None:
    """Make a bearer token.

    The token goes to standard output, once. With --tokens-file its digest goes into that file, under NAME; the previous
    token of the same name stays valid. Without, its table goes to standard error.
    """
    made = new_token()
    digest = digest_of(made).hex()
    expires = None if days is None else f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    scopes = tuple(dict.fromkeys(scope or ()))
    if unknown := [each for each in scopes if each not in get_args(Scope)]:
        fail(f"{unknown[0]!r} is not a scope: {' or '.join(get_args(Scope))}", 2)
    try:
        json.dumps(name).encode()
        table = _table(name, digest, expires, scopes)
        if tokens_file is None:
            typer.echo(f"# For RECOMMENDER_TOKENS_FILE:\n{table}", err=True, nl=False)
        else:
            rotated = _keep(tokens_file, name, digest, expires, scopes)
            kept = "; the last one stays good until the next is made" if rotated else ""
            typer.echo(f"{tokens_file} has a new token for {name}{kept}", err=True)
    except UnicodeError:
        fail("the name must be UTF-8 text", 2)
    except StartError as error:
        fail(str(error).replace("RECOMMENDER_TOKENS_FILE", str(tokens_file)), 2)
    except OSError as error:
        fail(f"{error.filename or tokens_file} cannot be written: {error.strerror or error}", 2)
    typer.echo(made)


def _table(name: str, digest: str, expires: str | None, scopes: Sequence[str]) -> str:
    lines = [f"[{json.dumps(name, ensure_ascii=False)}]", f'sha256 = ["{digest}"]']
    lines += [] if expires is None else [f"expires = {expires}"]
    lines += [f"scopes = {json.dumps(scopes)}"] if scopes else []
    return "\n".join([*lines, ""])


def _keep(path: Path, name: str, digest: str, expires: str | None, scopes: Sequence[str]) -> bool:
    """Put a digest under a name; True if the name was there. Raises StartError, and OSError; then nothing changed.

    A name that is there keeps its scopes, which must be these if any are given.
    """
    path = path.resolve()  # to replace the file, not the link to it
    if not path.parent.is_dir():
        raise StartError(f"there is no folder {path.parent}")
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS, mode=_MODE):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        grants = read_grants([text.encode()])
        if name in grants:
            last = grants[name]
            if scopes and set(scopes) != set(last.scopes):
                raise StartError(f"{path} gives {name} the scopes {json.dumps(last.scopes)}: change them there")
            over = last.expires is not None and last.expires <= datetime.now(UTC)
            changed = _rotated(text, name, [digest, *(() if over else last.sha256[:1])], expires)
        else:
            changed = text + ("" if not text or text.endswith("\n") else "\n") + _table(name, digest, expires, scopes)
        found = read_grants([changed.encode()])
        others = {other: grant for other, grant in found.items() if other != name}
        if found[name].sha256[0] != digest or others != {key: grants[key] for key in grants if key != name}:
            raise StartError(f"{path} cannot be changed without harm to what else it says: put sha256 = {digest!r} in")
        _replace(path, changed)
    return name in grants


def _rotated(text: str, name: str, digests: list[str], expires: str | None) -> str:
    """The text with these digests in the table of that name, all else as it was."""
    lines = text.splitlines(keepends=True)
    headers = [place for place, line in enumerate(lines) if line.lstrip().startswith("[")]
    start = next((place for place in headers if _named(lines[place]) == name), None)
    if start is None:
        raise StartError(f"the table of {name} has no separate header such as [{json.dumps(name)}]: give it one")
    end = next((place for place in headers if place > start), len(lines))
    table = "".join(lines[start:end])
    listed = ", ".join(f'"{each}"' for each in digests)
    table = re.sub(r"^(\s*sha256\s*=\s*)\[[^]]*\]", rf"\g<1>[{listed}]", table, count=1, flags=re.MULTILINE)
    table = re.sub(r"^\s*expires\s*=[^#\n]*?(?=\s*(#.*)?$)", "", table, count=1, flags=re.MULTILINE)
    if expires is not None:
        table = re.sub(r"^(\s*sha256\s*=.*)$", rf"\1\nexpires = {expires}", table, count=1, flags=re.MULTILINE)
    return "".join((*lines[:start], table, *lines[end:]))


def _named(header: str) -> str | None:
    try:
        return next(iter(tomllib.loads(header)), None)
    except tomllib.TOMLDecodeError:
        return None


def _replace(path: Path, text: str) -> None:
    """Write the file in one step, for its owner only; an older one keeps its owner, its group and their rights."""
    handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            there = path.stat()
            if (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(written, there.st_uid, there.st_gid)
            Path(written).chmod(_MODE | (there.st_mode & 0o060))
        Path(written).replace(path)
    except BaseException:
        Path(written).unlink(missing_ok=True)
        raise
