"""The way to an Ollama host: http as it is, `ssh://user@host` through a tunnel of the system's own ssh.

The tunnel leads from a socket in a private folder to port 11434 on the loopback of that host. ssh's config,
agent and known hosts apply. It ends with this process, however that ends. Nothing here knows Ollama's API.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import httpx2
import msgspec

from fine_tune_runner.errors import ConfigError, ProviderError
from fine_tune_runner.policy.egress import EgressPolicy, EgressRefused
from fine_tune_runner.policy.guard import Guard, current, vouched
from fine_tune_runner.policy.transport import checked_transport

OLLAMA_PORT = 11434
ANSWER_S = 30.0
END_S = 5.0
MAX_JUMPS = 8
_USER = re.compile(r"[\w.][\w.@+-]*")
# Whatever the user's config says, a tunnel asks nothing, shares nothing and looks up no names.
_OPTIONS = {
    "BatchMode": "yes",
    "CanonicalizeHostname": "no",
    "ConnectTimeout": "15",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ExitOnForwardFailure": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GSSAPIAuthentication": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "ServerAliveInterval": "15",
    "VerifyHostKeyDNS": "no",
}
# The folder is $0, ssh and its arguments follow. stdin is a pipe that nobody writes to and that this process
# alone holds open: it ends when the process does, by SIGKILL too, and then ssh is ended.
_WATCH = """
exec 3<&0
"$@" </dev/null 3<&- &
ssh=$!
(cat <&3 >/dev/null; kill "$ssh" 2>/dev/null) &
watch=$!
exec 3<&-
wait "$ssh"
status=$?
kill "$watch" 2>/dev/null
rm -rf "$0"
exit "$status"
"""
# What ssh says last → what to do about it; {by_hand} is the command to try.
_REMEDIES = (
    ("Host key verification failed", "accept its key once by hand: {by_hand}"),
    ("Permission denied", "load your key into the agent (ssh-add), and check that it is authorised there"),
    ("administratively prohibited", "let sshd forward there (AllowTcpForwarding, PermitOpen)"),
    ("open failed", "start Ollama there; it must listen on 127.0.0.1:11434"),
    ("", "try it by hand: {by_hand}"),
)
Config = Mapping[str, str]


class Target(msgspec.Struct, frozen=True):
    """What ssh is asked for: a host or an alias of the user's config, and what was said with it."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def arguments(self) -> list[str]:
        """User, port and host as ssh takes them; none of them can be taken for an option."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]


class Hop(msgspec.Struct, frozen=True):
    """A host of the way with its checked address; `before` is the jump host that leads to it."""

    target: Target
    name: str
    address: str
    port: int
    key_name: str
    before: Hop | None = None


@contextlib.contextmanager
def way_to(
    address: str,
    policy: EgressPolicy,
    *,
    remote_port: int = OLLAMA_PORT,
    answer_s: float = ANSWER_S,
    ssh: str = "ssh",
) -> Iterator[tuple[str, httpx2.BaseTransport]]:
    """URL and transport for a client of OLLAMA_HOST, open as long as the block.

    Raises PolicyError where the policy forbids a host of the way, ProviderError with ssh's last words where
    the tunnel does not come up or nothing answers behind it, ConfigError for an address that ssh cannot take.
    """
    if not address.startswith("ssh://"):
        yield address, checked_transport(policy)
        return
    target = parse(address)
    # Where anything may be reached, the user's config decides alone how.
    config_of = functools.partial(ssh_config, ssh=ssh)
    route = checked_route(target, policy, config_of=config_of) if policy.sensitive else None
    # Before the host, of which nothing may be taken for an option.
    forward = ("-N", "-L", f"{{socket}}:127.0.0.1:{remote_port}")
    command = ssh_command(target, route, *forward, ssh=ssh)
    url = f"http://127.0.0.1:{remote_port}"
    with _opened(command) as tunnel:
        _await_answer(target, tunnel, f"{url}/api/version", answer_s)
        name = f"{address} 127.0.0.1:{remote_port}"
        yield url, checked_transport(policy, unix_socket=str(tunnel.socket), name=name)


def parse(address: str) -> Target:
    """The target of `ssh://[user@]host[:port]`."""
    parts = urlsplit(address)
    user = unquote(parts.username) if parts.username else None
    if not parts.hostname or parts.hostname.startswith("-") or (user and not _USER.fullmatch(user)):
        raise ConfigError(f"OLLAMA_HOST={address}: give ssh://user@host or ssh://user@host:port")
    return Target(parts.hostname, user, parts.port)


def ssh_config(target: Target, ssh: str = "ssh") -> Config:
    """What the user's config says of a target (`ssh -G`), by key in lower case."""
    command = [_program(ssh), "-o", "CanonicalizeHostname=no", "-G", *target.arguments]
    with vouched():
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ConfigError(f"ssh cannot make out {target.host}: {done.stderr.strip()}; check ~/.ssh/config")
    pairs = [line.partition(" ") for line in done.stdout.splitlines()]
    return {key.lower(): value for key, _, value in pairs}


