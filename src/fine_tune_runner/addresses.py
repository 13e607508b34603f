"""Addresses as people write them into settings, made into URLs; nothing here opens a socket.

No message repeats an address that is refused, for it may hold a password or a key.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

OLLAMA_PORT = 11434
_NAME = re.compile(r"(?!0x)[a-z_][\w-]*(\.[\w-]+)*|[\w-]+(\.[\w-]+)*\.[a-z][\w-]*", re.I)
# Names that no public zone has (RFC 6761, 6762 and 8375; ICANN reserved .internal in 2024).
_PRIVATE_ENDS = (".localhost", ".local", ".internal", ".home.arpa")


def web_address(text: str) -> str:
    """An http or https URL without its last slash; ValueError where it is none, or says more."""
    parts = _split(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL with http:// or https:// in front, such as https://api.openai.com/v1")
    if "@" in parts.netloc:
        raise ValueError("leave user and password out of the URL; a key has a variable of its own")
    if parts.query or parts.fragment:
        raise ValueError("leave out what follows the ? or # of the URL")
    return parts.geturl().rstrip("/")


def ollama_address(text: str) -> str:
    """OLLAMA_HOST as Ollama's own clients read it: http, port 11434 and this machine where nothing is said.

    `0.0.0.0` and `::` are addresses to listen at, which a client reaches as loopback (ollama,
    envconfig/config.go, Host and ConnectableHost). `ssh://user@host` stays as it is.
    """
    text = text.strip()
    if text.lower().startswith("ssh://"):
        parts = _split(text)
        if not parts.hostname or parts.password is not None:
            raise ValueError("give ssh://user@host without a password; a key of ssh-agent opens it")
        return text.rstrip("/")
    url = web_address(text if "://" in text else f"http://{_with_port(text)}")
    parts = urlsplit(url)
    address = _ip(parts.hostname or "")
    if address is None or not address.is_unspecified:
        return url
    loopback = "127.0.0.1" if address.version == 4 else "[::1]"
    port = "" if parts.port is None else f":{parts.port}"
    return parts._replace(netloc=f"{loopback}{port}").geturl()


def plain_to_public(url: str) -> bool:
    """Whether this is http to a host that is not certainly on a private network: key and data in the clear.

    Loopback, private ranges and 100.64.0.0/10 (Tailscale) may be plain, and names that no public zone has.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme != "http":
        return False
    address = _ip(host)
    if address is None:
        # A number without dots is an address to the resolver, so a bare name begins with a letter.
        bare = "." not in host and _NAME.fullmatch(host) is not None
        return not bare and not host.endswith(_PRIVATE_ENDS)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global or address.is_multicast


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _with_port(text: str) -> str:
    """`host:port[/path]` of an address without a scheme."""
    place, slash, path = text.partition("/")
    address = _ip(place.strip("[]"))
    host, colon, port = place.rpartition(":")
    if address is not None:
        host, port = f"[{address}]" if address.version == 6 else str(address), str(OLLAMA_PORT)
    elif not colon:
        host, port = place, str(OLLAMA_PORT)
    if "@" in place:
        raise ValueError("give a host and a port, or ssh://user@host")
    return f"{host or '127.0.0.1'}:{port}{slash}{path}"


def _split(text: str) -> SplitResult:
    """The parts of a URL whose host and port can be read; ValueError that repeats nothing of it."""
    try:
        parts = urlsplit(text)
        whole = parts.port is None or parts.port > 0
        host = parts.hostname or ""
        if ":" in host:
            ipaddress.IPv6Address(host.partition("%")[0])
        elif host and not _NAME.fullmatch(host.rstrip(".")):
            ipaddress.IPv4Address(host)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("its host or port cannot be read; give a URL such as http://127.0.0.1:11434")
    return parts
