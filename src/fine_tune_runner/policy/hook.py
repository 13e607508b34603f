"""The socket guard: no Python code of this process opens a connection that the policy forbids.

An audit hook (PEP 578) sees every connection, lookup and program that Python starts, whichever library asks.
It cannot be removed, so it asks each time which guard is in force. Native code that opens a socket it does
not see.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from fine_tune_runner.policy.caller import calling_frame
from fine_tune_runner.policy.egress import EgressRefused, is_address
from fine_tune_runner.policy.guard import Guard, deciding

_INTERNET = (socket.AF_INET, socket.AF_INET6)
_LOCAL = tuple(getattr(socket, n) for n in ("AF_UNIX", "AF_NETLINK", "AF_SYSTEM") if hasattr(socket, n))
# Methods whose address may be a name, and where it stands in their arguments.
_TAKE_NAMES = (("connect", 0), ("connect_ex", 0), ("sendto", -1), ("sendmsg", 3))


@functools.cache
def install() -> None:
    """Add the hook to this process, once; without a guard in force it lets everything pass."""
    for name, place in _TAKE_NAMES:
        setattr(socket.socket, name, _pinned(getattr(socket.socket, name), place))
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    look = _LOOKS.get(event)
    if look is not None and (guard := deciding()) is not None:
        look(guard, *args)


def _pinned(method: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A socket's method that passes on addresses only: C resolves a name before its audit event."""

    @functools.wraps(method)
    def checked(self: socket.socket, *args: Any) -> Any:
        try:
            return method(self, *_with_address(self, args, place))
        except EgressRefused:
            if place == 0:
                self.close()  # the standard library does so for an OSError only
            raise

    return checked


def _with_address(sock: socket.socket, args: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    guard = deciding() if sock.family in _INTERNET and len(args) > max(place, 0) else None
    address: Any = args[place] if guard is not None else None
    if guard is None or not guard.policy.sensitive or not _is_name(address):
        return args
    pinned = (_of_family(guard.addresses(address[0], address[1]), sock.family), *address[1:])
    return tuple(pinned if argument is address else argument for argument in args)


def _is_name(address: Any) -> bool:
    pair = isinstance(address, tuple) and len(address) > 1
    return pair and isinstance(address[0], str) and not is_address(address[0])


def _of_family(addresses: tuple[str, ...], family: int) -> str:
    for address in addresses:
        if (":" in address) == (family == socket.AF_INET6):
            return address
    raise socket.gaierror(socket.EAI_NONAME, "no address of this socket's family")


def _connect(guard: Guard, sock: socket.socket, address: Any) -> None:
    if sock.family in _LOCAL or address is None:
        return
    if sock.family not in _INTERNET:
        if guard.policy.sensitive:
            guard.refuse("connect", f"a socket of family {sock.family}", None, "neither IP nor local")
        return
    host, port = str(address[0]), int(address[1])
    if reason := guard.policy.refusal(host):
        guard.refuse("connect", host, port, reason)
    guard.note("connect", host, port, address=host, by=calling_frame())


def _new_socket(guard: Guard, _sock: socket.socket, family: int, kind: int, _protocol: int) -> None:
    """Raw and packet sockets reach addresses that no later event shows."""
    raw = family in _INTERNET and kind & 0xF == socket.SOCK_RAW
    if guard.policy.sensitive and family != -1 and (raw or family not in (*_INTERNET, *_LOCAL)):
        guard.refuse("connect", f"a socket of family {family}", None, "neither IP nor local, or a raw one")


def _look_up(guard: Guard, host: Any, port: Any = None, *_rest: Any) -> None:
    name = host.decode(errors="replace") if isinstance(host, bytes) else str(host or "")
    number = port if isinstance(port, int) else None
    if name in ("", "localhost") or is_address(name):
        return
    if reason := guard.policy.refusal_of_name(name):
        guard.refuse("lookup", name, number, reason)
    guard.note("lookup", name, number, by=calling_frame())


def _reverse(guard: Guard, address: Any) -> None:
    """The name of an address: a resolver is asked for it, unless it is this machine's own."""
    host = str(address[0] if isinstance(address, tuple) else address)
    if not is_address(host):
        _look_up(guard, host)
    elif guard.policy.sensitive and not host.startswith("127.") and host != "::1":
        guard.refuse("lookup", host, None, "a resolver would be asked for its name")


def _program(guard: Guard, program: Any, arguments: Any, *rest: Any) -> None:
    """Of subprocess.Popen (executable, args, cwd, env), os.exec and os.posix_spawn (path, args, env)."""
    words = [arguments] if isinstance(arguments, str | bytes | os.PathLike) else arguments
    env = os.environ if not rest or rest[-1] is None else rest[-1]
    given = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
    path = os.fsdecode(program)
    if reason := guard.policy.refusal_of_program(path, [os.fsdecode(word) for word in words], given):
        guard.refuse("program", path, None, reason)


def _shell(guard: Guard, _command: Any) -> None:
    _program(guard, "/bin/sh", ())


_LOOKS: dict[str, Callable[..., None]] = {
    "socket.__new__": _new_socket,
    "socket.connect": _connect,
    "socket.sendto": _connect,
    "socket.sendmsg": _connect,
    "socket.getaddrinfo": _look_up,
    "socket.gethostbyname": _look_up,
    "socket.gethostbyaddr": _reverse,
    "socket.getnameinfo": _reverse,
    "subprocess.Popen": _program,
    "os.exec": _program,
    "os.posix_spawn": _program,
    "os.system": _shell,
}
