"""Write MovieLens-100k as interactions and titles: prepare.py PACKAGES FOLDER.

PACKAGES has the package recbole, whose wheel contains the data. GroupLens' terms apply: research only, and no
redistribution.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path


def main(packages: Path, folder: Path) -> None:
    """Write all.csv, train.csv without each user's last film, and titles.csv."""
    source = packages / "recbole" / "dataset_example" / "ml-100k"
    with (source / "ml-100k.inter").open(encoding="utf-8") as file:
        rows = [(user, item, int(float(time))) for user, item, _, time in list(csv.reader(file, delimiter="\t"))[1:]]
    rows.sort(key=lambda row: row[2])
    last = {user: place for place, (user, _, _) in enumerate(rows)}
    _write(folder / "all.csv", rows)
    _write(folder / "train.csv", [row for place, row in enumerate(rows) if last[row[0]] != place])
    with (source / "ml-100k.item").open(encoding="utf-8") as file:
        films = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    with (folder / "titles.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *((film[0], f"{film[1]} ({film[2]})") for film in films)])
    print(f"{len(rows):,} ratings of {len(films):,} films by {len(last):,} users in {folder}")


def _write(path: Path, rows: list[tuple[str, str, int]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
