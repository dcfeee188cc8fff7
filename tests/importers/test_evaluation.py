"""`--evaluate` measures a file by a private server, for all settings of the environment."""

from __future__ import annotations

from pathlib import Path

from recommender.importers.evaluation import evaluate
from recommender.importers.interactions import Interactions
from recommender.settings.settings import Settings
from tests.importers.conftest import Imported


async def test_settings_of_the_server_in_production_do_not_reach_the_private_one(
    imported: Imported, tmp_path: Path
) -> None:
    production = Settings(
        tokens_file=tmp_path / "tokens.toml",
        tls_certificate=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        host="0.0.0.0",  # noqa: S104 (what must not be listened on)
        port=1,
        metrics_port=1,
        health_port=1,
        model="models:/shop@live",
        candidate="models:/shop@next",
        max_history=1,
        max_batch_requests=1,
        max_backlog=1,
        unknown_items="reject",
    )

    found = await evaluate(imported.model, Interactions.read(imported.interactions), production)

    assert found.users == 30
    assert not found.offline.differs(found.wire)
