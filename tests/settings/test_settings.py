"""Settings: groups, pages, and the order of their sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from recommender.settings.engine import EngineSettings
from recommender.settings.environment import key_of
from recommender.settings.network import NetworkSettings
from recommender.settings.pages import described, markdown, template
from recommender.settings.settings import Settings
from recommender.settings.sources import FIELDS
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
    assert Settings.load() == Settings()


def test_the_more_particular_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["port", "threads", "max_backlog", "max_history", "workers", "engine_slots"]
    lines = [f"{key_of(name)}=1" for name in names]
    (tmp_path / ".env.dev").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "settings.toml").write_text("".join(f"{name} = 2\n" for name in names[:5]), encoding="utf-8")
    for name in names[:4]:
        (tmp_path / key_of(name)).write_text("3\n", encoding="utf-8")
    (tmp_path / ".env").write_text("\n".join(lines[:3]).replace("=1", "=4"), encoding="utf-8")
    monkeypatch.setenv("RECOMMENDER_PORT", "5")
    monkeypatch.setenv("RECOMMENDER_THREADS", "5")

    settings = Settings.load({"port": 6, "config_file": "settings.toml", "secrets_dir": str(tmp_path)})

    assert [int(settings.environment()[key_of(name)]) for name in names] == [6, 5, 4, 3, 2, 1]


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


def test_a_name_that_is_no_setting_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no setting has the name 'prot'"):
        Settings.load({"prot": 1})


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RECOMMENDER_MODEL", value)
    monkeypatch.setenv("RECOMMENDER_PORT", value)

    assert Settings.load() == Settings()


def test_an_empty_value_covers_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RECOMMENDER_METRICS_PORT=9464", encoding="utf-8")
    monkeypatch.setenv("RECOMMENDER_METRICS_PORT", "")

    assert Settings.load() == Settings()


@pytest.mark.parametrize("level", ["WARNING", "Warning", " warning "])
def test_enumerations_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("RECOMMENDER_LOG_LEVEL", level)
    monkeypatch.setenv("RECOMMENDER_DEVICE", "CPU")

    assert Settings.load({"edge": "GRPC"}) == Settings(log_level="warning", device="cpu")
    assert Settings(unknown_items="Reject").requests.unknown_items == "reject"


def test_passwords_in_addresses_are_masked_for_eyes_but_not_for_children() -> None:
    settings = Settings(registry_uri="https://me:secret@mlflow:5000")

    assert settings.shown()["RECOMMENDER_REGISTRY_URI"] == "https://***@mlflow:5000"
    assert settings.environment()["RECOMMENDER_REGISTRY_URI"] == "https://me:secret@mlflow:5000"
