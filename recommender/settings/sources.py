"""Sources of settings, as pydantic-settings reads them, and what is refused in them."""

from __future__ import annotations

import difflib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pydantic_settings
from dotenv.parser import parse_stream
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from recommender.errors import SettingsError
from recommender.settings.catalogue import CatalogueSettings
from recommender.settings.engine import EngineSettings
from recommender.settings.environment import PREFIX, key_of, text_of
from recommender.settings.models import ModelSettings
from recommender.settings.network import NetworkSettings
from recommender.settings.operations import OperationSettings
from recommender.settings.requests import RequestSettings

_NAMES_OF_SOURCES = ("config_file", "secrets_dir")
"""Not taken from the files that they lead to, nor from others."""
_CONFIG_FILES = {
    ".toml": TomlConfigSettingsSource,
    ".yaml": YamlConfigSettingsSource,
    ".yml": YamlConfigSettingsSource,
}
_MASK = "**********"
_SERVICE_LINKS = (
    "Kubernetes sets such variables for a Service named `recommender`: set `enableServiceLinks: false` in the pod"
)


# Pydantic orders fields by the bases from the last to the first.
class Flat(
    OperationSettings, CatalogueSettings, RequestSettings, EngineSettings, ModelSettings, NetworkSettings, BaseSettings
):
    """Every setting by its flat key, read from all sources."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the most particular first."""
        return init_settings, *(place.source for place in _places(init_settings()))

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: dict[str, object]) -> dict[str, object]:
        """Strip texts; an empty value is the default, also where a source further down has another."""
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if name not in FIELDS or value not in ("", None)}


FIELDS: Mapping[str, FieldInfo] = Flat.model_fields
"""Every setting by its field name, in the order of the pages."""


def read(given: Mapping[str, object]) -> dict[str, object]:
    """Read the settings that stand anywhere, by field name; `given` wins.

    Raises SettingsError on an unknown RECOMMENDER_ key, on a value that a setting cannot have, and on a source that
    cannot be read. Raises ValueError if `given` names no setting.
    """
    try:
        with warnings.catch_warnings():
            # pydantic-settings warns of a secret that it leaves out.
            warnings.simplefilter("error", UserWarning)
            try:
                settings = Flat(**given)  # type: ignore[arg-type] # no name is one of the library's own options
            except ValidationError as error:
                raise SettingsError(_faults(error, given)) from error
    except pydantic_settings.SettingsError as error:
        raise SettingsError(str(error.__cause__ or error)) from error
    return settings.model_dump(exclude_unset=True)


class _Place(NamedTuple):
    """A source and its name; `prefix` begins each key in it."""

    name: str
    source: PydanticBaseSettingsSource
    prefix: str = PREFIX

    def spelled(self, field: str) -> str:
        return key_of(field) if self.prefix else field

    def entry(self, field: str, value: object) -> str:
        """An entry of the source as a sentence names it; secrets are masked."""
        shown = _MASK if isinstance(self.source, _Secrets) else "" if value is None else value
        return f"{self.spelled(field)}={shown!r} in {self.name}"


class _Environment(EnvSettingsSource):
    """The environment, with the keys that are no settings: the library passes over them."""

    def __call__(self) -> dict[str, object]:
        prefix = PREFIX.lower()
        return {key.removeprefix(prefix): value for key, value in self.env_vars.items() if key.startswith(prefix)}


class _Secrets(SecretsSettingsSource):
    """Regular files of a folder that are named RECOMMENDER_…, unknown settings included."""

    @classmethod
    def find_case_path(cls, dir_path: Path, file_name: str, case_sensitive: bool) -> Path | None:  # noqa: ARG003, FBT001
        path = dir_path / file_name.upper()
        return path if path.is_file() else None

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        try:
            return super().get_field_value(field, field_name)
        except (OSError, UnicodeDecodeError, UserWarning) as error:
            raise SettingsError(
                f"{key_of(field_name)} in {self.secrets_dir} cannot be read: {error}; it must be a file of UTF-8 text, "
                "readable for this user"
            ) from error

    def __call__(self) -> dict[str, object]:
        files = (path for path in Path(str(self.secrets_dir)).glob(f"{PREFIX}*") if path.is_file())
        return {path.name.removeprefix(PREFIX).lower(): _MASK for path in files} | super().__call__()


