"""Bulk scoring gives no hidden item, and else what the service gives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from recommender.bulk import Scorer
from recommender.settings.settings import Settings
from tests.support.bulk import assert_same, online, table_of
from tests.support.hiding import write_list
from tests.support.serving import in_a_thread, server_of
from tests.support.versions import K, write_version


def test_rows_get_the_service_s_answers_without_hidden_items(tmp_path: Path) -> None:
    model = write_version(tmp_path / "shop" / "1", 1, keys=50, fallback=(7, 3, 11)).parent
    rows: list[dict[str, Any]] = [{"item_ids": [item, 49 - item]} for item in range(20)]
    rows += [{"item_ids": [99], "limit": 3}, {"item_ids": [4, 99], "limit": 30}]
    with closing(Scorer(str(model))) as scorer:
        best = scorer(table_of(rows)).column("item_ids").to_pylist()
    hidden = {7, *(item for row in best[:20] for item in row[:2])}
    path = tmp_path / "hidden.txt"
    write_list(path, [f"v1-{item}" for item in hidden])
    known = Settings(port=0, model=model, num_recommendations=K, hidden_items=str(path))

    with closing(Scorer(str(model), settings={"hidden_items": str(path), "num_recommendations": K})) as scorer:
        scored = scorer(table_of(rows))
    with in_a_thread(lambda: server_of(known)) as server:
        answers = online(server.port, rows)

    assert_same(scored, answers, 1e-4)
    assert not hidden & {item for row in scored.column("item_ids").to_pylist() for item in row}
    assert scored.column("item_ids").to_pylist()[20] == [item for item in (7, 3, 11) if item not in hidden]
    assert all(len(row) == K for row in scored.column("item_ids").to_pylist()[:20])
