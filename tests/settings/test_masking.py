"""Names and passwords in URLs stay in the process."""

from __future__ import annotations

import os
import sys
import time

import pytest

from recommender.settings.masking import masked
from tests.support.paths import ROOT
from tests.support.programs import run

LOGS = """
import sys
import structlog
from recommender.observability.log import set_up_logging
lines = set_up_logging("info", sys.argv[1])
log = structlog.get_logger()
address = "http://scout:hidden@mlflow:5000"
log.info(f"asks {address}", whole=address, many=[address], named={"uri": address})
try:
    raise OSError(f"{address} cannot be asked")
except OSError:
    log.exception("failed")
lines.finish(10)
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("http://scout:secret@mlflow:5000/x", "http://***@mlflow:5000/x"),
        ("http://token@mlflow", "http://***@mlflow"),
        ("http://scout:se/cr@et@mlflow", "http://***@mlflow"),
        ("http://scout@shop.com:secret@mlflow", "http://***@mlflow"),
        ("neither 'http://a:b@c', nor http://d:e@f is one", "neither 'http://***@c', nor http://***@f is one"),
        ("http://mlflow:5000 has no models:/shop@champion", "http://mlflow:5000 has no models:/shop@champion"),
    ],
)
def test_a_url_is_shown_without_name_and_password(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_long_text_of_an_attacker_is_read_once() -> None:
    text = "//" * 10_000 + "//" + ":" * 100_000 + " @"
    started = time.process_time()

    assert masked(text) == text
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_the_log_masks_every_value_and_tracebacks(log_format: str) -> None:
    code, _, err = await run(sys.executable, "-c", LOGS, log_format, cwd=ROOT, env=dict(os.environ))

    assert code == 0
    assert err.count("http://***@mlflow:5000") == 5
    assert "hidden@" not in err
    assert "OSError" in err


@pytest.mark.slow  # it imports MLflow
async def test_a_refused_start_masks_the_registry() -> None:
    settings = {"RECOMMENDER_MODEL": "models:/shop@champion", "RECOMMENDER_MODEL_CACHE_DIR": "nowhere"}
    settings |= {"RECOMMENDER_REGISTRY_URI": "http://scout:secret@127.0.0.1:1", "RECOMMENDER_PORT": "0"}
    code, out, err = await run(sys.executable, "-m", "recommender", "serve", cwd=ROOT, env={**os.environ, **settings})

    assert code == 2
    assert "the registry cannot be asked" in err
    assert "secret" not in out + err
