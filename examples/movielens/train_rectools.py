"""Train RecTools' SASRec: train_rectools.py FOLDER VERSION. Runs in RecTools' own environment."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pandas as pd
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main(folder: Path, version: int) -> None:
    """Train on train.csv and write model-VERSION."""
    warnings.simplefilter("ignore")  # those of the libraries to their own authors
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(version)
    frame = pd.read_csv(folder / "train.csv", dtype=str)
    interactions = pd.DataFrame(
        {
            Columns.User: frame["user_id"],
            Columns.Item: frame["item_id"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(frame["timestamp"].astype(int), unit="s"),
        }
    )
    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, session_max_len=50, epochs=20, lr=0.002, batch_size=128, verbose=0
    )
    print("RecTools trains for 20 epochs: about a minute on two cores", flush=True)
    model.fit(Dataset.construct(interactions))
    model.save(folder / f"model-{version}")
    print(f"RecTools' SASRec in {folder / f'model-{version}'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
