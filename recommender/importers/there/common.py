"""The end of a hand-over that is the library's: what was trained, as plain numbers and names."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any, Callable, NoReturn, Sequence

import numpy as np

FORMAT = 1
HISTORIES = 256
SHOWN = 20
"""Items that are ranked for each history: ten are compared, the others reveal ties."""
MOST_SIMILAR = 10_000
"""Items of a similarity of all with all: the file holds every pair, 400 MB for so many."""

PROGRAM = "program"
"""The form of a network that is handed over as a program of torch.export."""
OLDEST_TORCH = (2, 9)
"""The first whose programs hold no pickled objects."""

GAPS = (1, 30, 3_600, 86_400, 2_592_000)
"""Seconds between drawn items, at most; the first was taken at START."""
START = 1_600_000_000

Rank = Callable[[Sequence["Asked"]], Sequence[Sequence[int]]]
"""Requests to the library's recommendations for them, by number, from 0 on."""


class Asked:
    """A history of items and its user, by number, from 0 on.

    `times` are those of the items and, last, of the request, in Unix seconds.
    """

    def __init__(self, history: Sequence[int], user: int | None, times: Sequence[int]) -> None:
        self.history = history
        self.user = user
        self.times = times


class Trained:
    """A trained model.

    `form` says which network takes the `arrays`. Items and users are numbered from 0 in the order of their keys; with
    no keys a number is the key. `rank` is the library's own inference. `longest` is the most items it reads. `drawn`
    are real histories by number, if the library has its data; `popular` are items, best first; `data` is the file of
    interactions, if available. A model that takes users and `folds` ranks for new ones by their history. `without_seen`
    says that `rank` leaves out the items of the history, `timed` that it reads times. `program` is the encoder, from
    `exported`, if its form is PROGRAM.
    """

    def __init__(
        self,
        *,
        library: str,
        version: str,
        network: str,
        form: str,
        arrays: dict[str, Any],
        sizes: dict[str, Any],
        parameters: dict[str, Any],
        items: int,
        rank: Rank,
        item_keys: list[str] | None = None,
        users: int | None = None,
        user_keys: list[str] | None = None,
        longest: int | None = None,
        drawn: Sequence[Sequence[int]] = (),
        popular: Sequence[int] = (),
        folds: bool = True,
        data: Path | None = None,
        without_seen: bool = False,
        timed: bool = False,
        program: Any = None,
    ) -> None:
        self.told = {
            "format": FORMAT,
            "library": library,
            "library_version": version,
            "network": network,
            "form": form,
            "sizes": sizes,
            "parameters": plain(parameters),
            "items": items,
            "item_keys": item_keys,
            "users": users,
            "user_keys": user_keys,
            "popular": [int(item) for item in popular],
            "without_seen": without_seen,
            "data_sha256": None if data is None else hashlib.sha256(data.read_bytes()).hexdigest(),
        }
        self.arrays = arrays
        self.rank = rank
        self.items = items
        self.users = users
        self.item_numbers = {key: number for number, key in enumerate(item_keys or map(str, range(items)))}
        self.user_numbers = {key: number for number, key in enumerate(user_keys or map(str, range(users or 0)))}
        self.longest = longest
        self.drawn = drawn
        self.folds = folds
        self.timed = timed
        self.program = program


def refuse(sentence: str) -> NoReturn:
    """End with a sentence."""
    raise SystemExit(f"refused: {sentence}")


def refuse_large(items: int) -> None:
    """Refuse the similarity of too many items before it is copied."""
    if items > MOST_SIMILAR:
        refuse(
            f"the model holds the similarity of {items:,} items with each other, and the file would hold every pair; "
            f"at most {MOST_SIMILAR:,} items are taken. Train factors instead, or leave out items"
        )


def exported(encoder: Any, *example: Any) -> Any:
    """The encoder as a program of torch.export for any number of histories; ends with a sentence if torch cannot."""
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        refuse(
            f"torch {torch.__version__} writes programs as Python objects, and those are not read; this network needs "
            "torch 2.9 or newer in its environment"
        )
    batch = {0: torch.export.Dim("batch")}
    try:
        return torch.export.export(encoder, example, dynamic_shapes=tuple(batch for _ in example))
    except Exception as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        return refuse(f"torch.export cannot write the network as a program: {told[0].rstrip('.')}")


