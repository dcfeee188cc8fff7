"""Write docs/api-reference.md from the proto and its comments: `just docs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from recommender.recommend_api.validate import validate_pb2

DESCRIPTORS = Path(__file__).parents[2] / "recommender/recommend_api/v1/recommend_api.binpb"
PACKAGE = "recommend_api.v1"
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
"""Field numbers in FileDescriptorProto, and below those in the messages that they hold: what comments are found by."""
_FIELDS, _METHODS, _VALUES = 2, 2, 2

HEAD = """\
# API reference

Written by `just docs` from the proto; a check fails when it is out of date. [api.md](api.md) explains the calls.
A field's rules are those of `buf.validate`; a request that breaks one ends with INVALID_ARGUMENT.
"""


def page() -> str:
    """The page as Markdown: services first, then messages, then enumerations."""
    descriptors = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    files = [_File(file) for file in descriptors.file if file.package == PACKAGE]
    parts = [
        HEAD,
        *(_service(file, place, each) for file in files for place, each in enumerate(file.proto.service)),
        "## Messages\n",
        *(_message(file, place, each) for file in files for place, each in enumerate(file.proto.message_type)),
        "## Enumerations\n",
        *(_enumeration(file, place, each) for file in files for place, each in enumerate(file.proto.enum_type)),
    ]
    return "\n".join(parts)


class _File:
    """A file of the proto, with the comment before each of its declarations by their path in the descriptor."""

    def __init__(self, proto: FileDescriptorProto) -> None:
        self.proto = proto
        self._comments = {tuple(each.path): each.leading_comments for each in proto.source_code_info.location}

    def comment(self, *path: int) -> str:
        """The paragraphs of a comment, each on one line."""
        paragraphs = re.split(r"\n\s*\n", self._comments[path].strip())
        return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def cell(self, *path: int) -> str:
        """A comment for a cell of a table."""
        return self.comment(*path).replace("\n\n", " ").replace("|", "\\|")


def _service(file: _File, place: int, service: ServiceDescriptorProto) -> str:
    lines = [f"## {service.name}\n", file.comment(_SERVICES, place), ""]
    for number, method in enumerate(service.method):
        asks, answers = (
            f"{'stream of ' if stream else ''}{_linked(name)}"
            for stream, name in (
                (method.client_streaming, method.input_type),
                (method.server_streaming, method.output_type),
            )
        )
        lines += [f"### {method.name}\n", f"{asks} → {answers}\n", file.comment(_SERVICES, place, _METHODS, number), ""]
    return "\n".join(lines)


def _message(file: _File, place: int, message: DescriptorProto) -> str:
    rows = [
        (
            str(field.number),
            f"`{field.name}`",
            _type(field, message),
            file.cell(_MESSAGES, place, _FIELDS, number),
            _rules(field),
        )
        for number, field in enumerate(message.field)
    ]
    ruled: validate_pb2.MessageRules = message.options.Extensions[validate_pb2.message]  # type: ignore[index]
    either = [f"At most one of {' and '.join(f'`{name}`' for name in rule.fields)}.\n" for rule in ruled.oneof]
    table = [*_table(("number", "field", "type", "meaning", "rules"), rows)] if rows else ["It has no fields."]
    return "\n".join([f"### {message.name}\n", file.comment(_MESSAGES, place), "", *either, *table, ""])


def _enumeration(file: _File, place: int, enumeration: EnumDescriptorProto) -> str:
    rows = [
        (str(value.number), f"`{value.name}`", file.cell(_ENUMS, place, _VALUES, number))
        for number, value in enumerate(enumeration.value)
    ]
    table = _table(("number", "value", "meaning"), rows)
    return "\n".join([f"### {enumeration.name}\n", file.comment(_ENUMS, place), "", *table, ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entries = {f".{PACKAGE}.{message.name}.{nested.name}": nested for nested in message.nested_type}
    if field.type_name in entries:
        key, value = (_named(part) for part in entries[field.type_name].field)
        return f"map of {key} to {value}"
    named = _named(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {named}"
    if field.proto3_optional:
        return f"optional {named}"
    if field.HasField("oneof_index"):
        return f"{named}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return named


def _named(field: FieldDescriptorProto) -> str:
    return _linked(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()


def _linked(name: str) -> str:
    ours = name.removeprefix(f".{PACKAGE}.")
    return f"[{ours}](#{ours.lower()})" if ours != name else f"`{name.removeprefix('.')}`"


def _rules(field: FieldDescriptorProto) -> str:
    ruled: validate_pb2.FieldRules = field.options.Extensions[validate_pb2.field]  # type: ignore[index]
    rules = text_format.MessageToString(ruled, as_one_line=True)
    return f"`{rules.replace('|', chr(92) + '|')}`" if rules else ""


if __name__ == "__main__":
    sys.stdout.write(page())
