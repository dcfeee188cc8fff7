"""`recommender client`: ask a server, and show its answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from recommender.cli.clients.connecting import meaning
from recommender.cli.clients.features import split, typed
from recommender.cli.clients.rules import rules_of
from recommender.cli.lazy import fail, new_typer
from recommender.client import Client, Options, Recommendations
from recommender.edges.address import address_of
from recommender.security.pem import CERTIFICATE, PRIVATE_KEY, pem_blocks

if TYPE_CHECKING:
    from typer._click import Context

EXAMPLES: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4), (0,), (9999, 999, 99))
"""Histories that the reference model knows."""
CALL_TIMEOUT = 10.0
_LISTS = ("--items", "--keys", "--exclude", "--candidates", "--types", "--type-keys", "--times")
_MOST = 2**31 - 1
_NEGATIVE = re.compile(r"-\d")


class _WithLists(TyperCommand):
    """A command whose lists may be typed with spaces: `--items 1 2 3`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        # Typer would suggest --candidates.
        if any(word.partition("=")[0] == "--address" for word in args):
            fail("there is no option --address: use --host and --port", 2)
        return super().parse_args(ctx, list(_each_with_its_option(args)))


def _each_with_its_option(words: Sequence[str]) -> Iterator[str]:
    """`--items 1 2 3` as `--items=1 --items=2 --items=3`; the option alone if nothing follows."""
    option, empty = None, False
    for word in words:
        if not word.startswith("-") or (option and _NEGATIVE.match(word)):
            yield f"{option}={word}" if option else word
            empty = False
            continue
        if option and empty:
            yield option
        option, empty = (word, True) if word in _LISTS else (None, False)
        if option is None:
            yield word
    if option and empty:
        yield option


app = new_typer()

_Items = Annotated[
    list[str] | None,
    typer.Option(metavar="ID …", help="A history: item ids, oldest first, as 1 2 3 4 or 1,2,3,4."),
]
_Keys = Annotated[list[str] | None, typer.Option(metavar="KEY …", help="A history as keys, where the model has them.")]
_Exclude = Annotated[
    list[str] | None, typer.Option(metavar="ID …", help="Never recommend these; keys if --keys is given.")
]
_Candidates = Annotated[
    list[str] | None, typer.Option(metavar="ID …", help="Recommend among these only; keys if --keys is given.")
]


