"""The policy itself: which addresses, which names, which programs; and how the place of a caller is told."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fine_tune_runner.policy.egress import (
    ALLOWED,
    CHILD,
    POLICY_VARIABLE,
    EgressPolicy,
    EgressRefused,
    policy_of,
)
from fine_tune_runner.settings import load_client, load_settings

SENSITIVE = EgressPolicy(sensitive=True)
OPEN = EgressPolicy(sensitive=False)
ALLOWED_ADDRESSES = (
    "127.0.0.1 127.255.255.254 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 "
    "::1 fc00::1 fdff::1 fe80::1 fe80::1%eth0 ::ffff:10.0.0.1 ::ffff:127.0.0.1"
).split()
REFUSED_ADDRESSES = (
    "192.0.2.1 8.8.8.8 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 169.254.169.254 0.0.0.0 "
    "255.255.255.255 224.0.0.251 2001:db8::1 fec0::1 ff02::1 :: ::ffff:192.0.2.1 ::10.0.0.1 "
    "64:ff9b::10.0.0.1 64:ff9b:1::a00:1 2002:a00:1::1 2001:0:a00:1::1 not-an-address"
).split()


def machine(tmp_path: Path, hosts: str = "", resolv: str = "", **more: tuple[str, ...]) -> EgressPolicy:
    (tmp_path / "hosts").write_text(hosts)
    (tmp_path / "resolv.conf").write_text(resolv)
    files = {"hosts_file": str(tmp_path / "hosts"), "resolv_conf": str(tmp_path / "resolv.conf")}
    return EgressPolicy(sensitive=True, **files, **more)


@pytest.mark.parametrize("address", ALLOWED_ADDRESSES)
def test_the_private_network_may_be_reached(address: str) -> None:
    assert SENSITIVE.refusal(address) is None


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_nothing_else_may_be_reached(address: str) -> None:
    assert SENSITIVE.refusal(address) is not None


@given(st.ip_addresses())
def test_an_address_is_allowed_exactly_where_a_range_holds_it(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    held = any((mapped or ip) in network for network in ALLOWED)
    assert (SENSITIVE.refusal(str(ip)) is None) == held


def test_a_client_that_is_not_sensitive_may_reach_anything() -> None:
    assert OPEN.refusal("192.0.2.1") is None
    assert OPEN.refusal_of_name("example.org") is None
    assert OPEN.refusal_of_program("/usr/bin/curl", ["curl"], {}) is None


def test_a_name_of_the_hosts_file_needs_no_resolver(tmp_path: Path) -> None:
    policy = machine(tmp_path, "10.1.2.3  mill.internal mill # the big one\n", "nameserver 192.0.2.53\n")
    assert policy.addresses("MILL.internal.", 11434, no_lookup) == ("10.1.2.3",)


def test_localhost_is_known_without_a_hosts_file() -> None:
    policy = EgressPolicy(sensitive=True, hosts_file="/nowhere")
    assert policy.addresses("localhost", 1, no_lookup) == ("127.0.0.1", "::1")


def test_an_entry_of_the_hosts_file_is_checked_like_any_address(tmp_path: Path) -> None:
    policy = machine(tmp_path, "192.0.2.7 mill\n")
    with pytest.raises(EgressRefused, match=r"192\.0\.2\.7 is outside"):
        policy.addresses("mill", 1, no_lookup)


def test_a_name_that_no_setting_has_is_asked_of_no_resolver(tmp_path: Path) -> None:
    policy = machine(tmp_path, resolv="nameserver 127.0.0.53\n", names=("mill.tail.net",))
    assert policy.refusal_of_name("Mill.tail.net.") is None
    assert "neither by the settings" in str(policy.refusal_of_name("ingest.example.org"))


def test_one_resolver_outside_is_enough_to_ask_none(tmp_path: Path) -> None:
    policy = machine(tmp_path, resolv="nameserver 100.100.100.100\nnameserver 192.0.2.53\n", names=("mill",))
    assert "192.0.2.53, outside the private network" in str(policy.refusal_of_name("mill"))


def test_of_a_name_with_several_addresses_only_the_allowed_ones_are_connected_to(tmp_path: Path) -> None:
    policy = machine(tmp_path, resolv="nameserver 10.0.0.53\n", names=("mill",))
    found = policy.addresses("mill", 1, lambda _host, _port: ["192.0.2.7", "100.64.0.7", "fd7a::7"])
    assert found == ("100.64.0.7", "fd7a::7")


def test_a_name_that_points_outside_is_refused_although_it_may_be_asked(tmp_path: Path) -> None:
    policy = machine(tmp_path, resolv="nameserver 10.0.0.53\n", names=("mill",))
    with pytest.raises(EgressRefused, match=r"192\.0\.2\.7"):
        policy.addresses("mill", 1, lambda _host, _port: ["192.0.2.7"])


def test_the_settings_name_the_hosts_and_an_address_for_alerts_names_none(tmp_path: Path) -> None:
    env = {"OLLAMA_HOST": "http://mill.tail.net:11434", "CLIENT_DATA_DIR": str(tmp_path)}
    settings = load_settings(env, tmp_path)
    config = {"client_id": "teleios", "track_preference": "b", "notify": ["mailto://post.internal/?to=a"]}
    (tmp_path / "teleios").mkdir()
    (tmp_path / "teleios" / "config.json").write_text(json.dumps(config))
    client = load_client(settings, "teleios")
    assert len(client.config.notify) == 1
    assert policy_of(settings, client) == EgressPolicy(sensitive=True, names=("mill.tail.net",))


INHERITED = {POLICY_VARIABLE: "{}", "PYTHONPATH": f"{CHILD}{os.pathsep}/elsewhere"}


@pytest.mark.parametrize(
    ("arguments", "env", "allowed"),
    [
        (["python3", "-c", "-I"], INHERITED, True),
        (["python3", "-P", "-m", "module"], INHERITED, True),
        (["python3", "-X", "dev", "script.py", "-S"], INHERITED, True),
        (["python3", "-c", ""], {}, False),
        (["python3", "-c", ""], {POLICY_VARIABLE: "{}"}, False),
        (["python3", "-I", "-c", ""], INHERITED, False),
        (["python3", "-Sc", ""], INHERITED, False),
        (["python3", "-W", "error", "-uE", "script.py"], INHERITED, False),
        (["python3", "--check-hash-based-pycs", "default", "-I", "-c", ""], INHERITED, False),
    ],
)
def test_a_python_may_start_where_it_inherits_the_guard(
    arguments: list[str], env: dict[str, str], allowed: bool
) -> None:
    assert (SENSITIVE.refusal_of_program("/usr/bin/python3", arguments, env) is None) == allowed


def test_programs_that_only_look_at_this_machine_may_start() -> None:
    assert SENSITIVE.refusal_of_program("/usr/bin/uname", ["uname", "-p"], {}) is None
    assert SENSITIVE.refusal_of_program("/usr/bin/curl", ["curl"], {}) is not None
    assert SENSITIVE.refusal_of_program("/bin/sh", ["sh", "-c", "uname"], {}) is not None


def no_lookup(host: str, port: int) -> list[str]:
    raise AssertionError(f"a resolver was asked for {host}:{port}")
