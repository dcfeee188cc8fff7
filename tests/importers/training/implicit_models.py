"""Train implicit's ALS, BPR and BM25 briefly: implicit_models.py FOLDER, which has train.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender
from scipy.sparse import csr_matrix

folder = Path(sys.argv[1])
with (folder / "train.csv").open(encoding="utf-8") as file:
    rows = [(row["user_id"], row["item_id"]) for row in csv.DictReader(file)]
users = {key: number for number, key in enumerate(dict.fromkeys(user for user, _ in rows))}
items = {key: number for number, key in enumerate(dict.fromkeys(item for _, item in rows))}
cells = [users[user] for user, _ in rows], [items[item] for _, item in rows]
matrix = csr_matrix((np.ones(len(rows), np.float32), cells), shape=(len(users), len(items)))
for name, keys in (("items.txt", items), ("users.txt", users)):
    (folder / name).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
for name, model in {
    "als": AlternatingLeastSquares(factors=32, regularization=0.05, alpha=10.0, random_state=1, num_threads=1),
    "bpr": BayesianPersonalizedRanking(factors=31, random_state=1, num_threads=1, iterations=50),
    "bm25": BM25Recommender(K=50, num_threads=1),
}.items():
    model.fit(matrix, show_progress=False)
    model.save(folder / f"{name}.npz")
