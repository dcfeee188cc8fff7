"""All settings: one frozen group for each reader, flat keys in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from recommender.errors import SettingsError
from recommender.settings.engine import EngineSettings
from recommender.settings.environment import faults, key_of, read, text_of
from recommender.settings.models import ModelSettings
from recommender.settings.network import NetworkSettings
from recommender.settings.operations import OperationSettings
from recommender.settings.requests import RequestSettings

_GROUPS: Mapping[str, type[BaseModel]] = {
    "network": NetworkSettings,
    "models": ModelSettings,
    "engine": EngineSettings,
    "requests": RequestSettings,
    "operations": OperationSettings,
}
_ORDER = (
    ("network", "secrets_reload_ms"),
    ("models", "reload_timeout_ms"),
    ("engine", "max_backlog"),
    ("requests", "max_batch_requests"),
    ("network", "handshake_timeout_ms"),
    ("requests", "unknown_items"),
    ("network", "default_timeout_ms"),
    ("engine", "deduplicate"),
    ("operations", "log_format"),
)
"""The order on the pages: of each group the fields up to this one, from where it was left."""
_NOT_BEHIND_ENVOY = ("workers", "min_ping_interval_ms", "max_connection_age_grace_ms")
"""What Envoy cannot hold is refused rather than ignored."""


def _in_order() -> dict[str, str]:
    left = {group: iter(kind.model_fields) for group, kind in _GROUPS.items()}
    order: dict[str, str] = {}
    for group, last in _ORDER:
        for name in left[group]:
            order[name] = group
            if name == last:
                break
    return order


_GROUP_OF = _in_order()
FIELDS: Mapping[str, FieldInfo] = {name: _GROUPS[group].model_fields[name] for name, group in _GROUP_OF.items()}
"""Every setting by its field name, in the order of the pages. No name stands in two groups."""


class Settings(BaseModel):
    """What an operator can set; frozen, checked at the start.

    Takes groups, or single settings by field name: `Settings(port=0)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkSettings = NetworkSettings()
    models: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    requests: RequestSettings = RequestSettings()
    operations: OperationSettings = OperationSettings()

    def __init__(self, **values: object) -> None:
        super().__init__(**values)

    @classmethod
    def load(cls, overrides: Mapping[str, object] | None = None, folder: Path = Path()) -> Settings:
        """Read `.env.dev`, then `.env`, then the environment, then `overrides` by field name; the later wins.

        Raises SettingsError on an unknown RECOMMENDER_ key or a value that a setting cannot have.
        """
        values, origins = read(folder, FIELDS)
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        try:
            return cls.model_validate({**values, **given})
        except ValidationError as error:
            raise SettingsError(faults(error, origins)) from error

    def replace(self, **values: object) -> Settings:
        """Copy with other values of these settings, by field name."""
        return Settings(**{**self._flat(), **values})

    def environment(self) -> dict[str, str]:
        """Every setting by its key: for the log, `recommender config` and the environment of child processes."""
        return {key_of(name): text_of(value) for name, value in self._flat().items()}

    def changed(self) -> dict[str, str]:
        """The settings that differ from their defaults, as `environment` has them."""
        return {key_of(name): text_of(value) for name, value in self._flat().items() if value != FIELDS[name].default}

    @model_validator(mode="before")
    @classmethod
    def _distribute(cls, values: object) -> object:
        """Put single settings into their groups."""
        if not isinstance(values, Mapping):
            return values
        grouped: dict[str, object] = {}
        singles: dict[str, dict[str, object]] = {}
        for name, value in values.items():
            if name in _GROUP_OF:
                singles.setdefault(_GROUP_OF[name], {})[name] = value
            else:
                grouped[name] = value
        if both := grouped.keys() & singles.keys():
            raise ValueError(f"give the groups {sorted(both)} whole, or their settings by name, not both")
        return grouped | singles

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Hold settings against each other. Raises SettingsError, which pydantic lets through as it is."""
        self.network.check_combinations()
        if self.network.edge == "envoy":
            values = self._flat()
            for name in _NOT_BEHIND_ENVOY:
                value, default = values[name], FIELDS[name].default
                if value != default:
                    raise SettingsError(
                        f"{key_of(name)}={value} cannot be held with RECOMMENDER_EDGE=envoy, docs/edges.md says why: "
                        f"leave it at {default}, or set RECOMMENDER_EDGE=grpc"
                    )
        return self

    def _flat(self) -> dict[str, object]:
        """Every setting by its field name, in the order of the pages."""
        return {name: getattr(getattr(self, group), name) for name, group in _GROUP_OF.items()}
