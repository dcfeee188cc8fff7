"""Networks that people bring from libraries: exported, they rank as the library's own call does in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recommender.export import ExportOptions, export_model
from recommender.export.check import ModelFile, difference
from recommender.export.networks.load import load_network
from recommender.models.card import Card, card_path
from tests.support.libraries import FOURTEEN, LONGEST

HISTORIES = [[1, 2, 3], [7], [5, 5, 29, 3, 2, 8, 4], [9, 1], list(range(11, 20))]


_ALWAYS = ("PmixerSasRec", "ease")
"""One of each kind: padding on either side, a separate table, scores. Torch takes seconds for each."""


@pytest.mark.parametrize(
    "name", [name if name in _ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in FOURTEEN]
)
def test_a_network_of_a_library_ranks_as_in_torch(name: str, tmp_path: Path) -> None:
    padding_id, side = FOURTEEN[name]
    options = ExportOptions(
        network=f"tests.support.libraries:{name}",
        padding_id=padding_id,
        padding_side=side,  # type: ignore[arg-type]  # one of the two
        longest_history=None if side == "right" else LONGEST - (name == "RecToolsBert4Rec"),
        output=tmp_path / "10_model.onnx",
    )
    model = ModelFile(export_model(options))
    card = Card.model_validate_json(card_path(options.path).read_text())
    network = load_network(options)

    rows = []
    for history in HISTORIES:
        filled = history
        if side == "left":
            filled = [padding_id or 0] * ((options.longest_history or 0) - len(history)) + history
        inputs = [torch.tensor([filled]), torch.tensor([len(history)])]
        with torch.no_grad():
            vector = network(*(inputs if side == "right" else inputs[:1]))
            told = getattr(network, "item_embeddings", None)
            rows.append((vector if told is None else vector @ told().T)[0].numpy())
    scores = np.array(rows)
    scores[:, list(card.never_recommended)] = -np.inf

    together = model.rank(HISTORIES, 10)
    assert difference(together, scores, 10, 1e-4 * float(np.abs(scores[np.isfinite(scores)]).max())) is None
    assert card.padding_id == padding_id
    assert padding_id is None or padding_id not in together.ids
