"""The manifest of an output folder: what the job is, and which parts of it are done.

A part is done once the manifest that names it is written. What else lies in the folder is not counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from recommender.bulk.answers import Counts
from recommender.bulk.errors import BulkError
from recommender.bulk.files.output import Folder

MANIFEST = "_manifest.json"
_FORMAT = 1
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the output: rows from `first_row` of the input on."""

    file: str
    first_row: int
    rows: int
    bytes: int
    fallbacks: int
    errors: dict[str, int]


@dataclass(slots=True)
class Manifest:
    """A job's facts, as JSON values, and its finished parts, in order."""

    job: Mapping[str, object]
    parts: list[Part] = field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> int:
        """Rows of the input that are done."""
        return sum(part.rows for part in self.parts)

    @property
    def counts(self) -> Counts:
        """Sum of the parts' counts."""
        total = Counts()
        for part in self.parts:
            total.add(Counts(part.rows, part.fallbacks, Counter(part.errors)))
        return total

    def save(self, folder: Folder) -> None:
        """Write it. Raises BulkError."""
        facts = {
            "format": _FORMAT,
            "complete": self.complete,
            "job": self.job,
            "parts": [asdict(part) for part in self.parts],
        }
        folder.write(MANIFEST, json.dumps(facts, indent=1).encode())


def resume(folder: Folder, job: Mapping[str, object]) -> Manifest:
    """Return the manifest of a folder of this job, or a new one for an empty folder.

    Raises BulkError if the folder has another job, with the difference, or files of unknown origin.
    """
    files, content = folder.files(), folder.read(MANIFEST)
    if content is None:
        if files:
            raise BulkError(
                f"{folder.name} is not empty and has no {MANIFEST}: name an empty folder ({_some(sorted(files))})"
            )
        return Manifest(job)
    try:
        facts = json.loads(content)
        found = Manifest(facts["job"], [Part(**part) for part in facts["parts"]], facts["complete"])
        known = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BulkError(f"{folder.name}/{MANIFEST} cannot be read: {error}; delete the folder to start over") from error
    if known != _FORMAT:
        raise BulkError(f"{folder.name}/{MANIFEST} is of format {known} and this program writes {_FORMAT}")
    told = list(differences(found.job, json.loads(json.dumps(job))))
    if told:
        raise BulkError(
            f"{folder.name} holds another job: {'; '.join(told[:_MOST_TOLD])}. Continue with its own options, or "
            "use an empty folder"
        )
    for part in found.parts:
        if files.get(part.file) != part.bytes:
            raise BulkError(f"{folder.name}/{part.file} was altered or deleted: delete the folder to start over")
    return found


def differences(old: object, new: object, name: str = "") -> Iterator[str]:
    """Describe each difference between two JSON values, by its name."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{name}[{place}]")
    elif isinstance(old, list) and isinstance(new, list):
        yield f"{name} was {len(old)} long and is now {len(new)}"
    elif old != new:
        yield f"{name} was {json.dumps(old)} and is now {json.dumps(new)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_TOLD]) + (" …" if len(names) > _MOST_TOLD else "")
