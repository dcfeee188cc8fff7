"""Settings: where they come from, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from recommender.errors import SettingsError
from recommender.settings.engine import EngineSettings
from recommender.settings.environment import key_of
from recommender.settings.network import NetworkSettings
from recommender.settings.pages import described, markdown, template
from recommender.settings.settings import FIELDS, Settings
from tests.support.paths import ROOT


def test_env_template_is_what_the_settings_class_says() -> None:
    assert (ROOT / ".env.template").read_text(encoding="utf-8") == template()


def test_the_page_of_settings_is_what_the_settings_class_says() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize(("key", "default", "description"), described())
def test_every_setting_says_what_it_is_for(key: str, default: str, description: str) -> None:
    assert description.endswith(".")
    assert f"\n# {key}={default}\n" in template()


def test_every_setting_of_the_template_can_be_read_back(tmp_path: Path) -> None:
    uncommented = [line.removeprefix("# ") for line in template().splitlines() if line.startswith("# RECOMMENDER_")]
    (tmp_path / ".env").write_text("\n".join(uncommented), encoding="utf-8")

    assert len(uncommented) == len(FIELDS)
    assert Settings.load(folder=tmp_path) == Settings()


def test_the_more_particular_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["RECOMMENDER_PORT=1", "RECOMMENDER_THREADS=1", "RECOMMENDER_MAX_BACKLOG=1", "RECOMMENDER_MAX_HISTORY=1"]
    (tmp_path / ".env.dev").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / ".env").write_text("\n".join(lines[:3]).replace("=1", "=2"), encoding="utf-8")
    monkeypatch.setenv("RECOMMENDER_PORT", "3")
    monkeypatch.setenv("RECOMMENDER_THREADS", "3")

    settings = Settings.load({"port": 4}, tmp_path)

    assert (settings.network.port, settings.engine.threads) == (4, 3)
    assert (settings.engine.max_backlog, settings.requests.max_history) == (2, 1)


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.network.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.network = NetworkSettings()  # type: ignore[misc]


def test_a_setting_stands_in_one_group_and_on_the_pages() -> None:
    groups = [getattr(Settings(), name) for name in Settings.model_fields]
    names = [name for group in groups for name in type(group).model_fields]

    assert sorted(names) == sorted(FIELDS)


def test_settings_are_given_by_name_or_in_groups() -> None:
    by_name = Settings(port=1, threads=2)

    assert by_name == Settings(network=NetworkSettings(port=1), engine=EngineSettings(threads=2))
    assert by_name.replace(port=3) == Settings(port=3, threads=2)
    with pytest.raises(ValidationError, match=r"\['network'\] whole, or their settings by name"):
        Settings(port=1, network=NetworkSettings())


def test_a_name_that_is_no_setting_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no setting has the name 'prot'"):
        Settings.load({"prot": 1}, tmp_path)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv("RECOMMENDER_MODEL", value)
    monkeypatch.setenv("RECOMMENDER_PORT", value)

    assert Settings.load(folder=tmp_path) == Settings()


def test_an_unknown_key_is_named_with_its_value_and_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECOMMENDER_MAX_BATCHSIZE", "9")
    with pytest.raises(SettingsError) as refused:
        Settings.load(folder=tmp_path)

    assert str(refused.value) == (
        "RECOMMENDER_MAX_BATCHSIZE='9' in the environment is not a setting; the nearest is RECOMMENDER_MAX_BATCH_SIZE. "
        "`recommender config` lists them all."
    )


def test_an_unknown_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RECOMMENDER_PROT=9", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"RECOMMENDER_PROT='9' in \.env is not .* RECOMMENDER_PORT"):
        Settings.load(folder=tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("PORT", "65536", "input should be less than or equal to 65535"),
        ("PORT", "many", "input should be a valid integer"),
        ("DEVICE", "tpu", "input should be 'auto', 'cpu', 'cuda' or 'coreml'"),
        ("MAX_BATCH_SIZE", "0", "input should be greater than or equal to 1"),
        ("THREAD_SPINNING", "perhaps", "input should be a valid boolean"),
        ("LOG_LEVEL", "loud", "input should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_would_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(key_of(key), value)
    with pytest.raises(SettingsError) as refused:
        Settings.load(folder=tmp_path)

    assert str(refused.value).startswith(f"RECOMMENDER_{key}='{value}' in the environment cannot be used: {reason}")


@pytest.mark.parametrize("key", ["RECOMMENDER_PORT", "RECOMMENDER_PORT_50051_TCP", "RECOMMENDER_SERVICE_HOST"])
def test_what_kubernetes_injects_gets_a_sentence_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    monkeypatch.setenv(key, "tcp://10.3.2.1:50051")
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        Settings.load(folder=tmp_path)


def test_several_faults_are_all_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECOMMENDER_PORT", "x")
    monkeypatch.setenv("RECOMMENDER_THREADS", "-1")
    with pytest.raises(SettingsError, match=r"RECOMMENDER_PORT='x'.*RECOMMENDER_THREADS='-1'"):
        Settings.load(folder=tmp_path)