@app.command("client", cls=_WithLists)
def client(
    *,
    host: Annotated[str, typer.Option(help="The server's host name or address.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 50051,
    items: _Items = None,
    keys: _Keys = None,
    exclude: _Exclude = None,
    candidates: _Candidates = None,
    user: Annotated[int | None, typer.Option(metavar="ID", help="The user, where the model takes users.")] = None,
    user_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The user as a key, where the model has them.")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(metavar="ID …", help="Each item's type of event, where the model reads types."),
    ] = None,
    type_keys: Annotated[
        list[str] | None, typer.Option(metavar="KEY …", help="The types as keys, where the model has them.")
    ] = None,
    times: Annotated[
        list[str] | None,
        typer.Option(metavar="MS …", help="Each item's time in Unix ms, where the model reads times."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A feature, where the model takes it; a list as 1,2. Repeatable."),
    ] = None,
    wanted: Annotated[
        str, typer.Option("--filter", metavar="CEL", help="Recommend only items for which this is true.")
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A parameter of the filter; a list as a,b. Repeatable."),
    ] = None,
    boost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CEL=EFFECT",
            help="Lift or lower items for which CEL is true: a factor as 1.2, an addend as +0.5 or -0.5. Repeatable.",
        ),
    ] = None,
    max_per: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Recommend at most N items of one value, as brand=3. Repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="The model to ask, as name, name@version or name@alias.")] = "",
    limit: Annotated[
        int, typer.Option(min=0, max=_MOST, help="How many recommendations; 0 leaves it to the server.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds to wait for each answer.")
    ] = CALL_TIMEOUT,
    ca: Annotated[Path | None, typer.Option(help="Authority of the server's certificate; with it, TLS.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Own certificate, for mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key of the own certificate.")] = None,
    token: Annotated[str | None, typer.Option(help="Token to send; other users may see it, a file is safer.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token to send.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an answer a line, as JSON.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Send a trace to the collector of the OTEL_ variables, and print its id.")
    ] = False,
) -> None:
    """Ask a running server for recommendations.

    Without a history or a user it asks for a few examples.
    """
    if items is not None and keys is not None:
        raise typer.BadParameter("a history is either --items or --keys", param_hint="--keys")
    named = _user(user, user_key)
    features = _features(feature or ())
    request: Options = {"limit": limit, "model": model, **named, **_events(types, type_keys, times)}
    request |= rules_of(wanted, parameter or (), boost or (), max_per or ())
    histories: Sequence[tuple[int, ...]] = ((),)
    if keys is not None:
        request |= {"item_keys": keys, "excluded_item_keys": exclude or (), "candidate_item_keys": candidates or ()}
    else:
        if items is not None or not named:
            histories = EXAMPLES if items is None else (_ids(items, "--items"),)
        request |= {
            "excluded_item_ids": _ids(exclude or (), "--exclude"),
            "candidate_item_ids": _ids(candidates or (), "--candidates"),
        }
    target = address_of(host, port)
    credentials, token = secrets_of(ca, certificate, key, token, token_file)

    async def ask() -> list[Recommendations]:
        async with Client(target, credentials=credentials, token=token) as connection:
            if features:
                taken = (await connection.get_model(model, timeout=timeout)).features
                request["features"] = typed(features, taken)
            return [await connection.recommend(ids, timeout=timeout, **request) for ids in histories]

    try:
        with sending_a_trace() if trace else nullcontext():
            answers = asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        said = meaning(error.code(), error.details(), where="--host and --port", tls=ca is not None)
        fail(f"{target}: {said}" if said else f"{target} answered {error.code().name}: {error.details()}", 1)
    except (ValueError, TypeError, grpc.aio.UsageError) as error:
        fail(f"that cannot be sent: {error}", 2)
    shown: Sequence[tuple[int | str, ...]] = histories if keys is None else (tuple(keys),)
    if as_json:
        for history, answer in zip(shown, answers, strict=True):
            typer.echo(json.dumps({"history": history, **asdict(answer)}))
    else:
        print_answers(shown, answers, details=True)


@contextmanager
def sending_a_trace() -> Iterator[None]:
    """Have clients trace their calls meanwhile, in one trace. A fault ends the process with a sentence."""
    from recommender.cli.running import loaded  # noqa: PLC0415 (slow to import)
    from recommender.observability.otlp import tracing_a_command  # noqa: PLC0415 (the SDK is slow to import)
    from recommender.settings.otlp import Otlp  # noqa: PLC0415

    otlp = loaded(Otlp.load)
    if otlp.traces is None:
        fail("--trace needs a collector: set OTEL_EXPORTER_OTLP_ENDPOINT to where it is", 2)
    with tracing_a_command("recommender client", otlp.traces) as trace_id:
        typer.echo(f"trace {trace_id}", err=True)
        yield


