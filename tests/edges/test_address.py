"""Hosts, ports and targets: brackets, and which of them are this machine."""

from __future__ import annotations

import pytest

from recommender.edges.address import address_of, is_this_machine, url_of


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "localhost:1"),
        ("127.0.0.1", "127.0.0.1:1"),
        ("::1", "[::1]:1"),
        ("[::1]", "[::1]:1"),
        ("fe80::1%eth0", "[fe80::1%eth0]:1"),
    ],
)
def test_ipv6_addresses_have_brackets_once(host: str, address: str) -> None:
    assert address_of(host, 1) == address
    assert url_of(host, 1, "/metrics") == f"http://{address}/metrics"


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "shop.localhost:1",
        "127.0.0.1:1",
        "127.9.9.9:1",
        "ipv4:127.0.0.1:1",
        "[::1]:1",
        "ipv6:[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "0.0.0.0:1",
        "http://127.0.0.1:1/metrics",
        "http://[::1]:1/metrics",
    ],
)
def test_loopback_is_this_machine(target: str) -> None:
    assert is_this_machine(target)


@pytest.mark.parametrize(
    "target",
    ["shop:1", "10.0.0.1:1", "localhost.example:1", "dns:///shop:1", "[2001:db8::1]:1", "[::1", "http://shop/", ""],
)
def test_any_other_target_may_be_behind_a_proxy(target: str) -> None:
    assert not is_this_machine(target)
