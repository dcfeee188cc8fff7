"""A parity file: what a model ranked where it was trained, held to at the export and at every load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recommender.domain import Ranking
from recommender.errors import ModelError
from recommender.export import ExportError, ExportOptions, export_model
from recommender.models.artifact import Artifact, open_artifact
from recommender.models.card import Expected, card_path
from recommender.models.loader import loader
from recommender.models.parity import Names, disparity, read_parity
from recommender.settings.settings import Settings
from tests.support.facts import FACTS

RIGHT = [{"history": list(history), "recommendations": list(ids)} for history, ids in FACTS.items()]


def file(folder: Path, *lines: object) -> Path:
    path = folder / "histories.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


async def load(artifact: Artifact) -> None:
    version = await loader(Settings(device="cpu")).load(artifact)
    await version.batcher.close()
    assert version.close_engine()


async def test_the_card_keeps_what_was_expected_and_every_load_holds_the_model_to_it(tmp_path: Path) -> None:
    path = export_model(ExportOptions(output=tmp_path / "10_model.onnx", parity=file(tmp_path, *RIGHT)))
    artifact = open_artifact(path)
    assert artifact.card is not None
    assert [list(each.recommendations) for each in artifact.card.parity] == [each["recommendations"] for each in RIGHT]
    await load(artifact)

    card = json.loads(card_path(path).read_text())
    card["parity"][0]["recommendations"].reverse()
    card_path(path).write_text(json.dumps(card))
    with pytest.raises(ModelError, match="does not rank as where it was trained"):
        await load(open_artifact(path))


def test_an_export_that_ranks_otherwise_is_refused(tmp_path: Path) -> None:
    wrong = {"history": [1], "recommendations": [0, 1, 2]}

    with pytest.raises(ExportError, match=r"not written: it does not rank as where it was trained: .*\[0, 1, 2\]"):
        export_model(ExportOptions(items=50, dim=4, output=tmp_path / "m.onnx", parity=file(tmp_path, wrong)))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"history": [1]}, "line 1: 'recommendations'; give"),
        ({"history": [1], "recommendations": [9]}, "9 is not an item id from 0 to 4"),
        ({"history": ["tee"], "recommendations": [1]}, "'tee' is not a key of the vocabulary"),
        ({"history": [], "recommendations": [1]}, "a list is empty"),
        ({"history": [1], "recommendations": [1, 1]}, "recommends an item twice"),
        ({"history": [1], "recommendations": [2], "excluded": [2]}, "recommends an item that it excludes"),
        ({"history": [1], "recommendations": [2], "excluded": [9]}, "9 is not an item id from 0 to 4"),
    ],
)
def test_a_line_without_sense_is_named(line: object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_parity(file(tmp_path, line), Names(5, 5, {"tea": 0}))


@pytest.mark.parametrize(
    ("ranking", "fault"),
    [
        (Ranking([7, 8, 9], [3.0, 2.0, 1.0]), None),
        (Ranking([8, 7, 9], [2.0, 2.0, 1.0]), None),
        (Ranking([7, 9, 8], [3.0, 2.0, 2.0]), None),
        (Ranking([8, 7, 9], [3.0, 2.0, 1.0]), "item 7 scores 2 and item 8 behind it 3"),
        (Ranking([7, 9, 8], [3.0, 2.0, 1.0]), "item 9, which is not expected, scores 2"),
        (Ranking([7, 9], [3.0, 2.0]), "item 8 is not among its best 2"),
    ],
)
def test_only_equal_scores_may_change_places(ranking: Ranking, fault: str | None) -> None:
    assert disparity(Expected(item_ids=(1,), recommendations=(7, 8)), ranking, 1e-6) == fault
