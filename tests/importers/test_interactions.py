"""Interactions: the forms of files, and the messages about them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from recommender.export.errors import ExportError
from recommender.importers.evaluation import Metrics
from recommender.importers.interactions import Held, Interactions

FORMS = {
    "log.csv": "user_id,item_id,timestamp\na,2,20\na,1,10\nb,1,5\n",
    "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\na\t2\t5\t20\na\t1\t4\t10\nb\t1\t3\t5\n",
    "dates.csv": "Item;User;Datetime\n2;a;2024-01-02\n1;a;2024-01-01\n1;b;2023-01-01\n",
}
TIMES = {"log.csv": (10, 20), "ml.inter": (10, 20), "dates.csv": (1_704_067_200, 1_704_153_600)}
"""Those of the first user's items, in Unix seconds."""


@pytest.mark.parametrize("name", FORMS)
def test_each_form_has_users_with_their_items_oldest_first(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))

    for each in (path, zipped):
        read = Interactions.read(each)
        assert read.histories == {"a": ("1", "2"), "b": ("1",)}
        assert read.held_out() == [Held("a", ("1",), "2", TIMES[name])]
        assert read.popular() == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no column of users"),
        ("user_id,thing\na,1\n", "has no column of items: user_id, thing; call it item_id"),
        ("user_id,item_id\n", "has no interaction"),
        ("user_id,item_id,timestamp\na,1\n", "line 2: list index out of range; expected are 3 columns"),
        ("user_id,item_id,timestamp\na,1,soon\n", "line 2: Invalid isoformat string: 'soon'"),
    ],
)
def test_what_is_none_is_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ExportError, match=sentence):
        Interactions.read(path)


def test_metrics_are_of_the_place_of_the_one_item_that_is_wanted() -> None:
    found = Metrics.of([["a", "b"], ["b", "a"], ["c"], ["a"]], ["a", "a", "a", "x"], items=10)

    assert found.recall == 0.5
    assert found.mrr == (1 + 1 / 2) / 4
    assert found.ndcg == pytest.approx((1 + 0.6309297535714575) / 4)
    assert found.coverage == 0.3
