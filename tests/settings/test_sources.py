"""Secrets directories, configuration files and `.env` files: what is read of them, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.errors import SettingsError
from recommender.settings.settings import Settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.toml", 'port = 7\nlog_level = "ERROR"\nplaintext = true\n'),
        ("settings.yaml", "port: 7\nlog_level: ERROR\nplaintext: yes\nmodel:\nthreads: ''\n"),
        ("settings.yml", "PORT: '7'\nlog_level: error\nplaintext: true\n"),
    ],
)
def test_a_configuration_file_holds_settings_by_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    settings = Settings.load({"config_file": name})

    assert settings == Settings(port=7, log_level="error", plaintext=True, config_file=name)


@pytest.mark.parametrize("name", ["settings.toml", "settings.yaml"])
def test_an_empty_configuration_file_sets_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()

    assert Settings.load({"config_file": name}) == Settings(config_file=name)


def test_the_places_of_files_are_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text("port = 7", encoding="utf-8")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "RECOMMENDER_THREADS").write_text("2", encoding="utf-8")
    monkeypatch.setenv("RECOMMENDER_CONFIG_FILE", "settings.toml")
    monkeypatch.setenv("RECOMMENDER_SECRETS_DIR", "secrets")

    settings = Settings.load()

    assert (settings.network.port, settings.engine.threads) == (7, 2)


def test_of_a_secrets_directory_only_files_of_ours_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "RECOMMENDER_REGISTRY_URI").write_text("http://mlflow:5000\n", encoding="utf-8")
    (tmp_path / "RECOMMENDER_REGISTRY_URI").symlink_to("data/RECOMMENDER_REGISTRY_URI")
    (tmp_path / "RECOMMENDER_PORT").mkdir()
    (tmp_path / "RECOMMENDER_PROT").mkdir()
    os.mkfifo(tmp_path / "RECOMMENDER_THREADS")
    (tmp_path / "password").write_bytes(b"\xff")

    settings = Settings.load({"secrets_dir": str(tmp_path)})

    assert settings == Settings(registry_uri="http://mlflow:5000", secrets_dir=tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("given", [{}, {"secrets_dir": "/run/secrets"}])
def test_the_default_secrets_directory_need_not_exist(given: dict[str, object]) -> None:
    assert Settings.load(given) == Settings()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_secret_that_this_user_cannot_read_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "RECOMMENDER_REGISTRY_URI"
    path.touch(mode=0)
    with pytest.raises(SettingsError, match=r"^RECOMMENDER_REGISTRY_URI in .* cannot be read: .*Permission denied"):
        Settings.load({"secrets_dir": str(tmp_path)})


def test_a_secret_that_leads_out_of_its_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("a value", encoding="utf-8")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "RECOMMENDER_HOST").symlink_to("../outside")
    with pytest.raises(SettingsError, match=r"^RECOMMENDER_HOST in secrets cannot be read: .* resolves outside of"):
        Settings.load({"secrets_dir": "secrets"})


def test_what_a_child_gets_keeps_it_from_reading_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text("port = 7\nmetrics_port = 1\n", encoding="utf-8")
    settings = Settings.load({"config_file": "settings.toml", "secrets_dir": str(tmp_path)})
    handed_on = settings.replace(metrics_port=None)
    for key, value in handed_on.environment().items():
        monkeypatch.setenv(key, value)
    (tmp_path / "settings.toml").write_text("no longer TOML", encoding="utf-8")
    (tmp_path / ".env").write_text("no longer lines", encoding="utf-8")
    (tmp_path / "RECOMMENDER_PROT").touch()

    assert Settings.load() == handed_on


def test_variables_in_an_env_file_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE", "canary")
    (tmp_path / ".env").write_text("RECOMMENDER_MODEL=models:/shop@${STAGE}", encoding="utf-8")

    assert Settings.load().models.model == "models:/shop@canary"


@pytest.mark.parametrize(
    ("name", "text"), [("settings.yaml", "port: [7"), ("settings.toml", "prot = 7"), ("settings.ini", "port = 7")]
)
def test_a_bad_configuration_file_ends_the_start_with_a_sentence_and_2(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "recommender", "serve", "--config-file", name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("recommender: ")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1
