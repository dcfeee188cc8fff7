"""TLS certificates as files have them, checked before they are used: whole, belonging together, in date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from recommender.errors import StartError
from recommender.security.pem import CERTIFICATE, PRIVATE_KEY, pem_blocks

_SOON = timedelta(days=14)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Certificates:
    """A listener's key and certificate in PEM; with `client_authorities` it demands certificates of its callers."""

    key: bytes
    chain: bytes
    """The server's certificate first, then those between it and the authority."""
    client_authorities: bytes | None
    expiries: tuple[datetime | None, ...]
    """When each file that they were read from is no longer good; None for the key."""


def read_certificates(contents: Sequence[bytes]) -> Certificates:
    """Check a chain, its key and, if there is a third, the clients' authorities. Raises StartError."""
    chain, *rest = (pem_blocks(content, CERTIFICATE) for content in (contents[0], *contents[2:]))
    key = pem_blocks(contents[1], PRIVATE_KEY)
    chained = _certificates(chain, "RECOMMENDER_TLS_CERTIFICATE")
    leaf = chained[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StartError(
            "RECOMMENDER_TLS_KEY holds no private key in PEM that can be read without a password"
        ) from error
    if not _is_spoken(private):
        raise StartError(
            "RECOMMENDER_TLS_KEY is of a kind that no edge can use: make an RSA key, or one on the curve P-256, P-384 "
            "or P-521"
        )
    if private.public_key() != leaf.public_key():
        raise StartError("RECOMMENDER_TLS_KEY is not the key of the first certificate in RECOMMENDER_TLS_CERTIFICATE")
    authorities = [_certificates(pem, "RECOMMENDER_TLS_CLIENT_CA") for pem in rest]
    expires = leaf.not_valid_after_utc
    left = expires - datetime.now(UTC)
    if left < timedelta():
        raise StartError(f"the certificate in RECOMMENDER_TLS_CERTIFICATE expired on {expires:%Y-%m-%d %H:%M} UTC")
    if left < _SOON:
        log.warning("the certificate expires soon", expires=expires.isoformat())
    # A chain is as good as its first certificate to expire; of authorities one is enough.
    expiries = (
        min(each.not_valid_after_utc for each in chained),
        None,
        *(max(each.not_valid_after_utc for each in those) for those in authorities),
    )
    return Certificates(key, chain, rest[0] if rest else None, expiries)


def _is_spoken(key: PrivateKeyTypes) -> bool:
    """Whether the TLS library of the edges has this kind of key; gRPC would say that the port is in use."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.curve.name in _CURVES
    return isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)


def _certificates(pem: bytes, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StartError(f"{setting} holds no certificate in PEM") from error
