"""The message that CEL libraries serialise syntax trees as, with the few fields that filters are read from.

The field numbers are those of https://github.com/google/cel-spec/blob/master/proto/cel/expr/syntax.proto.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "recommender.cel"
_Type = descriptor_pb2.FieldDescriptorProto
_BOOL, _INT64, _UINT64, _INT32 = _Type.TYPE_BOOL, _Type.TYPE_INT64, _Type.TYPE_UINT64, _Type.TYPE_INT32
_DOUBLE, _STRING, _BYTES = _Type.TYPE_DOUBLE, _Type.TYPE_STRING, _Type.TYPE_BYTES


@lru_cache(maxsize=1)
def parsed_expr() -> Any:  # noqa: ANN401 (protobuf makes the class while running)
    """The class of `ParsedExpr`."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    _add(file, "Ident", {"name": (1, _STRING)})
    _add(
        file,
        "Constant",
        kind={
            "null_value": (1, _INT64),
            "bool_value": (2, _BOOL),
            "int64_value": (3, _INT64),
            "uint64_value": (4, _UINT64),
            "double_value": (5, _DOUBLE),
            "string_value": (6, _STRING),
            "bytes_value": (7, _BYTES),
        },
    )
    _add(file, "Select", {"operand": (1, "Expr"), "field": (2, _STRING), "test_only": (3, _BOOL)})
    _add(file, "Call", {"target": (1, "Expr"), "function": (2, _STRING)}, repeated={"args": (3, "Expr")})
    _add(file, "Elements", repeated={"elements": (1, "Expr")})
    _add(file, "Other")
    _add(
        file,
        "Expr",
        {"id": (2, _INT64)},
        kind={
            "const_expr": (3, "Constant"),
            "ident_expr": (4, "Ident"),
            "select_expr": (5, "Select"),
            "call_expr": (6, "Call"),
            "list_expr": (7, "Elements"),
            "struct_expr": (8, "Other"),
            "comprehension_expr": (9, "Other"),
        },
    )
    source = _add(file, "SourceInfo", repeated={"positions": (4, "SourceInfo.PositionsEntry")})
    entry = source.nested_type.add(name="PositionsEntry")
    entry.options.map_entry = True
    _add_fields(entry, {"key": (1, _INT64), "value": (2, _INT32)})
    _add(file, "ParsedExpr", {"expr": (2, "Expr"), "source_info": (3, "SourceInfo")})
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ParsedExpr"))


_Fields = dict[str, tuple[int, "_Type.Type.ValueType | str"]]
"""A number and a type, or the name of a message, by the names of fields."""


def _add(
    file: descriptor_pb2.FileDescriptorProto,
    name: str,
    fields: _Fields | None = None,
    *,
    repeated: _Fields | None = None,
    kind: _Fields | None = None,
) -> descriptor_pb2.DescriptorProto:
    """Add a message; those of the fields `kind` exclude each other."""
    message = file.message_type.add(name=name)
    _add_fields(message, fields or {})
    _add_fields(message, repeated or {}, label=_Type.LABEL_REPEATED)
    if kind:
        message.oneof_decl.add(name="kind")
        for field in _add_fields(message, kind):
            field.oneof_index = 0
    return message


def _add_fields(
    message: descriptor_pb2.DescriptorProto, fields: _Fields, label: _Type.Label.ValueType = _Type.LABEL_OPTIONAL
) -> list[descriptor_pb2.FieldDescriptorProto]:
    added = []
    for name, (number, kind) in fields.items():
        field = message.field.add(name=name, number=number, label=label)
        if isinstance(kind, str):
            field.type, field.type_name = _Type.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            field.type = kind
        added.append(field)
    return added
