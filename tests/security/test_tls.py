"""TLS and mutual TLS on a real port: accepted and refused callers, and certificates that are replaced meanwhile."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from recommender.client import Client, Recommendations
from recommender.errors import SettingsError, StartError
from recommender.server.server import Server
from recommender.settings.settings import Settings
from tests.support.certificates import Authority
from tests.support.facts import FACTS
from tests.support.process import running
from tests.support.serving import AnyServer, Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
KNOWN = FACTS[0,]


async def ask(server: AnyServer, credentials: grpc.ChannelCredentials | None) -> Recommendations:
    async with Client(f"127.0.0.1:{server.port}", credentials=credentials) as client:
        return await client.recommend([0], timeout=TIMEOUT)


async def refused(server: AnyServer, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether such a client gets no connection at all."""
    channel = (
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        if credentials is None
        else grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials)
    )
    async with channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await method(b"", timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE
        return False


async def served_certificate(server: AnyServer, authority: Authority) -> bytes:
    """What the server proves itself with on a new connection."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def test_a_client_that_trusts_the_authority_gets_its_answer(serve: Serve, tmp_path: Path) -> None:
    authority = Authority()
    async with serve(**authority.write_server(tmp_path)) as server:
        answer = await ask(server, grpc.ssl_channel_credentials(authority.pem))

        assert list(answer.item_ids) == KNOWN


async def test_plaintext_and_strangers_authorities_get_no_connection(serve: Serve, tmp_path: Path) -> None:
    async with serve(**Authority().write_server(tmp_path)) as server:
        assert await refused(server, None)
        assert await refused(server, grpc.ssl_channel_credentials(Authority().pem))


def _commented(pem: bytes) -> bytes:
    return b"\xef\xbb\xbf" + "Bärbel's\r\n".encode("latin-1") + pem + "# Ωmega\n".encode()


async def test_comments_in_any_encoding_and_a_byte_order_mark_are_passed_over(serve: Serve, tmp_path: Path) -> None:
    authority = Authority()
    settings = authority.write_server(tmp_path)
    settings["tls_client_ca"] = authority.write_pem(tmp_path / "clients.pem")
    for path in settings.values():
        path.write_bytes(
            b"\xef\xbb\xbf" + path.read_bytes() if path.name == "server.key" else _commented(path.read_bytes())
        )
    async with serve(**settings) as server:
        answer = await ask(server, authority.client_credentials())

    assert list(answer.item_ids) == KNOWN


async def test_mutual_tls_lets_in_only_whom_the_clients_authority_has_signed(serve: Serve, tmp_path: Path) -> None:
    authority, clients = Authority(), Authority()
    settings = authority.write_server(tmp_path)
    async with serve(**settings, tls_client_ca=clients.write_pem(tmp_path / "clients.pem")) as server:
        answer = await ask(server, clients.client_credentials(trusts=authority))

        assert list(answer.item_ids) == KNOWN
        assert await refused(server, grpc.ssl_channel_credentials(authority.pem)), "without a certificate"
        assert await refused(server, authority.client_credentials()), "with one of another authority"
        yesterday = datetime.now(UTC) - timedelta(days=1)
        assert await refused(server, clients.client_credentials(trusts=authority, expires=yesterday)), "expired"


@pytest.mark.parametrize(
    ("version", "welcome"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:.*TLSv1_1.*:DeprecationWarning")
async def test_only_modern_versions_of_tls_are_spoken(
    serve: Serve,
    tmp_path: Path,
    version: ssl.TLSVersion,
    welcome: bool,  # noqa: FBT001
) -> None:
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    # The client is as lax as OpenSSL can be, so that the server refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with serve(**authority.write_server(tmp_path)) as server:
        connecting = asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        if not welcome:
            with pytest.raises((ssl.SSLError, ConnectionResetError)) as refused:
                await connecting
            # The server refused: a client would report that it has no protocol or cipher to offer.
            by_the_server = isinstance(refused.value, ConnectionResetError) or "ALERT" in str(refused.value)
            assert by_the_server, refused.value
            return
        _, writer = await connecting
        spoken = writer.get_extra_info("ssl_object").version()
        writer.close()
        assert spoken == version.name.replace("_", ".")


async def test_a_replaced_certificate_is_served_from_the_next_connection_on_and_open_ones_go_on(
    serve: Serve, tmp_path: Path
) -> None:
    authority = Authority()
    settings = authority.write_server(tmp_path)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    async with (
        serve(**settings, secrets_reload_ms=20) as server,
        Client(f"127.0.0.1:{server.port}", credentials=credentials) as client,
    ):
        await client.recommend([0], timeout=TIMEOUT)
        first = await served_certificate(server, authority)
        authority.write_server(tmp_path)
        async with asyncio.timeout(TIMEOUT):
            while await served_certificate(server, authority) == first:
                pass

        assert list((await client.recommend([0], timeout=TIMEOUT)).item_ids) == KNOWN


async def test_clients_of_a_former_authority_are_refused_once_it_is_replaced(serve: Serve, tmp_path: Path) -> None:
    authority, former, later = Authority(), Authority(), Authority()
    settings = authority.write_server(tmp_path)
    path = former.write_pem(tmp_path / "clients.pem")
    async with serve(**settings, tls_client_ca=path, secrets_reload_ms=20) as server:
        await ask(server, former.client_credentials(trusts=authority))
        later.write_pem(path)
        async with asyncio.timeout(TIMEOUT):
            while await refused(server, later.client_credentials(trusts=authority)):
                pass

        assert await refused(server, former.client_credentials(trusts=authority))


async def test_files_that_do_not_belong_together_are_not_taken_up(tmp_path: Path) -> None:
    authority = Authority()
    files = authority.write_server(tmp_path)
    settings = {f"RECOMMENDER_{name.upper()}": str(path) for name, path in files.items()}
    async with running(settings={**settings, "RECOMMENDER_SECRETS_RELOAD_MS": "20"}) as server:
        (tmp_path / "later").mkdir()
        later = authority.write_server(tmp_path / "later")
        files["tls_certificate"].write_bytes(later["tls_certificate"].read_bytes())
        complaint = await server.until("files not reloaded: the previous ones stay in use")
        assert "RECOMMENDER_TLS_KEY is not the key of" in complaint["reason"]

        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with Client(f"localhost:{server.port}", credentials=credentials) as client:
            assert list((await client.recommend([0], timeout=TIMEOUT)).item_ids) == KNOWN

        files["tls_key"].write_bytes(later["tls_key"].read_bytes())
        assert (await server.until("reloaded"))["what"] == "certificates"


def _expired(folder: Path) -> dict[str, Path]:
    from datetime import UTC, datetime  # noqa: PLC0415

    made = trustme.CA().issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    files = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}
    files["tls_certificate"].write_bytes(made.cert_chain_pems[0].bytes())
    files["tls_key"].write_bytes(made.private_key_pem.bytes())
    return files


def _other_key(folder: Path) -> dict[str, Path]:
    files = Authority().write_server(folder)
    key = files["tls_key"].read_bytes()
    Authority().write_server(folder)
    files["tls_key"].write_bytes(key)
    return files


def _no_certificate(folder: Path) -> dict[str, Path]:
    files = Authority().write_server(folder)
    files["tls_certificate"].write_text("no certificate", encoding="ascii")
    return files


def _no_key(folder: Path) -> dict[str, Path]:
    files = Authority().write_server(folder)
    files["tls_key"].write_text("no key", encoding="ascii")
    return files


def _odd_curve(folder: Path) -> dict[str, Path]:
    files = Authority().write_server(folder)
    key = ec.generate_private_key(ec.SECP256K1())
    files["tls_key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def _missing(folder: Path) -> dict[str, Path]:
    files = Authority().write_server(folder)
    files["tls_key"].unlink()
    return files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_expired, "expired on 2020-01-01"),
        (_other_key, "RECOMMENDER_TLS_KEY is not the key of the first certificate"),
        (_no_certificate, "RECOMMENDER_TLS_CERTIFICATE holds no certificate in PEM"),
        (_no_key, "RECOMMENDER_TLS_KEY holds no private key"),
        (_odd_curve, "RECOMMENDER_TLS_KEY is of a kind that no edge can use"),
        (_missing, r"server.key \(certificates\) cannot be read: No such file"),
    ],
)
async def test_certificates_that_cannot_be_used_stop_the_start(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(StartError, match=message):
        await Server(Settings(port=0, **make(tmp_path))).start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "recommender.example"])  # noqa: S104
def test_plaintext_beyond_this_machine_must_be_asked_for(host: str) -> None:
    with pytest.raises(SettingsError, match="RECOMMENDER_PLAINTEXT=true"):
        Settings(host=host)

    assert Settings(host=host, plaintext=True).network.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_may_speak_plaintext_to_itself(host: str) -> None:
    assert Settings(host=host).network.host == host


@pytest.mark.parametrize(
    "settings",
    [{"tls_certificate": "x"}, {"tls_key": "x"}, {"tls_client_ca": "x"}, {"tls_client_ca": "x", "tls_key": "x"}],
)
def test_half_of_a_tls_setup_stops_the_start(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        Settings.model_validate(settings)
