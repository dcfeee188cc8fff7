"""Train implicit's ALS: train_implicit.py FOLDER VERSION. Runs in implicit's own environment."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix


def main(folder: Path, version: int) -> None:
    """Train on train.csv and write model-VERSION.npz, items.txt and users.txt."""
    with (folder / "train.csv").open(encoding="utf-8") as file:
        rows = [(row["user_id"], row["item_id"]) for row in csv.DictReader(file)]
    users = {key: number for number, key in enumerate(dict.fromkeys(user for user, _ in rows))}
    items = {key: number for number, key in enumerate(dict.fromkeys(item for _, item in rows))}
    cells = [users[user] for user, _ in rows], [items[item] for _, item in rows]
    matrix = csr_matrix((np.ones(len(rows), np.float32), cells), shape=(len(users), len(items)))
    model = AlternatingLeastSquares(factors=64, regularization=0.05, alpha=10.0, random_state=version, num_threads=1)
    model.fit(matrix, show_progress=False)
    model.save(folder / f"model-{version}")
    for name, keys in (("items.txt", items), ("users.txt", users)):
        (folder / name).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    print(f"implicit's ALS in {folder / f'model-{version}.npz'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
