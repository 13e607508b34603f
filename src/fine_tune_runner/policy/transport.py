"""The HTTP transport of every client of ours: it resolves, asks the policy, connects to the checked address.

Host header and TLS name stay those of the URL. Each new connection is checked, that of a redirect too. A
sensitive client's goes through no proxy. Bytes go on the run's record.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass, proxy_bypass_environment  # type: ignore[attr-defined]

import httpcore2
import httpx2

from fine_tune_runner.policy.egress import EgressPolicy, Lookup, system_lookup
from fine_tune_runner.policy.guard import Guard, current, environment_before, vouched


def checked_transport(
    policy: EgressPolicy,
    *,
    lookup: Lookup = system_lookup,
    unix_socket: str | None = None,
    name: str = "",
) -> httpx2.BaseTransport:
    """A transport for `httpx2.Client(transport=...)`, and so for the openai SDK; it raises EgressRefused.

    With `unix_socket` every connection goes there (a tunnel), on record under `name`. It writes to the record
    of the run in which it is made, so make it where it is used.
    """
    options: dict[str, Any] = {
        "ssl_context": _trusted(),
        "max_connections": 100,
        "max_keepalive_connections": 20,
        "keepalive_expiry": 5.0,
        "network_backend": _Checked(policy, lookup, name),
    }
    direct = _over(httpcore2.ConnectionPool(uds=unix_socket, **options))
    if policy.sensitive or unix_socket:
        return direct
    taken_away = _proxies_before()
    found = (getproxies() if taken_away is None else taken_away).items()
    proxies = {scheme: httpx2.Proxy(url) for scheme, url in found if url.startswith("http")}
    pools = {
        scheme: httpcore2.HTTPProxy(str(proxy.url), proxy.raw_auth, **options)
        for scheme, proxy in proxies.items()
    }
    return _ByProxy(direct, {scheme: _over(pool) for scheme, pool in pools.items()})


def _over(pool: httpcore2.ConnectionPool) -> httpx2.HTTPTransport:
    """httpx2 passes no network backend on to its pool, so it gets one that was made with ours."""
    transport = httpx2.HTTPTransport(verify=_trusted(), trust_env=False)
    transport._pool = pool
    return transport


class _ByProxy(httpx2.BaseTransport):
    """The proxies of the environment, by scheme, for a client that may reach anything; NO_PROXY holds."""

    def __init__(self, direct: httpx2.BaseTransport, proxies: Mapping[str, httpx2.BaseTransport]) -> None:
        self._direct, self._proxies = direct, proxies

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        scheme = request.url.scheme if request.url.scheme in self._proxies else "all"
        proxy = None if _bypassed(request.url.host) else self._proxies.get(scheme)
        return (proxy or self._direct).handle_request(request)

    def close(self) -> None:
        for transport in (self._direct, *self._proxies.values()):
            transport.close()


def _bypassed(host: str) -> bool:
    taken_away = _proxies_before()
    return bool(proxy_bypass(host) if taken_away is None else proxy_bypass_environment(host, taken_away))


def _proxies_before() -> dict[str, str] | None:
    """By scheme, and `no`, where a sensitive run of this process took them out of the environment.

    As `getproxies` reads them: of two spellings the small letters count, which sort last.
    """
    before = environment_before()
    if before is None:
        return None
    return {name[:-6].lower(): url for name, url in sorted(before.items()) if name.lower().endswith("_proxy")}


@cache
def _trusted() -> ssl.SSLContext:
    """The system's certificates; reading them takes a tenth of a second, so once a process."""
    return httpx2.create_ssl_context()


class _Checked(httpcore2.NetworkBackend):
    """Connects by the policy; remembers the run's guard, for a pool's threads know none."""

    def __init__(self, policy: EgressPolicy, lookup: Lookup, name: str) -> None:
        here = current()
        self._guard = Guard(policy, here.record if here else None)
        self._lookup = lookup
        self._name = name
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """The first of the host's allowed addresses that answers."""
        failure: Exception | None = None
        for address in self._addresses(host, port):
            try:
                with vouched():
                    stream = self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
                continue
            self._guard.note("connect", host, port, address=address)
            return _Counted(stream, _Traffic(self._guard, host, port))
        raise failure or httpcore2.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A local socket, such as a tunnel's."""
        stream = self._backend.connect_unix_socket(path, timeout, socket_options)
        self._guard.note("connect", self._name or path)
        return _Counted(stream, _Traffic(self._guard, self._name or path, None))

    def _addresses(self, host: str, port: int) -> tuple[str, ...]:
        try:
            return self._guard.addresses(host, port, self._lookup)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from None


class _Traffic:
    """What one connection carried, on record once, when it ends."""

    def __init__(self, guard: Guard, host: str, port: int | None) -> None:
        self._guard, self._host, self._port = guard, host, port
        self.sent = self.received = 0

    def end(self) -> None:
        if self.sent or self.received:
            self._guard.note("traffic", self._host, self._port, sent=self.sent, received=self.received)
        self.sent = self.received = 0


class _Counted(httpcore2.NetworkStream):
    """A stream whose bytes are counted before encryption."""

    def __init__(self, stream: httpcore2.NetworkStream, traffic: _Traffic) -> None:
        self._stream, self._traffic = stream, traffic

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, timeout)
        self._traffic.received += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._traffic.sent += len(buffer)

    def close(self) -> None:
        self._stream.close()
        self._traffic.end()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Counted(self._stream.start_tls(ssl_context, server_hostname, timeout), self._traffic)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
