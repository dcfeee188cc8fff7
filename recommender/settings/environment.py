"""Reading settings: `.env` files and the environment, under one prefix, and what is refused in them."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from dotenv.parser import parse_stream
from pydantic import ValidationError

from recommender.errors import SettingsError

PREFIX = "RECOMMENDER_"
ENV_FILES = (".env.dev", ".env")
"""Read from the working directory, the later over the earlier, the environment over both."""

_SERVICE_LINKS = (
    "Kubernetes sets such variables for a Service named `recommender`: set `enableServiceLinks: false` in the pod"
)


def read(folder: Path, known: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read `.env.dev`, then `.env` in a folder, then the environment; the later wins, empty values are left out.

    Returns the values by field name, and by key the words that say where each stands. Raises SettingsError on a
    RECOMMENDER_ key whose field is not `known`.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in ENV_FILES:
        for key, value in _env_file(folder / name).items():
            found[key] = (value or "", f" in {name}")
    found.update({key: (value, " in the environment") for key, value in os.environ.items()})
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for key, (value, origin) in found.items():
        if not key.upper().startswith(PREFIX):
            continue
        field = key.upper().removeprefix(PREFIX).lower()
        if field not in known:
            raise SettingsError(_unknown(key, value, origin, known))
        origins[key.upper()] = origin
        if value.strip():
            values[field] = value.strip()
    return values, origins


def key_of(field: str) -> str:
    """The key of a field in the environment."""
    return PREFIX + field.upper()


def text_of(value: object) -> str:
    """A value as it stands in the environment; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def faults(error: ValidationError, origins: Mapping[str, str]) -> str:
    """Say each fault by its key, its value, its origin and what would do.

    Raises ValueError if a fault is in no group: the caller named a field that does not exist.
    """
    sentences = []
    for fault in error.errors(include_url=False):
        if len(fault["loc"]) == 1:
            raise ValueError(f"no setting has the name {fault['loc'][0]!r}") from error
        key, value = key_of(str(fault["loc"][1])), fault["input"]
        sentence = f"{key}={value!r}{origins.get(key, '')} cannot be used: {_lower(fault['msg'])}."
        if str(value).startswith(("tcp://", "udp://")):
            sentence += f" {_SERVICE_LINKS}."
        sentences.append(sentence)
    return " ".join(sentences)


def _env_file(path: Path) -> dict[str, str | None]:
    """The keys of a `.env` file, none if there is no such file.

    Raises SettingsError on a line that is neither empty, comment nor KEY=value: the library would leave it out.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}; it must be UTF-8 text, as .env.template is, and readable for this user"
        ) from error
    found: dict[str, str | None] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise SettingsError(
                f"{path}, line {binding.original.line}, is not KEY=value; mend it, or begin it with a #"
            )
        if binding.key is not None:
            found[binding.key] = binding.value
    return found


def _unknown(key: str, value: str, origin: str, known: Collection[str]) -> str:
    keys = [key_of(name) for name in known]
    near = difflib.get_close_matches(key.upper(), keys, n=1, cutoff=0.0)[0]
    message = f"{key}={value!r}{origin} is not a setting; the nearest is {near}. `recommender config` lists them all."
    if value.startswith(("tcp://", "udp://")) or "_SERVICE_" in key.upper():
        message += f" {_SERVICE_LINKS}."
    return message


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
