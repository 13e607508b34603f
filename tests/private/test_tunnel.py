"""The tunnel to an Ollama behind ssh, by a real sshd on loopback; the checked way, by written configs."""

from __future__ import annotations

import getpass
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from fine_tune_runner.errors import ConfigError, ProviderError
from fine_tune_runner.policy.egress import EgressPolicy, EgressRefused
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.policy.record import EgressRecord, summary
from fine_tune_runner.private.tunnel import Config, Target, checked_route, parse, ssh_command, way_to

SENSITIVE = EgressPolicy(sensitive=True)
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(seen: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not seen():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class Answering(http.server.BaseHTTPRequestHandler):
    """Stands for the Ollama on the far loopback; says which Host it was asked as."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def ollama_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@dataclass
class Sshd:
    """A real sshd on a port of loopback, and an `ssh` that reads this test's config instead of the user's."""

    port: int
    folder: Path

    @property
    def ssh(self) -> str:
        return str(self.folder / "ssh")

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def configure(self, text: str) -> None:
        common = (
            f"IdentityFile {self.folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder}/known\n"
        )
        (self.folder / "config").write_text(f"{text}\nHost *\n{common}GlobalKnownHostsFile none\n")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if SSHD is None:
        pytest.skip("no sshd on this machine (Debian: openssh-server)")
    if os.getuid() != 0:
        pytest.skip("an sshd that lets this test in needs root")
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    port = free_port()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "ssh").write_text(f'#!/bin/sh\nexec ssh -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\n"
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nLogLevel ERROR\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: listens(port))
    yield Sshd(port, folder)
    server.terminate()
    server.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def sshd(running: Sshd) -> Sshd:
    """The running one, its key known and the config empty."""
    kind, key, *_ = (running.folder / "host.pub").read_text().split()
    (running.folder / "known").write_text(f"[127.0.0.1]:{running.port} {kind} {key}\n")
    running.configure("")
    return running


def get(url: str, transport: httpx2.BaseTransport) -> str:
    with httpx2.Client(transport=transport) as client:
        return client.get(f"{url}/api/version").text


def test_the_far_loopback_is_reached_and_is_asked_as_loopback(sshd: Sshd, ollama_port: int) -> None:
    with way_to(sshd.address, SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh) as (url, transport):
        assert get(url, transport) == f"127.0.0.1:{ollama_port}"


def test_the_tunnel_and_its_folder_are_gone_after_the_block(sshd: Sshd, ollama_port: int) -> None:
    with way_to(sshd.address, SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh):
        (folder,) = folders_of(ollama_port)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert folders_of(ollama_port) == []
    assert not folder.exists()


HOLD = """
import sys, time
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.private.tunnel import way_to
address, port, ssh = sys.argv[1:]
with way_to(address, EgressPolicy(sensitive=True), remote_port=int(port), ssh=ssh):
    print("open", flush=True)
    time.sleep(60)
"""


def test_the_tunnel_ends_with_a_process_that_is_killed(sshd: Sshd, ollama_port: int) -> None:
    command = [sys.executable, "-c", HOLD, sshd.address, str(ollama_port), sshd.ssh]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    (folder,) = folders_of(ollama_port)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    wait_for(lambda: folders_of(ollama_port) == [] and not folder.exists())


def test_what_the_tunnel_carried_is_on_record(sshd: Sshd, ollama_port: int, tmp_path: Path) -> None:
    record = EgressRecord(tmp_path / "egress.jsonl")
    with (
        guarded(SENSITIVE, record.path),
        way_to(sshd.address, SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh) as (url, transport),
    ):
        get(url, transport)
    ssh, http_ = summary(record.read())
    assert (ssh.host, ssh.port, ssh.by) == ("127.0.0.1", sshd.port, ("ssh",))
    assert http_.host == f"{sshd.address} 127.0.0.1:{ollama_port}"
    assert http_.received is not None
    assert http_.received > 100


def test_an_alias_of_the_users_config_is_followed(sshd: Sshd, ollama_port: int) -> None:
    sshd.configure(f"Host mill\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {getpass.getuser()}")
    with way_to("ssh://mill", SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh) as (url, transport):
        assert get(url, transport)


def test_a_jump_host_is_gone_through(sshd: Sshd, ollama_port: int) -> None:
    me = getpass.getuser()
    with (sshd.folder / "known").open("a") as known:
        known.write(f"gate {' '.join((sshd.folder / 'host.pub').read_text().split()[:2])}\n")
    sshd.configure(
        f"Host mill\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {me}\n  ProxyJump gate\n"
        f"Host gate\n  HostName localhost\n  Port {sshd.port}\n  User {me}\n  HostKeyAlias gate"
    )
    with way_to("ssh://mill", SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh) as (url, transport):
        assert get(url, transport)


def test_nothing_that_answers_there_is_said_with_the_remedy(sshd: Sshd) -> None:
    with (
        pytest.raises(ProviderError, match=r"nothing answers behind the tunnel: .*; start Ollama there"),
        way_to(sshd.address, SENSITIVE, remote_port=free_port(), ssh=sshd.ssh),
    ):
        pass


def test_an_unknown_host_key_is_said_with_the_remedy(sshd: Sshd, ollama_port: int) -> None:
    (sshd.folder / "known").write_text("")
    with (
        pytest.raises(
            ProviderError, match=r"Host key verification failed\..*accept its key once by hand: ssh -l"
        ),
        way_to(sshd.address, SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh),
    ):
        pass


def test_a_key_that_is_not_authorised_is_said_with_the_remedy(sshd: Sshd, ollama_port: int) -> None:
    sshd.configure("Host *\n  IdentityFile /nowhere\n  PubkeyAuthentication no")
    with (
        pytest.raises(ProviderError, match=r"Permission denied .*ssh-add"),
        way_to(sshd.address, SENSITIVE, remote_port=ollama_port, ssh=sshd.ssh),
    ):
        pass


def folders_of(port: int) -> list[Path]:
    """The private folders of the ssh processes that forward to this port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        for word in words if words[0].endswith(b"ssh") else ():
            if word.endswith(f":127.0.0.1:{port}".encode()):
                found.append(Path(word.decode().partition(":")[0]).parent)
    return sorted(set(found))


def configs(**hosts: dict[str, str]) -> Callable[[Target], Config]:
    """What `ssh -G` would say, by host."""
    return lambda target: (
        {"hostname": target.host, "port": str(target.port or 22)} | hosts.get(target.host, {})
    )


def test_every_host_of_the_way_is_checked_and_connected_to_by_its_address() -> None:
    config_of = configs(
        mill={"hostname": "10.0.0.7", "proxyjump": "me@gate:2222,inner"},
        gate={"hostname": "100.64.0.1"},
        inner={"hostname": "192.168.7.7"},
    )
    hop = checked_route(Target("mill", "you"), SENSITIVE, config_of=config_of)
    assert hop.address == "10.0.0.7"
    assert hop.before is not None
    assert (hop.before.address, hop.before.port, hop.before.key_name) == ("192.168.7.7", 22, "192.168.7.7")
    assert hop.before.before is not None
    assert (hop.before.before.address, hop.before.before.port) == ("100.64.0.1", 2222)
    assert hop.before.before.key_name == "[100.64.0.1]:2222"
    command = " ".join(ssh_command(hop.target, hop, ssh="sh"))
    assert "HostName=10.0.0.7" in command
    assert "-W '[10.0.0.7]:22'" in command
    assert "-l you -- mill" in command


@pytest.mark.parametrize("outside", ["mill", "gate"])
def test_a_host_or_jump_host_outside_is_refused_before_ssh_starts(outside: str) -> None:
    hosts = {"mill": {"hostname": "10.0.0.7", "proxyjump": "gate"}, "gate": {"hostname": "10.0.0.8"}}
    hosts[outside]["hostname"] = "192.0.2.7"
    with pytest.raises(EgressRefused, match=r"192\.0\.2\.7 is outside"):
        checked_route(Target("mill"), SENSITIVE, config_of=configs(**hosts))


def test_a_proxy_command_is_refused_for_nobody_can_check_it() -> None:
    config_of = configs(mill={"hostname": "10.0.0.7", "proxycommand": "nc -X connect -x proxy:3128 %h %p"})
    with pytest.raises(EgressRefused, match="use ProxyJump"):
        checked_route(Target("mill"), SENSITIVE, config_of=config_of)


def test_jump_hosts_that_lead_in_a_circle_end() -> None:
    config_of = configs(
        mill={"hostname": "10.0.0.7", "proxyjump": "gate"}, gate={"hostname": "10.0.0.8", "proxyjump": "mill"}
    )
    with pytest.raises(ConfigError, match="more than 8 jump hosts"):
        checked_route(Target("mill"), SENSITIVE, config_of=config_of)


def test_a_host_that_every_host_jumps_through_does_not_jump_through_itself() -> None:
    every = {"proxyjump": "gate"}
    config_of = configs(mill={"hostname": "10.0.0.7"} | every, gate={"hostname": "10.0.0.8"} | every)
    hop = checked_route(Target("mill"), SENSITIVE, config_of=config_of)
    assert hop.before is not None
    assert hop.before.before is None


@pytest.mark.parametrize(
    "address", ["ssh://-oProxyCommand=x@host", "ssh://-host", "ssh://a b@host", "ssh://"]
)
def test_an_address_that_ssh_could_take_for_an_option_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="give ssh://user@host"):
        parse(address)


def test_an_http_address_is_handed_on_with_a_checked_transport() -> None:
    with way_to("http://192.0.2.7:11434", SENSITIVE) as (url, transport):
        assert url == "http://192.0.2.7:11434"
        with pytest.raises(EgressRefused):
            get(url, transport)