def print_answers(
    histories: Sequence[tuple[int | str, ...]], answers: Sequence[Recommendations], *, details: bool = False
) -> None:
    """Print a table of histories with their recommendations; `details` adds how each was ranked."""
    console = Console()
    asked = [escape(" ".join(map(str, history))) for history in histories]
    room = console.width - min(max(map(len, asked), default=0), console.width // 2) - len("│  │  │")
    table = Table("history", "recommendations, best first, with scores", show_lines=True)
    for history, answer in zip(asked, answers, strict=True):
        rows = [answer.item_keys, tuple(map(str, answer.item_ids)), tuple(f"{score:.2f}" for score in answer.scores)]
        lines = [escape(line) for line in _columns([row for row in rows if row], room)]
        if details:
            lines += [f"[dim]{escape(line)}[/]" for line in _details(answer)]
        table.add_row(history, "\n".join(lines))
    table.caption = f"model {answers[0].model_version}"
    console.print(table, highlight=False)


def _columns(rows: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    """The rows with their cells one below the other, broken where there is no more room."""
    width = max((len(cell) for row in rows for cell in row), default=0)
    count = max((room + 1) // (width + 1), 1)
    for start in range(0, len(rows[0]) if rows else 0, count):
        for row in rows:
            yield " ".join(cell.rjust(width) for cell in row[start : start + count])


def _details(answer: Recommendations) -> Iterator[str]:
    unknown = (*map(str, answer.unknown_item_ids), *answer.unknown_item_keys)
    if unknown:
        yield f"not known to the model: {' '.join(unknown)}"
    if answer.unknown_user:
        yield "the model does not know the user"
    if answer.ignored_inputs:
        yield f"the model takes no {' '.join(answer.ignored_inputs)}"
    if answer.matching_items is not None:
        yield f"{answer.matching_items} items match the filter"
    source = "the fallback list" if answer.is_fallback else "the user alone" if answer.is_user_alone else "the model"
    yield f"from {source}, request {answer.request_id}"


def secrets_of(
    ca: Path | None, certificate: Path | None, key: Path | None, token: str | None, token_file: Path | None
) -> tuple[grpc.ChannelCredentials | None, str | None]:
    """Read the files that are named. A fault ends the process with a sentence."""
    if ca is None and (certificate is not None or key is not None):
        fail("--certificate and --key need --ca: TLS proves both sides", 2)
    if (certificate is None) != (key is None):
        fail("--certificate and --key go together: give both or neither", 2)
    try:
        own_key = None if key is None else _pem(key, PRIVATE_KEY)
        own_chain = None if certificate is None else _pem(certificate, CERTIFICATE)
        credentials = None if ca is None else grpc.ssl_channel_credentials(_pem(ca, CERTIFICATE), own_key, own_chain)
        if token_file is not None:
            token = token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        fail(f"{error.filename} cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{token_file} is not a file with a token: it is not UTF-8 text", 2)
    if token is not None and not (token.isascii() and token.isprintable()):
        fail("the token has characters that cannot be sent; is it the right file?", 2)
    return credentials, token


def _pem(path: Path, kind: bytes) -> bytes:
    """Read a PEM file; ends the process with a sentence if it has nothing of that kind."""
    found = pem_blocks(path.read_bytes(), kind)
    if not found:
        fail(f"{path} holds no {kind.decode().lower()} in PEM", 2)
    return found


def _user(user: int | None, user_key: str | None) -> Options:
    """The user of a request, if one is named."""
    if user is not None and user_key is not None:
        raise typer.BadParameter("a user is either --user or --user-key", param_hint="--user-key")
    if user is not None:
        return {"user_id": user}
    return {} if user_key is None else {"user_key": user_key}


def _events(types: Sequence[str] | None, keys: Sequence[str] | None, times: Sequence[str] | None) -> Options:
    """The types and times of a history, if they are given."""
    if types is not None and keys is not None:
        raise typer.BadParameter("types are either --types or --type-keys", param_hint="--type-keys")
    given: Options = {}
    if types is not None:
        given["history_type_ids"] = _ids(types, "--types")
    if keys is not None:
        given["history_type_keys"] = keys
    if times is not None:
        given["history_times"] = _numbers(times, "--times")
    return given


def _features(words: Sequence[str]) -> Mapping[str, str]:
    """The features of a request, as words by their names."""
    try:
        return split(words)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--feature") from None


def _numbers(words: Sequence[str], option: str) -> tuple[int, ...]:
    """The numbers in words such as `1` or `1,2,3`."""
    try:
        return tuple(int(part) for word in words for part in word.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{' '.join(words)!r} is not a list of whole numbers such as 1 2 3 4 or 1,2,3,4", param_hint=option
        ) from None


def _ids(words: Sequence[str], option: str) -> tuple[int, ...]:
    """The ids in words such as `1` or `1,2,3`."""
    ids = _numbers(words, option)
    if beyond := [each for each in ids if not -_MOST <= each <= _MOST]:
        raise typer.BadParameter(f"{beyond[0]} is not an item id: they are between 0 and {_MOST}", param_hint=option)
    return ids