def checked_route(
    target: Target,
    policy: EgressPolicy,
    *,
    config_of: Callable[[Target], Config] = ssh_config,
    jumps: Sequence[str] = (),
    depth: int = 0,
) -> Hop:
    """The way to a target, every host of it resolved and checked; EgressRefused where one is outside.

    `jumps` overrides the jump hosts of the config, as `ssh -J` does.
    """
    if depth > MAX_JUMPS:
        raise ConfigError(
            f"{target.host}: more than {MAX_JUMPS} jump hosts; check ProxyJump in ~/.ssh/config"
        )
    config = config_of(target)
    if config.get("proxycommand", "none") != "none":
        raise EgressRefused(
            f"ssh reaches {target.host} by a ProxyCommand, and where that connects cannot be checked; "
            "for a sensitive client use ProxyJump, or a host that is reached directly"
        )
    listed = jumps or [jump for jump in config.get("proxyjump", "none").split(",") if jump != "none"]
    # ssh ignores a jump host that is the target itself, as `Host *` gives it.
    through = [jump for jump in listed if _jump(jump).host != target.host]
    before = None
    if through:
        before = checked_route(
            _jump(through[-1]), policy, config_of=config_of, jumps=through[:-1], depth=depth + 1
        )
    name, port = config.get("hostname", target.host), int(config.get("port", "22"))
    here = current()
    named = msgspec.structs.replace(policy, names=(*policy.names, name))
    guard = Guard(named, here.record if here else None)
    try:
        address = guard.addresses(name, port)[0]
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be resolved here ({error}), so it cannot be checked; put its address under "
            f"HostName for {target.host} in ~/.ssh/config"
        ) from None
    guard.note("connect", name, port, address=address, by="ssh")
    known_as = name if port == 22 else f"[{name}]:{port}"
    return Hop(target, name, address, port, config.get("hostkeyalias", known_as), before)


def ssh_command(target: Target, route: Hop | None, *options: str, ssh: str = "ssh") -> list[str]:
    """The ssh command to a target; by a checked route it gets addresses, whatever names mean by then."""
    settings = dict(_OPTIONS)
    if route is not None:
        # HostKeyAlias: the key is the one known under the name, although the address is connected to.
        settings |= {"HostName": route.address.replace("%", "%%"), "HostKeyAlias": route.key_name}
        settings["ProxyCommand"] = "none" if route.before is None else _through(route.before, route, ssh)
    said = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    return [_program(ssh), "-T", *said, *options, *target.arguments]


def _through(jump: Hop, to: Hop, ssh: str) -> str:
    """The ProxyCommand that reaches `to` from a jump host; ssh expands percent signs in it."""
    command = ssh_command(jump.target, jump, "-W", f"[{to.address}]:{to.port}", ssh=ssh)
    return shlex.join(command).replace("%", "%%")


def _jump(text: str) -> Target:
    """One entry of ProxyJump: `[user@]host[:port]` or a URI."""
    parts = urlsplit(text if "://" in text else f"ssh://{text}")
    return Target(parts.hostname or text, parts.username, parts.port)


class _Tunnel(msgspec.Struct, frozen=True):
    socket: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]


@contextlib.contextmanager
def _opened(command: Sequence[str]) -> Iterator[_Tunnel]:
    """Start ssh under its watch, and end both; `{socket}` in the command becomes the socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="ftr-"))  # mode 0700: no other user of this machine gets in
    socket = folder / "ollama"
    words = [word.replace("{socket}", str(socket)) for word in command]
    with tempfile.TemporaryFile() as log:
        with vouched():
            process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, str(folder), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which may still need the tunnel
            )
        try:
            yield _Tunnel(socket, process, log)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_answer(target: Target, tunnel: _Tunnel, url: str, answer_s: float) -> None:
    """Wait for any HTTP answer through the tunnel; ProviderError with ssh's last words without one."""
    deadline = time.monotonic() + answer_s
    while tunnel.process.poll() is None and time.monotonic() < deadline and not tunnel.socket.exists():
        time.sleep(0.02)
    up = tunnel.socket.exists()
    if up:
        transport = httpx2.HTTPTransport(uds=str(tunnel.socket), verify=False)
        with contextlib.suppress(httpx2.TransportError), httpx2.Client(transport=transport) as client:
            client.get(url, timeout=max(0.1, deadline - time.monotonic()))
            return
    tunnel.log.seek(0)
    lines = tunnel.log.read().decode(errors="replace").strip().splitlines()
    words = " | ".join(lines[-3:]) or "ssh said nothing"
    by_hand = shlex.join(["ssh", *target.arguments])
    remedy = next(advice for sign, advice in _REMEDIES if sign in words).format(by_hand=by_hand)
    what = "nothing answers behind the tunnel" if up else "the tunnel did not come up"
    raise ProviderError(f"OLLAMA_HOST by ssh to {target.host}: {what}: {words}; {remedy}")


def _program(ssh: str) -> str:
    found = shutil.which(ssh)
    if found is None:
        raise ConfigError("OLLAMA_HOST is an ssh:// address, and no ssh is on the PATH; install OpenSSH")
    return found
