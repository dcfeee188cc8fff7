"""An MLflow registry: what there is, what is promoted, and the files of a version, there and back."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from recommender.errors import ModelError, SourceError
from recommender.models.card import CARD_NAME, Card, file_sha256
from recommender.models.sources.source import Progress
from recommender.settings.masking import masked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CARD_TAG, MODEL_TAG, CARD_VERSION_TAG = "recommender.card_sha256", "recommender.sha256", "recommender.card_version"
_PREVIOUS_TAG = "recommender.previous."
_ARTIFACT = "model"
_LONGEST_TRAIL = 20
_REPORT_SECONDS = 0.5
_DEFAULTS = {
    # MLflow retries for minutes; the caller here retries too, and reports meanwhile.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own settings where the environment has none: it reads them there and nowhere else."""
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_UNKNOWN = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a model in the registry."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    source: str
    run_id: str
    created: datetime
    description: str

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class Registry:
    """The registry at a tracking URI. Every method blocks.

    They raise ModelError if what they are asked for is not there, and SourceError if the registry cannot be asked.
    """

    def __init__(self, uri: str) -> None:
        for key, value in _DEFAULTS.items():
            os.environ.setdefault(key, value)
        try:
            from mlflow import MlflowClient  # noqa: PLC0415 (slow, and optional)
        except ModuleNotFoundError as error:
            raise ModelError(
                f"a registry needs {error.name}, which is not installed: install recommender[mlflow]"
            ) from error
        self.address = masked(uri)
        """The URI without its name and password, for messages."""
        self._uri = uri
        with _translated(f"{self.address} is not a registry"):
            self._client = MlflowClient(uri, uri)

    def close(self) -> None:
        """Nothing to end."""

    def version(self, name: str, version: str) -> Registered:
        """A version by its number."""
        with _translated(f"{self.address} has no version {version} of a model {name!r}"):
            return _registered(self._client.get_model_version(name, version))

    def by_alias(self, name: str, alias: str) -> Registered:
        """The version of an alias."""
        with _translated(f"{self.address} has no model {name!r} with the alias {alias!r}"):
            return _registered(self._client.get_model_version_by_alias(name, alias))

    def names(self) -> list[str]:
        """Every registered model."""
        with _translated(f"{self.address} has no models"):
            return [model.name for model in self._client.search_registered_models(max_results=1000)]

    def versions(self, name: str) -> list[Registered]:
        """The versions of a model with their aliases, the newest first."""
        quoted = name.replace("'", "\\'")
        with _translated(f"{self.address} has no model {name!r}"):
            model = self._client.get_registered_model(name)
            found = [_registered(each) for each in self._client.search_model_versions(f"name='{quoted}'")]
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        found = [
            Registered(
                each.name,
                each.version,
                tuple(sorted(aliases.get(each.version, ()))),
                each.tags,
                each.source,
                each.run_id,
                each.created,
                each.description,
            )
            for each in found
        ]
        return sorted(found, key=lambda each: int(each.version), reverse=True)

    def metrics(self, registered: Registered) -> Mapping[str, float]:
        """The metrics of the run that a version comes from; empty if the run is gone."""
        if not registered.run_id:
            return {}
        with contextlib.suppress(ModelError), _translated("the run is gone"):
            return dict(self._client.get_run(registered.run_id).data.metrics)
        return {}

    def download(self, registered: Registered, folder: Path, progress: Progress, *, only: str | None = None) -> None:
        """Put the files of a version into a folder; `only` one of them, if it is named."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

        with _translated(f"{self.address} has no files of {registered.label}"):
            uri = self._client.get_model_version_download_uri(registered.name, registered.version)
            files = get_artifact_repository(uri, tracking_uri=self._uri, registry_uri=self._uri)
            there = [each for each in files.list_artifacts() if not each.is_dir and only in (None, each.path)]
            if not any(each.path == CARD_NAME for each in there):
                raise ModelError(
                    f"{registered.label} in {self.address} has no {CARD_NAME}: publish it with "
                    "`recommender models push`"
                )
            with _reporting(folder, sum(each.file_size or 0 for each in there), progress):
                for each in there:
                    files.download_artifacts(each.path, str(folder))  # type: ignore[no-untyped-call]

    def push(
        self,
        name: str,
        files: Sequence[Path],
        card: Card,
        *,
        write_description: Callable[[Path, str], None],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        description: str,
        progress: Progress,
    ) -> Registered:
        """Log files and card as a model of a new run, and register it as the next version.

        The files' names are those in the card; the card itself is `card.json`. `write_description` puts MLflow's own
        into a file, given the id of the run.
        """
        with _translated(f"{self.address} cannot take {name!r}"):
            client = self._client
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
            run = client.create_run(experiment_id, run_name=f"{name} {card.version}", tags=dict(tags))
            run_id = str(run.info.run_id)
            try:
                for key in ("network", "items", "embedding_size", "default_k", "max_k", "longest_history"):
                    client.log_param(run_id, key, getattr(card, key))
                for key, value in metrics.items():
                    client.log_metric(run_id, key, value)
                total, done = sum(file.stat().st_size for file in files), 0
                for file in files:
                    client.log_artifact(run_id, str(file), _ARTIFACT)
                    done += file.stat().st_size
                    progress(done, total)
                with _folder_for("MLmodel") as path:
                    write_description(path, run_id)
                    client.log_artifact(run_id, str(path), _ARTIFACT)
            except BaseException:
                client.set_terminated(run_id, "FAILED")
                raise
            client.set_terminated(run_id)
            with contextlib.suppress(ModelError), _translated("it is there already", {"RESOURCE_ALREADY_EXISTS"}):
                client.create_registered_model(name)
            known = {
                CARD_TAG: file_sha256(next(file for file in files if file.name == CARD_NAME)),
                MODEL_TAG: next(file.sha256 for file in card.files if file.role == "model"),
                CARD_VERSION_TAG: card.version,
            }
            version = client.create_model_version(
                name,
                f"{run.info.artifact_uri}/{_ARTIFACT}",
                run_id,
                tags={**tags, **known},
                description=description,
                await_creation_for=0,
            )
            return _registered(version)

    def promote(self, name: str, version: str, alias: str) -> str | None:
        """Point an alias at a version; returns the previous version, or None."""
        wanted = self.version(name, version)
        before = self._version_of(name, alias)
        if before == wanted.version:
            return before
        trail = [before, *self._trail(name, alias)] if before is not None else self._trail(name, alias)
        self._set(name, alias, wanted.version, trail)
        return before

    def roll_back(self, name: str, alias: str) -> tuple[str, str]:
        """Point an alias at its previous version; returns the version before and after the call.

        The previous version is the one that `promote` replaced, or else the next lower one.
        """
        current = self.by_alias(name, alias).version
        trail = self._trail(name, alias)
        there = {each.version for each in self.versions(name)}
        trail = [version for version in trail if version in there and version != current]
        if not trail:
            trail = [version for version in sorted(there, key=int, reverse=True) if int(version) < int(current)]
        if not trail:
            raise ModelError(f"{name}@{alias} stands for version {current}, and there is no version before it")
        self._set(name, alias, trail[0], trail[1:])
        return current, trail[0]

    def _set(self, name: str, alias: str, version: str, trail: Sequence[str]) -> None:
        with _translated(f"{self.address} has no version {version} of a model {name!r}"):
            self._client.set_registered_model_alias(name, alias, version)
            self._client.set_registered_model_tag(name, _PREVIOUS_TAG + alias, ",".join(trail[:_LONGEST_TRAIL]))

    def _version_of(self, name: str, alias: str) -> str | None:
        with contextlib.suppress(ModelError):
            return self.by_alias(name, alias).version
        return None

    def _trail(self, name: str, alias: str) -> list[str]:
        """The versions that an alias stood for, the last first."""
        with _translated(f"{self.address} has no model {name!r}"):
            tags = self._client.get_registered_model(name).tags
        return [version for version in tags.get(_PREVIOUS_TAG + alias, "").split(",") if version]


@contextlib.contextmanager
def _translated(missing: str, unknown: frozenset[str] | set[str] = _UNKNOWN) -> Iterator[None]:
    """MLflow's errors as ours: ModelError saying what is `missing`, SourceError for everything else."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415 (MLflow's)

    try:
        yield
    except MlflowException as error:
        if error.error_code in unknown:
            raise ModelError(missing) from error
        raise SourceError(f"the registry cannot be asked: {_cause(error)}") from error
    except ModuleNotFoundError as error:
        hint = "install recommender[s3]" if error.name in ("boto3", "botocore") else "install it"
        raise ModelError(
            f"where the registry keeps its files needs {error.name}, which is not installed: {hint}, or let the "
            "registry serve its files itself"
        ) from error
    except Exception as error:
        if not isinstance(error, (RequestException, OSError, *_errors_of_s3())):
            raise
        if isinstance(error, OSError) and error.errno in _DISK:
            raise  # the cache's, which says what to do about it
        raise SourceError(f"the registry cannot be asked: {_cause(error)}") from error


def _errors_of_s3() -> tuple[type[Exception], ...]:
    """Errors of S3's library; empty if it is not installed."""
    try:
        from boto3.exceptions import Boto3Error  # noqa: PLC0415 (slow, and optional)
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ModuleNotFoundError:
        return ()
    return Boto3Error, BotoCoreError, ClientError


@contextlib.contextmanager
def _reporting(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report a download by the size of its files: the stores' clients report in different ways."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(_REPORT_SECONDS):
            progress(_size(folder), total)

    thread = threading.Thread(target=report, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(total, total)


def _size(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    return size


@contextlib.contextmanager
def _folder_for(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def _registered(version: ModelVersion) -> Registered:
    return Registered(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(version.aliases or ())),
        tags=dict(version.tags or {}),
        source=version.source or "",
        run_id=version.run_id or "",
        created=datetime.fromtimestamp((version.creation_timestamp or 0) / 1e3, UTC),
        description=version.description or "",
    )


def _cause(error: BaseException) -> str:
    """The root cause of an error, in one line: the layers above it say where it occurred, not why.

    MLflow's own texts hold the URI with its password, so names and passwords are masked.
    """
    text = masked(str(error))
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
    return (text.strip() or type(error).__name__).splitlines()[0][:300]
