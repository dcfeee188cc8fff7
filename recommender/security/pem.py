"""PEM files as they occur in practice: with comments, byte-order marks and other blocks in between."""

from __future__ import annotations

import re
from typing import Final

CERTIFICATE: Final = b"CERTIFICATE"
PRIVATE_KEY: Final = b"PRIVATE KEY"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def pem_blocks(content: bytes, kind: bytes) -> bytes:
    """Return the blocks whose label ends in `kind`, without the text around them, at which libraries fail.

    Empty without any.
    """
    return b"".join(found[0] + b"\n" for found in _BLOCK.finditer(content) if found[1].endswith(kind))
