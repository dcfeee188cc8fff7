"""Train RecTools' SASRec, BERT4Rec, LiGR, HSTU and EASE briefly: rectools_models.py FOLDER [NAME …].

FOLDER has train.csv. One thread, since the tensors are small and more would wait for each other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, EASEModel, HSTUModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

torch.set_num_threads(1)
folder = Path(sys.argv[1])
seed_everything(1)
frame = pd.read_csv(folder / "train.csv", dtype=str)
frame.columns = pd.Index([Columns.User, Columns.Item, Columns.Datetime])
frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime].astype(int), unit="s")
frame[Columns.Weight] = 1.0
dataset = Dataset.construct(frame)
keys = "".join(f"{key}\n" for key in dataset.item_id_map.external_ids)
(folder / "items.txt").write_text(keys, encoding="utf-8")
sizes = {"n_factors": 32, "n_blocks": 2, "n_heads": 2, "session_max_len": 50}
kinds = {
    "sasrec": (SASRecModel, {"epochs": 2}),
    "bert4rec": (BERT4RecModel, {"epochs": 2}),
    "ligr": (SASRecModel, {"epochs": 1, "transformer_layers_type": LiGRLayers}),
    "hstu": (HSTUModel, {"epochs": 1}),
    "hstu-without-times": (HSTUModel, {"epochs": 1, "relative_time_attention": False}),
    "bert4rec-unmasked": (BERT4RecModel, {"epochs": 1, "use_key_padding_mask": False}),
}
for name in sys.argv[2:] or [*kinds, "ease"]:
    if name == "ease":
        model = EASEModel()
        model.fit(dataset)
    else:
        kind, more = kinds[name]
        model = kind(**sizes, **more, lr=0.003, batch_size=128, verbose=0)
        model.fit(dataset)
        model.fit_trainer.save_checkpoint(folder / f"{name}.ckpt")
    model.save(folder / f"{name}.model")
