# ruff: noqa: INP001 (a script, not a package)
"""Write, to standard output, the descriptors of the protos that ours imports.

They come from installed packages, so that generating and linting need no network.
"""

from __future__ import annotations

import sys

from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.rpc import status_pb2
from protovalidate._gen.buf.validate import validate_pb

files = descriptor_pb2.FileDescriptorSet()
for module in (descriptor_pb2, any_pb2, duration_pb2, field_mask_pb2, timestamp_pb2, status_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary()))
sys.stdout.buffer.write(files.SerializeToString())