def _places(given: Mapping[str, object]) -> list[_Place]:
    """The sources below the command line, the most particular first. Raises SettingsError if one cannot be read."""
    environment = _Environment(Flat)
    values = environment()
    if values.keys() >= FIELDS.keys():
        # Nothing is left to files: children of a server get every setting, and read none again.
        return [_Place("the environment", environment)]
    file, folder = (
        text_of(given.get(name) or values.get(name)).strip() or FIELDS[name].default for name in _NAMES_OF_SOURCES
    )
    files = [_env_file(".env")]
    secrets = Path(folder).expanduser()
    if secrets.is_dir():
        files.append(_Place(str(folder), _Secrets(Flat, secrets)))
    elif secrets.exists():
        raise SettingsError(f"RECOMMENDER_SECRETS_DIR={folder} is not a folder")
    elif secrets != FIELDS["secrets_dir"].default:
        raise SettingsError(f"RECOMMENDER_SECRETS_DIR={folder} does not exist: make it, or leave the setting empty")
    if file is not None:
        files.append(_config_file(Path(file)))
    files.append(_env_file(".env.dev"))
    for place in files:
        held = place.source()
        for name in _NAMES_OF_SOURCES:
            if text_of(held.get(name)) not in ("", text_of(FIELDS[name].default)):
                raise SettingsError(
                    f"{place.entry(name, held[name])} cannot be used: it names a source of "
                    "settings, and is taken from the command line and the environment only"
                )
    return [_Place("the environment", environment), *files]


def _env_file(name: str) -> _Place:
    """A `.env` file. pydantic-settings would leave out what is no file, and lines that are not KEY=value."""
    path = Path(name)
    try:
        if path.exists() and not path.is_fifo():
            for binding in parse_stream(io.StringIO(path.read_text(encoding="utf-8-sig"))):
                if binding.error:
                    raise SettingsError(
                        f"{name}, line {binding.original.line}, is not KEY=value; correct it, or start it with a #"
                    )
        source = DotEnvSettingsSource(Flat, path, env_file_encoding="utf-8-sig", dotenv_filtering="match_prefix")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name} cannot be read: {error}; it must be UTF-8 text, as .env.template is, and readable for this user"
        ) from error
    return _Place(name, source)


def _config_file(path: Path) -> _Place:
    """A TOML or YAML file. pydantic-settings would leave out what is no file."""
    kind = _CONFIG_FILES.get(path.suffix.lower())
    if kind is None or not path.expanduser().is_file():
        raise SettingsError(
            f"RECOMMENDER_CONFIG_FILE={path} cannot be used: it must be a file whose name ends in "
            f"{', '.join(_CONFIG_FILES)}"
        )
    try:
        return _Place(str(path), kind(Flat, path), prefix="")
    except Exception as error:
        # PyYAML, which raises its own errors, is imported for YAML files only.
        shapeless = type(error) in {AttributeError, TypeError, ValueError}
        reason = "it does not hold values by name" if shapeless else " ".join(str(error).split())
        example = "port = 50051" if kind is TomlConfigSettingsSource else "port: 50051"
        raise SettingsError(
            f"RECOMMENDER_CONFIG_FILE={path} cannot be read: {reason}; it must be UTF-8 text with lines as `{example}`"
        ) from error


def _faults(error: ValidationError, given: Mapping[str, object]) -> str:
    """Say each fault by its key, its value, its origin and what would do.

    Raises ValueError if `given` names no setting.
    """
    if wrong := given.keys() - FIELDS.keys():
        raise ValueError(f"no setting has the name {min(wrong)!r}") from error
    places = _places(given)
    sentences = []
    for fault in error.errors(include_url=False):
        name, value = str(fault["loc"][0]), fault["input"]
        place = next((place for place in places if name not in given and name in place.source()), None)
        entry = f"{key_of(name)}={value!r}" if place is None else place.entry(name, value)
        if name in FIELDS or place is None:
            sentence = f"{entry} cannot be used: {fault['msg'][:1].lower()}{fault['msg'][1:]}."
        elif isinstance(value, dict):
            sentence = f"{entry} is a table: put settings at the top of the file, outside tables."
        else:
            sentence = f"{entry} is not a setting; the nearest is {place.spelled(_nearest(name))}. "
            sentence += "`recommender config` lists them all."
        if str(value).startswith(("tcp://", "udp://")) or (name not in FIELDS and "_service_" in f"_{name}"):
            sentence += f" {_SERVICE_LINKS}."
        sentences.append(sentence)
    return " ".join(sentences)


def _nearest(name: str) -> str:
    """The setting with the most similar name."""
    name = name.lower().removeprefix(PREFIX.lower())
    return difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
