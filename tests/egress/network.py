"""A network of three namespaces: this side, one private host, and a recorder where every other way leads.

this side ── 10.77.1.0/24 ── the private host (mill.internal)
     └────── 10.77.2.0/24 ── the recorder: default route, and public hosts of 192.0.2.0/24 and 2001:db8::/32

Needs root and iproute2. Nothing leaves the namespaces: neither has a link to the machine's own network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PRIVATE_HOST = "10.77.1.2"
NAME = "mill.internal"
MARK = "192.0.2.99"
READY = "ready"
IPV6 = Path("/proc/net/if_inet6").exists()
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Network:
    """The names of the namespaces, and the file to which the recorder writes one line a packet."""

    here: str
    host: str
    recorder: str
    seen: Path

    def within(self, namespace: str, *command: str) -> list[str]:
        """A command line, run in a namespace."""
        return ["ip", "netns", "exec", namespace, *command]

    def packets(self) -> list[str]:
        """`protocol address port` of every packet so far; a packet of our own marks the end."""
        mark = (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.99', 9))"
        )
        subprocess.run(self.within(self.here, sys.executable, "-c", mark), check=True)
        self.wait_for(MARK)
        lines = self.seen.read_text().splitlines()
        return [line for line in lines if MARK not in line and line != READY]

    def wait_for(self, text: str) -> None:
        """Until the recorder has written it."""
        deadline = time.monotonic() + 30
        while text not in self.seen.read_text():
            assert time.monotonic() < deadline, f"the recorder did not write {text!r}"
            time.sleep(0.02)


def why_not() -> str | None:
    """Why there can be no such network on this machine, None where there can."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        return "network namespaces need Linux and iproute2"
    if os.getuid() != 0:
        return "network namespaces need root"
    probe = f"ftr{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return None


@contextlib.contextmanager
def laid(folder: Path) -> Iterator[Network]:
    """Lay the network, start the recorder, and take both away again."""
    tag = f"ftr{os.getpid()}"
    network = Network(f"{tag}a", f"{tag}b", f"{tag}c", folder / "packets")
    etc = Path("/etc/netns") / network.here  # `ip netns exec` lays these files over /etc
    with contextlib.ExitStack() as stack:
        for namespace in (network.here, network.host, network.recorder):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False)
        etc.mkdir(parents=True)
        stack.callback(shutil.rmtree, etc)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{PRIVATE_HOST} {NAME}\n")
        (etc / "resolv.conf").write_text("nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")
        for line in [*_plan(network), *(_plan_ipv6(network) if IPV6 else [])]:
            subprocess.run(["ip", *line.split()], check=True)
        program = str(Path(__file__).parent / "recorder.py")
        with network.seen.open("wb") as seen:
            recorder = subprocess.Popen(
                network.within(network.recorder, sys.executable, program), stdin=subprocess.PIPE, stdout=seen
            )
        stack.callback(_stop, recorder)
        network.wait_for(READY)
        yield network


def _plan(network: Network) -> list[str]:
    a, b, c = network.here, network.host, network.recorder
    return [
        *(f"-n {namespace} link set lo up" for namespace in (a, b, c)),
        f"-n {a} link add host type veth peer name eth0 netns {b}",
        f"-n {a} link add world type veth peer name eth0 netns {c}",
        f"-n {a} addr add 10.77.1.1/24 dev host",
        f"-n {b} addr add {PRIVATE_HOST}/24 dev eth0",
        f"-n {a} addr add 10.77.2.1/24 dev world",
        f"-n {c} addr add 10.77.2.2/24 dev eth0",
        *(f"-n {c} addr add 192.0.2.{n}/32 dev lo" for n in (10, 53, 99)),
        f"-n {a} link set host up",
        f"-n {b} link set eth0 up",
        f"-n {a} link set world up",
        f"-n {c} link set eth0 up",
        f"-n {a} route add default via 10.77.2.2",
    ]


def _plan_ipv6(network: Network) -> list[str]:
    return [
        f"-n {network.here} addr add fd77::1/64 dev world nodad",
        f"-n {network.recorder} addr add fd77::2/64 dev eth0 nodad",
        f"-n {network.recorder} addr add 2001:db8::10/128 dev lo nodad",
        f"-n {network.here} -6 route add default via fd77::2",
    ]


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)


@contextlib.contextmanager
def ollama(network: Network, folder: Path) -> Iterator[str]:
    """The Ollama stand-in on the private host; yields its URL by name."""
    module = "tests.contract.ollama_server.server"
    process = subprocess.Popen(
        network.within(network.host, sys.executable, "-m", module, str(folder), PRIVATE_HOST),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        yield url.replace(PRIVATE_HOST, NAME)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
