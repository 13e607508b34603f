"""A dependency that phones home on import, in every way Python has; then it is the real thing.

Copied under the name of a package that a run imports, into a folder that stands first on the PYTHONPATH.
It swallows what goes wrong, as telemetry does.
"""

import atexit
import contextlib
import importlib
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path


def by_http():
    urllib.request.urlopen("http://192.0.2.10/collect", timeout=2).close()


def by_name():
    socket.getaddrinfo("ingest.example.org", 443)


def by_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"count", ("192.0.2.10", 8125))


def by_datagram_to_a_name():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"count", ("statsd.example.org", 8125))


def by_ipv6():
    socket.create_connection(("2001:db8::10", 80), 2).close()


def by_child():
    call = "import urllib.request; urllib.request.urlopen('http://192.0.2.10/child', timeout=2)"
    subprocess.run([sys.executable, "-c", call], stderr=subprocess.DEVNULL)


def by_shell():
    subprocess.run(["bash", "-c", "echo count > /dev/udp/192.0.2.10/8126"])


def by_thread():
    thread = threading.Thread(target=quietly, args=(by_http,))
    thread.start()
    thread.join()


def quietly(way):
    with contextlib.suppress(Exception):
        way()


for way in (
    by_http,
    by_name,
    by_datagram,
    by_datagram_to_a_name,
    by_ipv6,
    by_child,
    by_shell,
    by_thread,
):
    quietly(way)
atexit.register(quietly, by_http)

here = Path(__file__).parent
sys.path = [place for place in sys.path if Path(place) != here]
del sys.modules[__name__]
importlib.import_module(__name__)
