"""The one policy that decides for every outgoing connection: which addresses, which names, which programs.

Pure but for two system files, which say what a name means here. It opens no connection itself; transport.py
and guard.py ask it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from fine_tune_runner.errors import DatabaseAway, PolicyError
from fine_tune_runner.settings import Client, Settings

# Where a sensitive client's run may go: loopback (RFC 1122, 4291), private networks (RFC 1918, 4193),
# link-local IPv6 (RFC 4291), and the carrier-grade range that Tailscale uses (RFC 6598).
ALLOWED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
# Programs that libraries start to look at the machine, and that open no connection.
LOCAL_PROGRAMS = frozenset(
    (
        *("uname", "lscpu", "sysctl", "sw_vers", "system_profiler", "nvidia-smi", "rocm-smi", "file"),
        *(
            "ldconfig",
            "ldconfig.real",
            "ld",
            "objdump",
            "gcc",
            "cc",
            "c++",
            "g++",
            "clang",
            "clang++",
            "xcrun",
        ),
        *("ptxas", "llama-quantize"),
    )
)
_PYTHON = re.compile(r"(python|pypy)[\d.]*t?")
POLICY_VARIABLE = "FINE_TUNE_EGRESS"
Lookup = Callable[[str, int], Sequence[str]]


class EgressRefused(PolicyError):
    """A connection, lookup or program that the policy forbids; nothing was sent."""


def system_lookup(host: str, port: int) -> Sequence[str]:
    """The addresses of a name by the system's resolver (network), each once; OSError where there are none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What may be reached; for a client that is not sensitive everything may, and is only put on record.

    `names` are the hosts that the settings name: the only ones a resolver is asked for in a sensitive run,
    for a resolver in the private network passes on what it does not know. Fits into JSON, for children.
    """

    sensitive: bool
    names: tuple[str, ...] = ()
    hosts_file: str = "/etc/hosts"
    resolv_conf: str = "/etc/resolv.conf"

    def refusal(self, address: str) -> str | None:
        """Why this address may not be reached, None where it may; a name is not an address."""
        if not self.sensitive:
            return None
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return f"{address!r} is not an address"
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        # 6to4, NAT64 and Teredo hide an IPv4 address in ranges of their own, none of which is allowed.
        if any(ip.version == network.version and ip in network for network in ALLOWED):
            return None
        return f"{ip} is outside loopback, the private ranges and 100.64.0.0/10"

    def refusal_of_name(self, name: str) -> str | None:
        """Why this name may not be looked up, None where it may; an address needs no lookup."""
        if not self.sensitive or is_address(name) or self._hosts(name):
            return None
        if _plain(name) not in {_plain(known) for known in self.names}:
            return (
                f"{name} is named neither by the settings nor by {self.hosts_file}, so no resolver is asked"
            )
        outside = [server for server in self._resolvers() if self.refusal(server)]
        if outside:
            return (
                f"{name} would be asked of the resolver {outside[0]}, outside the private network; "
                f"enter it in {self.hosts_file}, or name the address itself"
            )
        return None

    def refusal_of_program(
        self, program: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> str | None:
        """Why this program may not be started; a Python may where it inherits this policy by its environment.

        `env` is the environment that it would get.
        """
        name = Path(program).name
        if not self.sensitive or name in LOCAL_PROGRAMS:
            return None
        if not _PYTHON.fullmatch(name):
            return f"what {name} would connect to cannot be checked"
        if not is_inherited(env) or _ignores_environment(arguments):
            return f"{name} would start without the guard (no {POLICY_VARIABLE}, or -I, -E or -S)"
        return None

    def addresses(self, host: str, port: int, lookup: Lookup = system_lookup) -> tuple[str, ...]:
        """The addresses of a host that may be connected to, at least one; connect to these, not to the name.

        Raises EgressRefused, its text the reason, where there is none; OSError where the name has no address.
        """
        if reason := self.refusal_of_name(host):
            raise EgressRefused(reason)
        known = (host,) if is_address(host) else self._hosts(host) if self.sensitive else ()
        found = tuple(known or lookup(host, port))
        allowed = tuple(address for address in found if self.refusal(address) is None)
        if found and not allowed:
            raise EgressRefused(str(self.refusal(found[0])))
        return allowed

    def _hosts(self, name: str) -> tuple[str, ...]:
        """The addresses that the hosts file gives a name (hosts(5)); localhost needs no entry (RFC 6761)."""
        entries = [line.partition("#")[0].split() for line in _lines(self.hosts_file)]
        wanted = _plain(name)
        found = tuple(
            e[0] for e in entries if len(e) > 1 and wanted in map(_plain, e[1:]) and is_address(e[0])
        )
        return found or (("127.0.0.1", "::1") if wanted == "localhost" else ())

    def _resolvers(self) -> tuple[str, ...]:
        """The name servers of resolv.conf(5); without one the resolver asks this machine."""
        words = [line.split() for line in _lines(self.resolv_conf)]
        return tuple(w[1] for w in words if len(w) > 1 and w[0] == "nameserver") or ("127.0.0.1",)


def policy_of(settings: Settings, client: Client) -> EgressPolicy:
    """The policy of everything that is done for a client.

    Its names are those of OLLAMA_HOST and FINE_TUNE_DATABASE_URL; an alert adds the host that it goes to.
    """
    names = [_host(settings.ollama_host or ""), *database_hosts(settings)]
    known = tuple(dict.fromkeys(name for name in names if name and not is_address(name)))
    return EgressPolicy(sensitive=client.config.is_sensitive, names=known)


def check_database(settings: Settings, policy: EgressPolicy, lookup: Lookup = system_lookup) -> None:
    """PolicyError where a sensitive client's runs would be known outside the private network.

    A socket in the file system passes. DatabaseAway where a host has no address now (network: its name).
    """

    def all_inside(host: str, port: int) -> Sequence[str]:
        # The driver looks the name up by itself, and may take any of its addresses.
        found = lookup(host, port)
        if outside := [reason for address in found if (reason := policy.refusal(address))]:
            raise EgressRefused(f"{host}: {outside[0]}")
        return found

    for host in database_hosts(settings) if policy.sensitive else ():
        try:
            policy.addresses(host, 5432, all_inside)
        except EgressRefused as error:
            raise PolicyError(
                f"FINE_TUNE_DATABASE_URL: {error}; a sensitive client's runs go through a database in the "
                "private network only. Name one, or unset it: SQLite beside the data is used then"
            ) from None
        except OSError as error:
            raise DatabaseAway(f"FINE_TUNE_DATABASE_URL: {host}: {error.strerror or error}") from None


def database_hosts(settings: Settings, env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Every host that FINE_TUNE_DATABASE_URL may lead to, without ports; none for a socket or SQLite.

    As libpq understands it (PostgreSQL manual, 32.1.1): in the address, as `host` or `hostaddr`, else PGHOST.
    """
    if settings.database is None:
        return ()
    url = urlsplit(settings.database)
    words = parse_qs(url.query)
    named = [url.netloc.rpartition("@")[2], *words.get("host", ()), *words.get("hostaddr", ())]
    if not any(named):
        named = [env.get("PGHOST", ""), env.get("PGHOSTADDR", "")]
    hosts = [unquote(one) for text in named for one in text.split(",") if one]
    names = [_without_port(host) for host in hosts if not host.startswith(("/", "@"))]
    return tuple(dict.fromkeys(name for name in names if name))


def is_address(text: str) -> bool:
    """Whether this is a numeric address, also with an IPv6 zone."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_inherited(env: Mapping[str, str]) -> bool:
    """Whether a Python with this environment starts under the guard (child/sitecustomize.py)."""
    return POLICY_VARIABLE in env and str(CHILD) in env.get("PYTHONPATH", "").split(os.pathsep)


CHILD = Path(__file__).parent / "child"


def _ignores_environment(arguments: Sequence[str]) -> bool:
    """Whether Python's options, those before -c, -m or the script, make it ignore PYTHONPATH or site."""
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            return False
        if argument in ("-X", "-W", "--check-hash-based-pycs"):
            next(rest, None)
        elif argument[1] not in "-XW":
            options = re.split("[cm]", argument[1:])[0]
            if set(options) & set("IES"):
                return True
            if options != argument[1:]:
                return False
    return False


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _without_port(host: str) -> str:
    """`h`, `h:1`, `[::1]:1` and `::1`, each without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]
