"""`recommender models`: what there is to serve, and what happens to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from recommender.cli.lazy import fail, new_typer
from recommender.cli.running import logged, run
from recommender.domain import Feature
from recommender.errors import StartError
from recommender.models.artifact import Artifact
from recommender.models.card import Card
from recommender.models.loader import loader
from recommender.models.proof import Proof
from recommender.models.sources.mlflow import Registered, Registry
from recommender.models.sources.opening import fetch_model, open_registry
from recommender.models.sources.publishing import files_of, write_mlmodel
from recommender.models.sources.source import Progress
from recommender.models.version import Version
from recommender.server.process import end_with_parent
from recommender.settings.settings import Settings

app = new_typer("List, show, verify, publish and promote the versions of models.")

_DIGITS = 12

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
RegistryUri = Annotated[str | None, typer.Option("--registry", help="MLflow tracking URI instead of the configured.")]
Alias = Annotated[str, typer.Option(help="The alias that servers follow.")]


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None,
    *,
    registry: RegistryUri = None,
    as_json: Json = False,
) -> None:
    """List the versions in the registry, the newest first, with their aliases."""
    with _told():
        opened = _registry(registry)
        found = [each for model in ([name] if name else opened.names()) for each in opened.versions(model)]
        measured = [opened.metrics(each) for each in found]
    if as_json:
        _print([{**_facts(each), "metrics": dict(metrics)} for each, metrics in zip(found, measured, strict=True)])
        return
    table = Table("model", "version", "aliases", "created", "sha256", "metrics", "tags", title=opened.address)
    last = None
    for each, metrics in zip(found, measured, strict=True):
        tags = ", ".join(f"{key}={value}" for key, value in sorted(each.tags.items()) if not _is_ours(key))
        digest = each.tags.get("recommender.sha256", "")[:_DIGITS]
        created = each.created.astimezone().strftime("%Y-%m-%d %H:%M")
        if last not in (None, each.name):
            table.add_section()
        table.add_row(
            each.name if each.name != last else "",
            each.version,
            ", ".join(each.aliases),
            created,
            digest,
            ", ".join(f"{key}={value:g}" for key, value in sorted(metrics.items())),
            tags,
        )
        last = each.name
    Console().print(
        table if found else "no model is registered yet: `recommender models push` does it", highlight=False
    )


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A model file, a version's folder, or what RECOMMENDER_MODEL takes.")],
    *,
    registry: RegistryUri = None,
    as_json: Json = False,
) -> None:
    """Show the card of a version."""
    with _told():
        artifact = _artifact(_settings(registry), model)
    card = artifact.card
    if card is None:
        fail(f"{artifact.path} has no card", 2)
    if as_json:
        _print({"name": artifact.name, "version": artifact.version, "card": card.model_dump(mode="json")})
        return
    table = Table("field", "value", title=f"{artifact.name}@{artifact.version}")
    for field, value in card.model_dump(exclude={"files", "golden", "exported_with"}).items():
        table.add_row(field, str(value))
    table.add_row("exported_with", ", ".join(f"{key} {value}" for key, value in card.exported_with.items()))
    table.add_row("golden", f"{len(card.golden)} histories")
    for file in card.files:
        table.add_row(file.role, f"{file.path}, {file.size:,} bytes, {file.sha256[:_DIGITS]}…")
    Console().print(table, highlight=False)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A model file, a version's folder, or what RECOMMENDER_MODEL takes.")],
    *,
    registry: RegistryUri = None,
    as_json: Json = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End when this process ends.")] = None,
) -> None:
    """Try a version as the server would before it serves: digests, contract, golden answers, limits, latency."""
    if parent is not None:
        end_with_parent(parent)
    with _told():
        settings = _settings(registry)
        artifact = _artifact(settings, model)
        served, proof = _try(settings, artifact)
    if as_json:
        typer.echo(proof.to_json())
        return
    table = Table("check", "found", title=f"{served.label} may serve")
    table.add_row("digests", f"{served.sha256[:_DIGITS]}…, all files" if artifact.card else "no card to hold it to")
    table.add_row("contract", ", ".join(sorted(served.abilities)))
    table.add_row("golden answers", f"{proof.golden}, in order, alone and in company" if proof.golden else "none")
    table.add_row("limits", f"{served.model.items or 'unknown'} items, {served.model.max_k} recommendations at most")
    table.add_row("vocabulary", f"{len(served.vocabulary):,} keys" if served.vocabulary else "none")
    if served.model.users is not None:
        keys = f", {len(served.user_vocabulary):,} keys" if served.user_vocabulary else ", no keys"
        table.add_row("users", f"{served.model.users.count:,}{keys}")
    if served.model.history_types is not None:
        keys = f", {len(served.type_vocabulary):,} keys" if served.type_vocabulary else ", no keys"
        table.add_row("types of events", f"{served.model.history_types.count:,}{keys}")
    if served.model.features:
        table.add_row("features", ", ".join(_described(feature, served) for feature in served.model.features))
    table.add_row("fallback list", f"{len(served.fallback):,} items" if served.fallback else "none")
    for seen in served.measured:
        table.add_row(f"{seen.rows} rows × {seen.cells // seen.rows} items", f"{seen.seconds * 1e3:.2f} ms")
    Console().print(table, highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of cards."""
    facts = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Card.model_json_schema()}
    typer.echo(json.dumps(facts, indent=2))


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A model file with its card, or a version's folder.")],
    *,
    name: Annotated[str | None, typer.Option(help="The registered model; by default the card's name.")] = None,
    alias: Annotated[str | None, typer.Option(help="Promote the new version to this alias.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric of its training, as recall=0.31.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag, as team=search.")] = None,
    description: Annotated[str, typer.Option(help="What is new in it.")] = "",
    registry: RegistryUri = None,
    as_json: Json = False,
) -> None:
    """Try a version, publish it to the registry with its card, and promote it if an alias is given."""
    metrics = {key: _number(key, value) for key, value in _pairs(metric, "--metric").items()}
    tags = _pairs(tag, "--tag")
    with _told():
        settings = _settings(registry)
        artifact = _artifact(settings, model)
        served, _ = _try(settings, artifact)
        opened = _registry(registry)
        with files_of(artifact) as files, _bar("uploading") as progress:
            if artifact.card is None:
                raise AssertionError("files_of has seen the card")
            pushed = opened.push(
                name or artifact.card.name,
                files,
                artifact.card,
                write_description=lambda path, run_id: write_mlmodel(path, run_id, artifact, served.abilities),
                metrics=metrics,
                tags=tags,
                description=description,
                progress=progress,
            )
        before = opened.promote(pushed.name, pushed.version, alias) if alias else None
    if as_json:
        _print({**_facts(pushed), "aliases": [alias] if alias else [], "before": before})
        return
    typer.echo(f"{pushed.label} is registered in {opened.address}")
    if alias:
        _say_promoted(pushed.name, alias, before, pushed.version)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    version: Annotated[str, typer.Argument(help="The version to promote.")],
    *,
    alias: Alias = "champion",
    registry: RegistryUri = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version: every server that follows the alias serves it within seconds."""
    with _told():
        before = _registry(registry).promote(name, version, alias)
    if as_json:
        _print({"name": name, "alias": alias, "before": before, "version": version})
    else:
        _say_promoted(name, alias, before, version)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    *,
    alias: Alias = "champion",
    registry: RegistryUri = None,
    as_json: Json = False,
) -> None:
    """Point an alias at the version that it had before the last promotion."""
    with _told():
        before, version = _registry(registry).roll_back(name, alias)
    if as_json:
        _print({"name": name, "alias": alias, "before": before, "version": version})
    else:
        _say_promoted(name, alias, before, version)


def _described(feature: Feature, version: Version) -> str:
    """A feature with the number of its strings, and whether requests must name it."""
    tokens = version.tokens.get(feature.name)
    told = [] if tokens is None else [f"{len(tokens.vocabulary):,} tokens"]
    told += ["needed"] if feature.default is None else []
    return f"{feature.name} ({', '.join(told)})" if told else feature.name


def _try(settings: Settings, artifact: Artifact) -> tuple[Version, Proof]:
    """Load a version as the server would, and end it again. Raises StartError if it may not serve."""

    async def main() -> tuple[Version, Proof]:
        served = await loader(settings).load(artifact)
        await served.batcher.close()
        served.close_engine()
        return served, Proof.of(served, artifact)

    return run(logged(settings, main(), level="warning"))


def _artifact(settings: Settings, model: str) -> Artifact:
    """Read a word of the command line: a folder with a card in it, else a reference."""
    with _bar("downloading") as progress:
        return fetch_model(settings.models, model, progress)


def _registry(uri: str | None) -> Registry:
    return open_registry(_settings(uri).models)


def _settings(registry: str | None) -> Settings:
    return Settings.load({"registry_uri": registry})


@contextmanager
def _told() -> Iterator[None]:
    """A refusal ends the process with its sentence."""
    try:
        yield
    except StartError as error:
        fail(str(error), 2)


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _facts(registered: Registered) -> dict[str, Any]:
    return {
        "name": registered.name,
        "version": registered.version,
        "aliases": list(registered.aliases),
        "created": registered.created.isoformat(),
        "description": registered.description,
        "tags": dict(registered.tags),
        "run_id": registered.run_id,
    }


def _is_ours(tag: str) -> bool:
    return tag.startswith("recommender.")


def _say_promoted(name: str, alias: str, before: str | None, version: str) -> None:
    was = f", which stood for version {before}," if before and before != version else ""
    typer.echo(f"{name}@{alias}{was} stands for version {version}")


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for each in given or ():
        key, sign, value = each.partition("=")
        if not (key and sign):
            raise typer.BadParameter(f"{each!r} is not of the form key=value", param_hint=option)
        pairs[key] = value
    return pairs


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"{key}={value} is no number", param_hint="--metric") from None


def _print(facts: object) -> None:
    typer.echo(json.dumps(facts, indent=2))
