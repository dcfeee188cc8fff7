"""A hand-over: a trained model from a library's script, as JSON, with its numbers as plain arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recommender.export.errors import ExportError
from recommender.importers.networks.numbers import Array
from recommender.importers.networks.sizes import Value

HANDOVER, ARRAYS, PROGRAM = "handover.json", "arrays.npz", "encoder.pt2"
_Number = Annotated[int, Field(ge=0)]


class Ranked(BaseModel):
    """The library's recommendations for a history, best first; all by number, from 0 on.

    `times` are those of the items and, last, of the request, in Unix seconds; empty if the model reads none.
    """

    model_config = ConfigDict(frozen=True)

    history: tuple[_Number, ...]
    user: _Number | None = None
    items: tuple[_Number, ...]
    times: tuple[_Number, ...] = ()

    @model_validator(mode="after")
    def _has_all_times(self) -> Self:
        if len(self.times) not in (0, len(self.history) + 1):
            raise ValueError(f"there are {len(self.times)} times, and {len(self.history)} items and a request")
        return self


class Handover(BaseModel):
    """A trained model as its library knows it.

    `form` names the network that takes the arrays; with "program" it is in a file, and the arrays are those of items.
    Items and users have numbers from 0 on, in the order of their keys; `users` is None if the model takes none.
    `data_sha256` is the digest of the library's own file of interactions. The rankings are `without_seen` if they leave
    out the items of their histories.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    library: str
    library_version: str
    network: str
    form: str
    sizes: Mapping[str, Value]
    parameters: Mapping[str, Value]
    items: Annotated[int, Field(ge=1)]
    item_keys: tuple[str, ...] | None = None
    users: Annotated[int, Field(ge=1)] | None = None
    user_keys: tuple[str, ...] | None = None
    rankings: tuple[Ranked, ...]
    without_seen: bool = False
    popular: tuple[_Number, ...] = ()
    data_sha256: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for keys, count, what in ((self.item_keys, self.items, "items"), (self.user_keys, self.users, "users")):
            if keys is not None and len(keys) != (count or 0):
                raise ValueError(f"there are {len(keys)} keys and {count or 0} {what}")
        told = [item for each in self.rankings for item in (*each.history, *each.items)]
        highest = max([*told, *self.popular], default=0)
        if highest >= self.items:
            raise ValueError(f"item {highest} is named, and there are {self.items}")
        return self


def read_handover(folder: Path) -> tuple[Handover, Mapping[str, Array]]:
    """Read a folder that a library's script wrote; raises ExportError if it is malformed or truncated."""
    try:
        told = Handover.model_validate_json((folder / HANDOVER).read_bytes())
        with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ExportError(
            f"{folder / HANDOVER}: {where}: {first['msg']}. Write it again by the script of --script."
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{folder} is no complete hand-over: {error}. Write it again by the script of --script."
        ) from error
    return told, arrays
