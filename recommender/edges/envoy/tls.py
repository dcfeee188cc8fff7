"""Certificates for Envoy, as files of its secret discovery service; it reloads them when they are replaced.

Private keys are not in these files but in memory, as anonymous files that end with their processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from recommender.security.certificates import Certificates

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 (a type's name)
_CERTIFICATE, _AUTHORITIES = "certificate", "authorities"


def write_secrets(folder: Path, certificates: Certificates) -> int | None:
    """Write the certificates for Envoy, each file atomically and readable by this user only.

    Returns the descriptor of the key, by which Envoy reads it: it must be open in Envoy's process while this key is
    in use. None where the system has no anonymous files; there the key is in the folder.
    """
    key = _in_memory(certificates.key)
    chain = {
        "certificate_chain": _inline(certificates.chain),
        "private_key": _inline(certificates.key) if key is None else {"filename": f"/dev/fd/{key}"},
    }
    _write(folder, _CERTIFICATE, {"tls_certificate": chain})
    if certificates.client_authorities is not None:
        authorities = {"trusted_ca": _inline(certificates.client_authorities)}
        _write(folder, _AUTHORITIES, {"validation_context": authorities})
    return key


def tls_context(folder: Path, *, clients: bool) -> dict[str, object]:
    """Build the TLS context of Envoy's listener from these files; `clients` demands client certificates."""
    context: dict[str, object] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [_source(folder, _CERTIFICATE)],
    }
    if clients:
        context["validation_context_sds_secret_config"] = _source(folder, _AUTHORITIES)
    return context


def _source(folder: Path, name: str) -> dict[str, object]:
    path = str(folder / f"{name}.json")
    return {"name": name, "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"}}


def _in_memory(content: bytes) -> int | None:
    """The descriptor of a new anonymous file with this content; None where the system has no such files."""
    if sys.platform != "linux":
        return None
    descriptor = os.memfd_create("key")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def _inline(pem: bytes) -> dict[str, str]:
    return {"inline_string": pem.decode("ascii")}


def _write(folder: Path, name: str, secret: dict[str, object]) -> None:
    text = json.dumps({"resources": [{"@type": _SECRET, "name": name, **secret}]})
    new = folder / f"{name}.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    new.rename(folder / f"{name}.json")
