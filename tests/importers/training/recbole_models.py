"""Train RecBole's SASRec, GRU4Rec and BERT4Rec for an epoch: recbole_models.py FOLDER; the data is its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

os.chdir(sys.argv[1])  # it writes logs where it is
sys.argv = sys.argv[:1]  # it reads options of its own
for name in ("SASRec", "GRU4Rec", "BERT4Rec"):
    sizes = {"hidden_size": 32, "embedding_size": 32, "inner_size": 64, "n_layers": 2, "n_heads": 2}
    training = {"epochs": 1, "train_neg_sample_args": None, "loss_type": "CE", "train_batch_size": 2048}
    shown = {"show_progress": False, "use_gpu": False, "checkpoint_dir": "saved", "MAX_ITEM_LIST_LENGTH": 20}
    config = Config(model=name, dataset="ml-100k", config_dict={**sizes, **training, **shown})
    init_seed(1, reproducibility=True)
    parts = data_preparation(config, create_dataset(config))
    model = get_model(name)(config, parts[0].dataset)
    get_trainer(config["MODEL_TYPE"], name)(config, model).fit(parts[0], None, saved=True, show_progress=False)
    saved = max(Path("saved").glob(f"{name}-*.pth"), key=lambda path: path.stat().st_mtime)
    saved.replace(f"{name.lower()}.pth")
