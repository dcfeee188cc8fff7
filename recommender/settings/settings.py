"""All settings: one frozen group for each reader, flat keys in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from recommender.errors import SettingsError
from recommender.settings.catalogue import CatalogueSettings
from recommender.settings.engine import EngineSettings
from recommender.settings.environment import key_of, text_of
from recommender.settings.group import Group
from recommender.settings.masking import masked
from recommender.settings.models import ModelSettings
from recommender.settings.network import NetworkSettings
from recommender.settings.operations import OperationSettings
from recommender.settings.requests import RequestSettings
from recommender.settings.sources import FIELDS, read

GROUPS: Mapping[str, type[Group]] = {
    "network": NetworkSettings,
    "models": ModelSettings,
    "engine": EngineSettings,
    "requests": RequestSettings,
    "catalogue": CatalogueSettings,
    "operations": OperationSettings,
}
_GROUP_OF = {name: group for group, kind in GROUPS.items() for name in kind.model_fields}
"""The group of each setting. Names are unique across groups."""
_NOT_BEHIND_ENVOY = ("workers", "min_ping_interval_ms", "max_connection_age_grace_ms")
"""What Envoy cannot hold is refused rather than ignored."""


class Settings(BaseModel):
    """All settings of a server; frozen, checked at the start.

    Takes groups, or single settings by field name: `Settings(port=0)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkSettings = NetworkSettings()
    models: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    requests: RequestSettings = RequestSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    operations: OperationSettings = OperationSettings()

    def __init__(self, **values: object) -> None:
        super().__init__(**values)

    @classmethod
    def load(cls, overrides: Mapping[str, object] | None = None) -> Settings:
        """Read all sources; `overrides`, by field name, win over them.

        Raises SettingsError on an unknown RECOMMENDER_ key, a value that a setting cannot have, or a source that
        cannot be read.
        """
        return cls(**read({name: value for name, value in (overrides or {}).items() if value is not None}))

    def replace(self, **values: object) -> Settings:
        """Copy with other values of these settings, by field name."""
        return Settings(**{**self._flat(), **values})

    def environment(self) -> dict[str, str]:
        """Every setting by its key, for the environment of child processes: they need no file then."""
        return {key_of(name): text_of(value) for name, value in self._flat().items()}

    def shown(self) -> dict[str, str]:
        """As `environment`, names and passwords in addresses masked: for the log and `recommender config`."""
        return {key: masked(text) for key, text in self.environment().items()}

    def changed(self) -> dict[str, str]:
        """The settings that differ from their defaults, as `shown` has them."""
        shown, defaults = self.shown(), Settings().shown()
        return {key: text for key, text in shown.items() if text != defaults[key]}

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
        self.catalogue.check_beside(self.network)
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
