"""Train networks of RecBole and its EASE for an epoch: recbole_models.py FOLDER [MODEL …].

The data is RecBole's own. One thread, since its tensors are small and more would wait for each other.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

torch.set_num_threads(1)
os.chdir(sys.argv[1])  # it writes logs where it is
names = sys.argv[2:] or ["SASRec", "GRU4Rec", "BERT4Rec", "NARM", "CORE", "EASE"]
sys.argv = sys.argv[:1]  # it reads its own options
split = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"}
for name in names:
    sizes = {"hidden_size": 32, "embedding_size": 32, "inner_size": 64, "n_layers": 2, "n_heads": 2}
    training = {"epochs": 1, "train_neg_sample_args": None, "loss_type": "CE", "train_batch_size": 2048}
    shown = {"show_progress": False, "use_gpu": False, "checkpoint_dir": "saved", "MAX_ITEM_LIST_LENGTH": 20}
    config = Config(model=name, dataset="ml-100k", config_dict={**sizes, **training, **shown, "eval_args": split})
    init_seed(1, reproducibility=True)
    parts = data_preparation(config, create_dataset(config))
    model = get_model(name)(config, parts[0].dataset)
    get_trainer(config["MODEL_TYPE"], name)(config, model).fit(parts[0], None, saved=True, show_progress=False)
    saved = max(Path("saved").glob(f"{name}-*.pth"), key=lambda path: path.stat().st_mtime)
    saved.replace(f"{name.lower()}.pth")
