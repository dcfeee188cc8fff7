"""Certificates for tests, from an authority that each test makes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import grpc
import trustme


class Authority:
    """Signs certificates of servers at 127.0.0.1 and of clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def write_server(self, folder: Path, *names: str, expires: datetime | None = None) -> dict[str, Path]:
        """Write a new certificate and key into a folder, as settings by field name; replaces existing ones."""
        made = self._ca.issue_cert("127.0.0.1", "localhost", *names, not_after=expires)
        files = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}
        files["tls_certificate"].write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        files["tls_key"].write_bytes(made.private_key_pem.bytes())
        return files

    def write_pem(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path

    def client_credentials(
        self, trusts: Authority | None = None, *, expires: datetime | None = None
    ) -> grpc.ChannelCredentials:
        """A client with a certificate of this authority, which trusts servers of another one (or of this)."""
        made = self._ca.issue_cert("client.test", not_after=expires)
        chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
        return grpc.ssl_channel_credentials((trusts or self).pem, made.private_key_pem.bytes(), chain)
