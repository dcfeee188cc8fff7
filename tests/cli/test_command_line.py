"""The command line as a person types it, in a separate process."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from recommender.models.artifact import open_artifact
from recommender.models.card import Card
from recommender.server.server import Server
from recommender.settings.settings import Settings
from tests.support.facts import FACTS
from tests.support.paths import ROOT
from tests.support.process import running
from tests.support.programs import run


async def recommender(*words: str, settings: Mapping[str, str] | None = None, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Run `python -m recommender …`; its exit code, output and errors."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), **(settings or {})}
    return await run(sys.executable, "-m", "recommender", *words, cwd=cwd, env=environment, patience=110)


def cells(ids: list[int]) -> str:
    return " ".join(str(item).rjust(5) for item in ids)


async def test_demo_shows_histories_recommendations_scores_and_batch_sizes() -> None:
    code, out, err = await recommender("demo")

    assert code == 0
    assert err.count("\n") == err.count("the model has random weights") == 1
    for history, expected in FACTS.items():
        assert " ".join(map(str, history)) in out
        assert cells(expected) in out
    assert "10.89" in out
    assert "batch size" in out
    assert "256 requests" in out


async def test_client_without_items_shows_examples(server: Server) -> None:
    code, out, err = await recommender("client", "--port", str(server.port))

    assert (code, err) == (0, "")
    for expected in FACTS.values():
        assert cells(expected) in out


async def test_client_with_items_shows_their_answer(server: Server) -> None:
    code, out, _ = await recommender(
        "client", "--host", "127.0.0.1", "--port", str(server.port), "--items", "1,2,3,4", "--limit", "2"
    )

    assert code == 0
    assert re.search(r"│ +5510 +1021 +│", out)


async def test_client_says_what_the_server_refused(server: Server) -> None:
    code, _, err = await recommender("client", "--port", str(server.port), "--items", "1,-2")

    assert code == 1
    assert err == (
        f"recommender: localhost:{server.port} answered INVALID_ARGUMENT: "
        "item_ids[1]: must be greater than or equal to 0, not -2\n"
    )


async def test_client_says_that_items_are_no_numbers() -> None:
    code, _, err = await recommender("client", "--items", "1;2")

    assert code == 2
    assert "is not a list of whole numbers" in err


async def test_config_prints_what_is_in_force() -> None:
    code, out, _ = await recommender("config", settings={"RECOMMENDER_PORT": "1234"})

    assert code == 0
    shown = dict(line.split("=", 1) for line in out.splitlines())
    assert shown["RECOMMENDER_PORT"] == "1234"
    assert shown == Settings(port=1234).environment()


async def test_an_output_of_another_encoding_gets_escapes() -> None:
    settings = {"RECOMMENDER_MODEL": "größe/model.onnx", "PYTHONIOENCODING": "ascii"}
    code, out, _ = await recommender("config", settings=settings)

    assert code == 0
    assert r"gr\xf6\xdfe/model.onnx" in out


@pytest.mark.parametrize("command", ["serve", "config", "demo"])
async def test_a_bad_setting_stops_every_command_with_a_sentence(command: str) -> None:
    code, out, err = await recommender(command, settings={"RECOMMENDER_PROT": "1"})

    assert (code, out) == (2, "")
    assert err.startswith("recommender: RECOMMENDER_PROT='1' in the environment is not a setting")


async def test_export_writes_the_model_that_the_settings_name(tmp_path: Path) -> None:
    code, out, err = await recommender(
        "export", "--items", "300", "--dim", "8",
        settings={"RECOMMENDER_NUM_RECOMMENDATIONS": "3", "RECOMMENDER_WEIGHTS_DIR": str(tmp_path)},
    )  # fmt: skip

    assert code == 0, err
    artifact = open_artifact(tmp_path / "3_model.onnx")
    assert isinstance(artifact.card, Card)
    assert (artifact.card.items, artifact.card.default_k) == (300, 3)
    assert "3_model.onnx" in out


async def test_export_says_what_it_refuses(tmp_path: Path) -> None:
    code, _, err = await recommender(
        "export", "--items", "3", "--num-recommendations", "4", "--output", str(tmp_path / "4_model.onnx")
    )

    assert code == 2
    assert err.startswith("recommender: ")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*"))  # noqa: ASYNC240 (a test may look at its folder)


async def test_nothing_on_the_command_line_lists_what_there_is() -> None:
    code, out, err = await recommender()

    assert code == 2
    for command in ("serve", "client", "demo", "export", "config"):
        assert command in out + err


async def test_the_options_of_serve_are_settings_and_ready_says_how_to_ask() -> None:
    options = ("reference", "--edge", "grpc", "--workers", "1", "--metrics-port", "0", "--registry", "http://none")
    async with running(*options) as server:
        (settings,) = (event for event in server.log if event["event"] == "settings")
        ask = server.log[-1]["ask"]
        code, out, err = await recommender(*ask.split()[1:], "--items", "1", "2", "3", "4")

    assert (settings["RECOMMENDER_MODEL"], settings["RECOMMENDER_METRICS_PORT"]) == ("reference", "0")
    assert settings["RECOMMENDER_REGISTRY_URI"] == "http://none"
    assert "RECOMMENDER_EDGE" not in settings
    assert ask == f"recommender client --port {server.port}"
    assert (code, err) == (0, "")
    assert cells(FACTS[1, 2, 3, 4]) in out


@pytest.mark.parametrize("options", [(), ("--edge", "envoy"), ("--workers", "2")])
async def test_a_start_that_fails_says_only_why(tmp_path: Path, options: Sequence[str]) -> None:
    served = ("serve", "--port", "0", "--metrics-port", "0", *options)
    missing = await recommender(*served, cwd=tmp_path)
    model = str(shutil.copy(ROOT / "weights" / "10_model.onnx", tmp_path))
    (tmp_path / "10_model.card.json").write_text("{}", encoding="utf-8")
    damaged = await recommender(*served, "--model", model)

    for (code, out, err), why in ((missing, "there is no model file"), (damaged, "10_model.card.json is not valid")):
        assert (code, out) == (2, "")
        assert err.startswith("recommender: ")
        assert why in err
        assert err.count("\n") == 1, err


async def test_a_failed_check_of_the_model_is_one_line_but_at_debug(tmp_path: Path) -> None:
    model = str(shutil.copy(ROOT / "weights" / "10_model.onnx", tmp_path))
    card = json.loads((ROOT / "weights" / "10_model.card.json").read_text(encoding="utf-8"))
    card["golden"][0]["scores"][0] = 99.0
    (tmp_path / "10_model.card.json").write_text(json.dumps(card), encoding="utf-8")
    served = ("serve", "--port", "0", "--model", model)
    code, out, err = await recommender(*served)
    *lines, last = (await recommender(*served, "--log-level", "debug"))[2].splitlines()

    assert (code, out) == (2, "")
    assert err.startswith("recommender: ")
    assert "does not give its card's answer" in err
    assert err.count("\n") == 1, err
    assert last == err.rstrip()
    assert [json.loads(line)["event"] for line in lines][:2] == ["listening", "settings"]
