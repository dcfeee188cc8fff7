"""Train RecTools' SASRec and BERT4Rec briefly: rectools_models.py FOLDER, which has train.csv."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

folder = Path(sys.argv[1])
seed_everything(1)
frame = pd.read_csv(folder / "train.csv", dtype=str)
frame.columns = pd.Index([Columns.User, Columns.Item, Columns.Datetime])
frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime].astype(int), unit="s")
frame[Columns.Weight] = 1.0
dataset = Dataset.construct(frame)
for kind, name in ((SASRecModel, "sasrec"), (BERT4RecModel, "bert4rec")):
    model = kind(n_factors=32, n_blocks=2, n_heads=2, session_max_len=50, epochs=2, lr=0.003, batch_size=128, verbose=0)
    model.fit(dataset)
    model.save(folder / f"{name}.model")
    model.fit_trainer.save_checkpoint(folder / f"{name}.ckpt")
