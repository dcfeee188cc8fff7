"""Write the messages, fields and methods of tritonclient's protos as JSON: names with their numbers and types."""

from __future__ import annotations

import json
import sys
from typing import Any

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2


def messages(found: Any, within: str) -> dict[str, Any]:
    """Each message's fields, by its full name."""
    told = {}
    for message in found:
        name = f"{within}.{message.name}"
        told[name] = {
            field.name: [field.number, field.label, field.type, field.type_name, field.HasField("oneof_index")]
            for field in message.field
        }
        told |= messages(message.nested_type, name)
    return told


def main() -> None:
    """Write all of it."""
    told: dict[str, Any] = {"messages": {}, "methods": {}, "enums": {}}
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        told["messages"] |= messages(file.message_type, f".{file.package}")
        told["enums"] |= {enum.name: {value.name: value.number for value in enum.value} for enum in file.enum_type}
        for service in file.service:
            for method in service.method:
                told["methods"][f"{file.package}.{service.name}/{method.name}"] = [
                    method.input_type,
                    method.output_type,
                    method.client_streaming,
                    method.server_streaming,
                ]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