def keys_of(external: Any) -> list[str]:
    """External ids as keys, which are text."""
    keys = [str(each) for each in external]
    if len(set(keys)) < len(keys):
        refuse("two items have ids that are the same as text, such as 1 and '1'; keys must differ")
    return keys


def lines_of(path: str | None) -> list[str] | None:
    """The lines of a text file of keys."""
    return None if path is None else Path(path).read_text(encoding="utf-8").splitlines()


def plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters that JSON can hold as they are; others as text."""
    found = {}
    for name, value in parameters.items():
        number = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
        found[str(name)] = number if isinstance(number, (str, int, float, bool, type(None))) else str(number)
    return found


def _asked(trained: Trained, path: str | None) -> list[Asked]:
    """Histories to rank: those of the file that have a known item, else the library's, else drawn ones."""
    drawing = random.Random(1)  # noqa: S311 (histories guard no secret)
    found: list[tuple[list[int], int | None, list[int]]] = []
    if path is not None:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            numbers = [trained.item_numbers.get(key) for key in told["history"]]
            known = [at for at, number in enumerate(numbers) if number is not None]
            if known:
                user = trained.user_numbers.get(told.get("user") or "")
                times = [int(told["times"][at]) for at in known] if told.get("times") else []
                found.append(([trained.item_numbers[told["history"][at]] for at in known], user, times))
        if not found:
            refuse(
                "no history of the interactions has an item that the model knows; give the data that it was trained on"
            )
    found += [(list(each), None, []) for each in trained.drawn if len(each)]
    found = found[:HISTORIES]
    while len(found) < HISTORIES:
        length = drawing.choice([1, 2, 3, 5, 8, 13, 21, 50, trained.longest or 50])
        count = min(length, trained.longest or length)
        found.append(([drawing.randrange(trained.items) for _ in range(count)], None, []))
    asked = []
    for row, (history, user, times) in enumerate(found):
        number = user
        if trained.users is not None:
            drawn = drawing.randrange(trained.users) if user is None else user
            number = None if trained.folds and row % 2 else drawn
        kept = slice(-(trained.longest or len(history)), None)
        asked.append(Asked(history[kept], number, _times(times[kept], len(history[kept]), drawing)))
    return asked


def _times(times: Sequence[int], items: int, drawing: random.Random) -> list[int]:
    """Times of the items and of a request after them; they are drawn if the items have none."""
    drawn = list(times) or [START]
    while len(drawn) <= items:
        drawn.append(drawn[-1] + drawing.randrange(drawing.choice(GAPS)))
    return drawn


def main(load: Callable[[argparse.Namespace], Trained]) -> None:
    """Read the model, rank histories by the library, and write both to the folder."""
    parser = argparse.ArgumentParser(description="Hand a trained model over to `recommender import`.")
    parser.add_argument("source", help="the saved model")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument(
        "--histories", help="JSONL of histories to rank: {'user': key, 'history': [keys], 'times': [s]}"
    )
    parser.add_argument("--item-keys", help="text file of the items' keys, if the model has none")
    parser.add_argument("--user-keys", help="text file of the users' keys, if the model has none")
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        trained = load(arguments)
        asked = _asked(trained, arguments.histories)
        ranked = trained.rank(asked)
    rankings = []
    for each, items in zip(asked, ranked):
        told = {
            "history": [int(item) for item in each.history],
            "user": each.user,
            "items": [int(item) for item in items],
        }
        rankings.append({**told, "times": list(each.times)} if trained.timed else told)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **trained.arrays)
    if trained.program is not None:
        import torch

        torch.export.save(trained.program, folder / "encoder.pt2")
    handover = json.dumps({**trained.told, "rankings": rankings}, ensure_ascii=False)
    (folder / "handover.json").write_text(handover, encoding="utf-8")
