"""Base of the groups of settings."""

from __future__ import annotations

from typing import Literal, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Group(BaseModel):
    """Settings that one part of the server reads; frozen. Enumerations are taken in any case.

    The string below a field is its description on the pages. Pydantic would read the sources at each start for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _lower_enumeration(cls, value: object, info: ValidationInfo) -> object:
        enumerated = get_origin(cls.model_fields[info.field_name or ""].annotation) is Literal
        return value.lower() if enumerated and isinstance(value, str) else value
