"""Parsing a message, and holding it to the rules of its proto."""

from __future__ import annotations

from itertools import islice
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from protovalidate import Validator
from protovalidate import Violation as ProtoViolation

from recommender.api.wire import fields
from recommender.errors import InvalidRequestError, Violation, quoted
from recommender.recommend_api.validate import validate_pb2

_MOST_VIOLATIONS = 10
"""The largest status message, whatever the caller sent."""

_LOOKED_THROUGH = 64
"""Items of each list in which every violation is reported; of later ones only the first."""

_NAME = 80
"""Characters of a feature's name that are shown."""

M = TypeVar("M", bound=Message)


def decoded(kind: type[M], message: bytes) -> M:
    """Parse a message. Raises InvalidRequestError if it is malformed."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise malformed(kind) from error


def malformed(kind: type[Message]) -> InvalidRequestError:
    """The refusal of bytes that are no message of this kind."""
    name = kind.DESCRIPTOR.full_name
    return InvalidRequestError(Violation("", f"the message is not a {name}; generate the client from the proto"))


def check_few_fields(kind: type[Message], message: bytes, most: int) -> None:
    """Refuse a message of more than `most` fields before it is parsed: an empty one takes 90 times its bytes.

    Raises InvalidRequestError.
    """
    try:
        if next(islice(fields(message), most, None), None) is not None:
            name = kind.DESCRIPTOR.full_name
            raise InvalidRequestError(Violation("", f"a {name} may have {most} fields, and this has more"))
    except DecodeError as error:
        raise malformed(kind) from error


def validate(validator: Validator, message: Message) -> None:
    """Hold a message to the rules of its proto (buf.validate). Raises InvalidRequestError with what it breaks."""
    found = validator.collect_violations(message, fail_fast=True)
    if found:
        # To find all that is wrong with lists of thousands takes half a second.
        found = validator.collect_violations(_beginning(message)) or found
        raise InvalidRequestError(*(_violation(violation) for violation in found[:_MOST_VIOLATIONS]))


def _beginning(message: M) -> M:
    """Copy a message with the first items of its lists."""
    copied = type(message)()
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for name, each in islice(value.items(), _LOOKED_THROUGH):
                getattr(copied, field.name)[name].CopyFrom(_beginning(each))
        elif field.is_repeated:
            getattr(copied, field.name).extend(value[:_LOOKED_THROUGH])
        elif field.message_type is not None:
            getattr(copied, field.name).CopyFrom(_beginning(value))
        else:
            setattr(copied, field.name, value)
    return copied


def ceiling(kind: type[Message], field: str) -> int:
    """The largest value that the proto allows in an int32 field."""
    options = kind.DESCRIPTOR.fields_by_name[field].GetOptions()
    # The generator of these stubs calls an extension a plain descriptor.
    rules: validate_pb2.FieldRules = options.Extensions[validate_pb2.field]  # type: ignore[index]
    return rules.int32.lte


def _violation(found: ProtoViolation) -> Violation:
    field = ""
    for element in found.proto.field.elements if found.proto.field else ():
        field += f".{element.field_name}" if field else element.field_name
        if element.subscript is not None:
            field += f"[{_cut(str(element.subscript.value))}]"
    value = found.field_value
    description = found.proto.message
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        description += f", not {quoted(value)}"
    return Violation(field, description)


def _cut(name: str) -> str:
    """A name that a caller chose, cut: a status travels in headers."""
    return name if len(name) <= _NAME else f"{name[:_NAME]}…"
