"""`recommender client`, and its errors and those of `recommender health` without a server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.asking import asked, typed
from tests.support.catalogues import add_fallback, add_vocabulary, export_catalogue
from tests.support.certificates import Authority
from tests.support.facts import FACTS
from tests.support.models import brute_force
from tests.support.serving import AnyServer, Serve, ServeHere
from tests.support.versions import embeddings_of, write_version


@pytest.mark.parametrize("words", [("1", "2", "3", "4"), ("1,2,3,4",), ("1,2", "3,4")])
async def test_a_history_has_spaces_or_commas(server: AnyServer, words: tuple[str, ...]) -> None:
    answer = await asked(server, "--items", *words, "--json")

    assert (answer.exit_code, answer.stderr) == (0, "")
    assert json.loads(answer.stdout)["item_ids"] == FACTS[1, 2, 3, 4]


async def test_exclusions_candidates_model_and_limit_are_sent(server: AnyServer) -> None:
    excluded = FACTS[1, 2, 3, 4][:2]
    words = ("--items", "1", "2", "3", "4", "--limit", "3", "--model", "reference@1", "--json")
    without = await asked(server, *words, "--exclude", *map(str, excluded))
    among = await asked(server, "--candidates", "5", "6", *words)
    nowhere = await asked(server, "--items", "1", "--model", "none")

    assert json.loads(without.stdout)["item_ids"] == FACTS[1, 2, 3, 4][2:5]
    assert sorted(json.loads(among.stdout)["item_ids"]) == [5, 6]
    assert nowhere.exit_code == 1
    assert "answered NOT_FOUND" in nowhere.stderr


async def test_unknown_ids_source_and_request_id_are_shown(server: AnyServer) -> None:
    answer = await asked(server, "--items", "1", "20000")
    said = json.loads((await asked(server, "--items", "1", "20000", "--json")).stdout)

    assert "not known to the model: 20000" in answer.stdout
    assert "from the model, request " in answer.stdout
    assert (said["unknown_item_ids"], said["is_fallback"]) == ([20000], False)
    assert said["request_id"]


async def test_keys_are_asked_with_and_shown(serve: Serve, tmp_path: Path) -> None:
    model = export_catalogue(tmp_path, 20)
    add_vocabulary(model, [f"item [{number}]" for number in range(20)])
    add_fallback(model, [3, 4])
    async with serve(model=model) as server:
        answer = await asked(server, "--keys", "item [1]", "none", "--exclude", "item [2]", "--limit", "2")
        said = json.loads((await asked(server, "--keys", "item [1]", "--limit", "2", "--json")).stdout)
        fallback = await asked(server, "--keys", "none", "--limit", "2")

    assert answer.exit_code == 0, answer.stderr
    assert "not known to the model: none" in answer.stdout
    assert all(f"item [{number}]" in answer.stdout for number in (1, *said["item_ids"]) if number != 2)
    assert said["item_keys"] == [f"item [{number}]" for number in said["item_ids"]]
    assert "from the fallback list" in fallback.stdout


async def test_a_user_is_asked_for_with_and_without_a_history(serve: Serve, tmp_path: Path) -> None:
    users = np.random.default_rng(3).normal(0, 2, (4, 8)).astype(np.float32)
    model = write_version(tmp_path / "shop" / "1", 1, users=users, user_keys=["anna", "bert", "cleo"])
    async with serve(model=f"{model.parent}@1", num_recommendations=5) as server:
        alone = await asked(server, "--user", "2", "--json")
        by_key = await asked(server, "--user-key", "bert", "--json")
        unknown = await asked(server, "--items", "1", "2", "--user-key", "dora")

    said = json.loads(alone.stdout)
    best, _ = brute_force(embeddings_of(1), (), 5, users[2])
    assert (said["item_ids"], said["is_user_alone"], said["history"]) == (best, True, [])
    assert json.loads(by_key.stdout)["item_ids"] == best
    assert "the model does not know the user" in unknown.stdout


async def test_types_and_times_are_sent_with_a_history(serve: Serve, tmp_path: Path) -> None:
    table = np.random.default_rng(3).normal(0, 2, (3, 8)).astype(np.float32)
    model = write_version(tmp_path / "shop" / "1", 1, types=table, type_keys=["view", "cart"], timed=True)
    async with serve(model=f"{model.parent}@1", num_recommendations=5) as server:
        by_id = await asked(server, "--items", "1", "2", "--types", "2,1", "--times", "5", "9000000000000", "--json")
        by_key = await asked(
            server, "--items", "1", "2", "--type-keys", "cart", "view", "--times", "5,9000000000000", "--json"
        )

    best, _ = brute_force(embeddings_of(1), (1, 2), 5, of_types=table[[2, 1]], times=(5, 9_000_000_000_000))
    assert json.loads(by_id.stdout)["item_ids"] == json.loads(by_key.stdout)["item_ids"] == best


async def test_a_filter_its_parameters_boosts_and_bounds_are_sent(serve: Serve, tmp_path: Path) -> None:
    model = export_catalogue(tmp_path, 20)
    add_vocabulary(model, [f"item {number}" for number in range(20)])
    rows = [f"item {number},{number}.5,brand {number % 4}" for number in range(20)]
    (tmp_path / "items.csv").write_text("\n".join(["key,price,brand", *rows]))
    wanted = ("--filter", "item.price < params.most && item.brand in params.brands")
    given = ("--parameter", "most=9", "--parameter", "brands=brand 1,brand 2")
    async with serve(model=model, items=tmp_path / "items.csv") as server:
        said = json.loads((await asked(server, "--items", "1", *wanted, *given, "--json")).stdout)
        shown = await asked(server, "--items", "1", *wanted, *given)
        lacking = await asked(server, "--items", "1", *wanted, *given[:2])
        boosts = ("--boost", "item.brand == 'brand 2'=+100", "--boost", "item.price >= 6.0=10", "--max-per", "brand=1")
        ruled = json.loads((await asked(server, "--items", "1", *wanted, *given, *boosts, "--json")).stdout)

    assert (sorted(said["item_ids"]), said["matching_items"]) == ([1, 2, 5, 6], 4)
    assert "4 items match the filter" in shown.stdout
    plain = dict(zip(said["item_ids"], said["scores"], strict=True))
    assert ruled["item_ids"] == [6, max((1, 5), key=lambda item: plain[item])]
    assert ruled["scores"] == pytest.approx([(plain[6] + 100) * 10, plain[ruled["item_ids"][1]]], rel=1e-5)
    assert lacking.exit_code == 1
    assert "there is no parameter 'brands'" in " ".join(lacking.stderr.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--items", "1", "--types", "1", "--type-keys", "a"), "either --types or --type-keys"),
        (("--items", "1", "--times", "yesterday"), "'yesterday' is not a list of whole numbers"),
        (("--items", "1", "--times", "99999999999999999999"), "that cannot be sent"),
        (("--items", "99999999999999999999"), "99999999999999999999 is not an item id"),
        (("--items", "1", "--filter", "true", "--parameter", "a"), "'a' is not a parameter such as brand=acme"),
        (("--items", "1", "--boost", "item.fresh"), "'item.fresh' has no effect"),
        (("--items", "1", "--boost", "item.stock >= 3"), "'item.stock >= 3' has no effect"),
        (("--items", "1", "--boost", "item.fresh=nan"), "'item.fresh=nan' has no effect"),
        (("--items", "1", "--max-per", "brand"), "'brand' is not a bound such as brand=3"),
        (("--items", "1", "--max-per", "brand=-1"), "'brand=-1' is not a bound such as brand=3"),
        (("--items", "1;2"), "is not a list of whole numbers"),
        (("--items", "1", "--keys", "a"), "either --items or --keys"),
        (("--user", "1", "--user-key", "a"), "either --user or --user-key"),
        (("--items", "1", "--limit", "99999999999"), "--limit"),
        (("--items", "1", "--timeout", "nan"), "--timeout"),
        (("--items", "1", "--port", "0"), "--port"),
        (("--items", "1", "--token", "a\nb"), "the token has characters that cannot be sent"),
        (("--items", "1", "--token-file", "/none"), "/none cannot be read"),
        (("--items", "1", "--key", "/none"), "need --ca"),
        (("--keys", "\udcff"), "cannot be sent"),
        (("--items", "1", "--model", "\udcff"), "cannot be sent"),
    ],
)
async def test_what_cannot_be_sent_is_a_sentence(words: tuple[str, ...], sentence: str) -> None:
    answer = await typed("client", *words)

    assert answer.exit_code == 2
    assert sentence in " ".join(answer.stderr.split())
    assert isinstance(answer.exception, SystemExit)


async def test_nobody_listening_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        client = await typed("client", "--host", "127.0.0.1", "--port", str(port))
        health = await typed("health", "--address", f"127.0.0.1:{port}")

    assert (client.exit_code, health.exit_code) == (1, 1)
    assert client.stderr == (
        f"recommender: 127.0.0.1:{port}: no server listens there: start `recommender serve`, or give its address with "
        "--host and --port\n"
    )
    assert health.stderr.endswith("start `recommender serve`, or give its address with --address HOST:PORT\n")


async def test_an_option_of_health_leads_to_the_clients_own() -> None:
    answer = await typed("client", "--address=localhost:50051")

    assert (answer.exit_code, answer.stderr) == (
        2,
        "recommender: there is no option --address: use --host and --port\n",
    )


async def test_slips_of_tls_are_sentences(serve: Serve, server: AnyServer, tmp_path: Path) -> None:
    ours, other = Authority(), Authority()
    ca, wrong = (str(each.write_pem(tmp_path / f"{number}.pem")) for number, each in enumerate((ours, other)))
    async with serve(**ours.write_server(tmp_path)) as encrypted:
        said = [
            await asked(encrypted),
            await asked(encrypted, "--ca", wrong),
            await asked(server, "--ca", ca),
            await asked(encrypted, "--ca", ca, "--items", "1"),
        ]

    assert [each.exit_code for each in said] == [1, 1, 1, 0]
    sentences = ("give the file of its authority with --ca", "not from the authority in --ca", "leave out --ca")
    for answer, sentence in zip(said[:3], sentences, strict=True):
        assert sentence in answer.stderr


async def test_a_port_of_something_else_is_a_sentence(serve: ServeHere) -> None:
    async with serve(health_port=0, metrics_port=0) as server:
        ports: dict[str, Callable[[], int]] = {
            "its health port": lambda: server.health_port,
            "not the metrics port": lambda: server.metrics_port,
        }
        for sentence, port in ports.items():
            answer = await typed("client", "--host", "127.0.0.1", "--port", str(port()))
            assert answer.exit_code == 1
            assert sentence in answer.stderr
        health = await typed("health", "--address", f"127.0.0.1:{server.port}")
        serving = await typed("health", "--address", f"127.0.0.1:{server.health_port}")

    assert health.exit_code == 1
    assert "use RECOMMENDER_HEALTH_PORT" in health.stderr
    assert (serving.exit_code, serving.stdout) == (0, "readiness: SERVING\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("health", "--timeout", "0"), "greater than or equal to 0.001"),
        (("health", "--timeout", "-1"), "greater than or equal to 0.001"),
        (("health", "--timeout", "inf"), "less than or equal to 86400"),
        (("health", "--timeout", "nan"), "less than or equal to 86400"),
        (("client", "--timeout", "nan"), "less than or equal to 86400"),
        (("top", "--interval", "nan"), "less than or equal to 86400"),
        (("health", "--name", "é" * 64), "--name has 128 bytes and may have 127"),
        (("health", "--name", "\udcff"), "--name must be UTF-8 text"),
    ],
)
async def test_times_and_names_that_cannot_be_sent_are_sentences(words: tuple[str, ...], sentence: str) -> None:
    answer = await typed(*words)

    assert answer.exit_code == 2
    assert sentence in " ".join(answer.stderr.split())


async def test_a_health_check_has_a_name_of_127_bytes_at_most(serve: ServeHere) -> None:
    async with serve(health_port=0) as server:
        answer = await typed("health", "--address", f"127.0.0.1:{server.health_port}", "--name", "a" * 127)

    assert answer.exit_code == 1
    assert "NOT_FOUND: unknown name" in answer.stderr
