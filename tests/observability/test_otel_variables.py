"""Every standard OTEL_* variable is followed or refused, as the table in docs/observability.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk import environment_variables as of_sdk

from recommender.errors import SettingsError
from recommender.settings.otlp import Otlp
from tests.support.paths import ROOT
from tests.support.process import running

SIGNALS = ("", "TRACES_", "METRICS_", "LOGS_")
WRONG = {
    "PROTOCOL": "http/json",
    "ENDPOINT": "ftp://collector",
    "HEADERS": "nonsense",
    "COMPRESSION": "zstd",
    "TIMEOUT": "10s",
    "CERTIFICATE": "/absent.pem",
    "CLIENT_KEY": "/absent.pem",
    "INSECURE": "maybe",
    "EXPORTER": "zipkin",
    "TEMPORALITY_PREFERENCE": "sideways",
    "HISTOGRAM_AGGREGATION": "best",
    "INTERVAL": "nan",
    "EXEMPLAR_FILTER": "sometimes",
    "TRACES_SAMPLER": "sometimes",
    "TRACES_SAMPLER_ARG": "2",
    "PROPAGATORS": "b3,pigeon",
    "RESOURCE_ATTRIBUTES": "nonsense",
    "RESOURCE_DETECTORS": "nobody",
    "LOG_LEVEL": "loud",
    "DELAY": "0",
    "QUEUE_SIZE": "many",
    "BATCH_SIZE": "4096",
    "COUNT_LIMIT": "-1",
    "LENGTH_LIMIT": "long",
}
"""A value that cannot be followed, by the end of a variable's name."""
ANY_VALUE = {"OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"}


def table() -> Iterator[tuple[str, str]]:
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    for name, verdict in re.findall(r"^\| `(OTEL_[A-Z_{}]+)` \| (\w+) \|", page, re.MULTILINE):
        for signal in SIGNALS if "{SIGNAL_}" in name else ("",):
            yield name.replace("{SIGNAL_}", signal), verdict


TABLE = dict(table())


@pytest.fixture
def _all_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for signal in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "otlp")


def wrong(name: str) -> str:
    return max(((end, text) for end, text in WRONG.items() if name.endswith(end)), key=lambda pair: len(pair[0]))[1]


def test_the_table_has_every_variable_that_the_sdk_knows() -> None:
    known = {name for name in vars(of_sdk) if name.startswith("OTEL_") and not name.startswith("OTEL_PYTHON_")}

    assert known <= set(TABLE)
    assert set(TABLE.values()) == {"followed", "refused"}


@pytest.mark.usefixtures("_all_sent")
@pytest.mark.parametrize("name", [name for name, verdict in TABLE.items() if verdict == "refused"])
def test_a_refused_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")

    with pytest.raises(SettingsError, match=f"^{name}='1' is not followed here: "):
        Otlp.load()


@pytest.mark.usefixtures("_all_sent")
@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name] == "followed" and name not in ANY_VALUE])
def test_a_value_that_cannot_be_followed_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, wrong(name))
    if name.endswith("SAMPLER_ARG"):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")

    with pytest.raises(SettingsError, match=name):
        Otlp.load()


@pytest.mark.parametrize("name", [name for name in TABLE if not name.endswith(("EXPORTER", "ENDPOINT"))])
def test_no_value_is_refused_where_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "nonsense")

    assert Otlp.load() == Otlp()


@pytest.mark.usefixtures("_all_sent")
@pytest.mark.parametrize("name", [name for name in TABLE if not name.endswith("EXPORTER")])
def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")

    assert Otlp.load() == Otlp(traces="grpc", metrics="grpc", logs="grpc")


def test_what_is_not_sent_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "often")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "long")

    assert Otlp.load() == Otlp(traces="grpc")


@pytest.mark.parametrize("edge", ["grpc", "envoy"])
async def test_what_only_the_sdk_refuses_is_a_sentence_too(edge: str) -> None:
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER": "nobody",
        "RECOMMENDER_EDGE": edge,
    }
    async with running(settings=settings, wait_for=None) as server:
        assert await server.exit_code() == 2

    assert server.text.count("\n") == 1
    assert "OpenTelemetry refuses a value of its OTEL_ variables: Requested component 'nobody'" in server.text


def test_with_workers_the_supervisor_refuses_before_it_starts_any() -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_MAX_QUEUE_SIZE": "many",
        "RECOMMENDER_WORKERS": "2",
        "RECOMMENDER_PORT": "0",
        "PATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "recommender", "serve"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "OTEL_BSP_MAX_QUEUE_SIZE='many' is not a whole number" in done.stderr
