"""What stands where the default route leads: it answers as public hosts would, and writes down every packet.

Runs in a namespace of its own (network.py), until stdin ends. A line a packet: protocol, address, port,
and the name that a DNS query asks for.
"""

from __future__ import annotations

import http.server
import ipaddress
import socket
import sys
import threading

ALL = 0x0003  # ETH_P_ALL
OUTGOING = 4  # PACKET_OUTGOING
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
# The link's own: neighbours and groups that the kernel speaks to without anybody's asking.
OWN = tuple(ipaddress.ip_network(n) for n in ("10.77.2.0/24", "fd77::/64", "fe80::/10", "ff02::/16"))


def destination(packet: bytes) -> tuple[str, str, str] | None:
    """Of an IP packet without its link header; None for what is no IP."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        protocol, to, rest = packet[9], ipaddress.ip_address(packet[16:20]), packet[(packet[0] & 15) * 4 :]
    elif version == 6:
        protocol, to, rest = packet[6], ipaddress.ip_address(packet[24:40]), packet[40:]
    else:
        return None
    if any(to.version == network.version and to in network for network in OWN):
        return None
    port = int.from_bytes(rest[2:4], "big") if protocol in (6, 17) else 0
    asked = f"53 {name(rest[20:])}" if port == 53 else str(port)
    return PROTOCOLS.get(protocol, str(protocol)), str(to), asked


def name(question: bytes) -> str:
    """The name that a DNS query asks for (RFC 1035, section 4.1.2)."""
    labels = []
    while question and question[0]:
        labels.append(question[1 : question[0] + 1].decode(errors="replace"))
        question = question[question[0] + 1 :]
    return ".".join(labels)


def record() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL)) as sock:
        sock.bind(("eth0", ALL))
        say("ready")
        while True:
            packet, address = sock.recvfrom(65535)
            found = destination(packet) if address[1] in (0x0800, 0x86DD) and address[2] != OUTGOING else None
            if found is not None:
                say(" ".join(found))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Silent(http.server.BaseHTTPRequestHandler):
    """Takes what is sent, as a collector of telemetry would."""

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("192.0.2.10", 80), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=record, daemon=True).start()
    sys.stdin.read()
