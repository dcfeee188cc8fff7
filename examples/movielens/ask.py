"""Ask for films by their titles: ask.py FOLDER TITLE … [--target HOST:PORT]."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from recommender.client import SyncClient


def main() -> None:
    """Print what a server recommends after these films."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("titles", nargs="+", help="titles, or how they begin, the film seen last at the end")
    parser.add_argument("--target", default="localhost:50051")
    given = parser.parse_args()
    with (given.folder / "titles.csv").open(encoding="utf-8") as file:
        titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}
    seen = [_find(titles, wanted) for wanted in given.titles]
    print("After", ", ".join(titles[key] for key in seen))
    with SyncClient(given.target) as client:
        answer = client.recommend(item_keys=seen, limit=5, exclude_history=True, timeout=30)
    for place, key in enumerate(answer.item_keys, 1):
        print(f"{place}. {titles[key]}")
    print(f"by {answer.model_version}")


def _find(titles: dict[str, str], wanted: str) -> str:
    """The key of the first film whose title begins with these words."""
    for key, title in titles.items():
        if title.lower().startswith(wanted.lower()):
            return key
    raise SystemExit(f"no film begins with {wanted!r}")


if __name__ == "__main__":
    main()
