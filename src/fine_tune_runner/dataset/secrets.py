"""Secrets and personal data in a text: what kind, and how a report may show it.

Patterns only, without a network or a model: they find what has a form. No message of this system shows
more than the first four characters of a hit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Sort = Literal["secret", "personal"]


class Hit(NamedTuple):
    """One occurrence; `masked` is all that may be shown of it."""

    kind: str
    sort: Sort
    start: int
    end: int
    masked: str


class Kind(NamedTuple):
    """One row of the table: a text without any of `triggers` has no hit, and need not be searched."""

    name: str
    sort: Sort
    triggers: tuple[str, ...]  # () = always search
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] | None = None


def _iban(text: str) -> bool:
    """ISO 13616: the rearranged number is 1 modulo 97."""
    compact = text.replace(" ", "").upper()
    digits = "".join(str(int(c, 36)) for c in compact[4:] + compact[:4])
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


_PARAMETER = (
    r"(?:access_token|refresh_token|api_secret|client_secret|app_secret|api_?key|auth_?token|token|secret"
    r"|password|passwd|pwd|sig|signature)"
)
_CLICK = (
    r"(?:gclid|gbraid|wbraid|dclid|fbclid|msclkid|ttclid|twclid|li_fat_id|_?fbc|_?fbp|_gcl_aw)"
    r"[\"']?[=:] ?[\"']?"
)


def _token(characters: str, least: int) -> str:
    """Pattern of a random value: `least` characters with a digit among them, or 24 without one."""
    return rf"(?:(?=[{characters}]*\d)[{characters}]{{{least},}}|[{characters}]{{24,}})"


# The names are keys of config.json's `allow_secrets`: renaming one breaks clients. A pattern without triggers
# begins with its first character and looks behind it only then: `re` searches that ten times as fast.
KINDS: tuple[Kind, ...] = (
    Kind("meta_token", "secret", ("EAA",), re.compile(r"(?<![A-Za-z0-9+/=_-])EAA[A-Za-z0-9]{16,}")),
    Kind("openai_key", "secret", ("sk-",), re.compile(rf"(?<![A-Za-z0-9])sk-{_token('A-Za-z0-9_-', 16)}")),
    Kind(
        "stripe_key", "secret", ("k_",), re.compile(r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}")
    ),
    Kind("google_key", "secret", ("AIza",), re.compile(r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{30,}")),
    Kind(
        "google_oauth",
        "secret",
        ("ya29.", "GOCSPX-", "1//0"),
        re.compile(r"(?<![\w-])(?:ya29\.|GOCSPX-|1//0)[A-Za-z0-9_-]{20,}"),
    ),
    Kind(
        "aws_key", "secret", ("IA",), re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])")
    ),
    Kind(
        "github_token",
        "secret",
        ("gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_"),
        re.compile(r"(?<!\w)(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{30,}"),
    ),
    Kind("slack_token", "secret", ("xox",), re.compile(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    Kind(
        "private_key",
        "secret",
        ("-----BEGIN",),
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[^-]*-----END[A-Z0-9 ]*-----)?"
        ),
    ),
    Kind("jwt", "secret", ("eyJ",), re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?")),
    Kind(
        "bearer",
        "secret",
        ("earer", "EARER"),
        re.compile(rf"(?i)(?<!\w)bearer[ :]+{_token('A-Za-z0-9._~+/-', 16)}=*"),
    ),
    Kind(
        "url_credentials",
        "secret",
        ("://",),
        re.compile(
            r"(?<!\w)[A-Za-z][A-Za-z0-9+.-]{1,20}://"
            r"(?:[^\s/:@?#\"'<>]{1,200}:[^\s/@\"'<>]{1,200}@"
            rf"|[^\s\"'<>]{{1,2000}}?[?&#]{_PARAMETER}={_token('A-Za-z0-9._~%|+/:-', 8)})"
        ),
    ),
    Kind(
        "email",
        "personal",
        ("@",),
        re.compile(
            r"(?<![\w.+%-])[\w.+%-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}"
        ),
    ),
    # International or clearly national forms only: 123-456-7890 is the form of a Google Ads account.
    Kind(
        "phone",
        "personal",
        ("+",),
        re.compile(r"(?<![\w+])\+[1-9][ ()./-]{0,2}(?:\d[ ()./-]{0,2}){6,13}\d(?!\w)"),
    ),
    Kind(
        "phone",
        "personal",
        (),
        re.compile(r"[(0](?<![\w(].)(?:(?<=\()0?\d{2,5}\) ?|(?<=0)\d{2,5}[ /])\d{3,4}[ -]?\d{3,5}(?![\w-])"),
    ),
    Kind(
        "ipv4",
        "personal",
        (".",),
        re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.\d)"),
        lambda text: all(int(octet) <= 255 for octet in text.split(".")),
    ),
    Kind(
        "iban",
        "personal",
        (),
        re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
        _iban,
    ),
    Kind(
        "click_id",
        "personal",
        ("clid", "braid", "li_fat_id", "fbc", "fbp", "_gcl_aw"),
        re.compile(rf"(?<![A-Za-z]){_CLICK}(?=[\w.-]*\d)[\w.-]{{8,}}"),
    ),
    Kind(
        "click_id",
        "personal",
        ("KCQ", "EAIaIQ"),
        re.compile(r"(?<![\w-])(?:Cj[0w]KCQ|EAIaIQobChMI)[\w-]{16,}"),
    ),
    Kind("click_id", "personal", ("fb.",), re.compile(r"(?<!\w)fb\.[0-2]\.\d{10,13}\.[\w-]{6,}")),
)


def find(text: str) -> Iterator[Hit]:
    """All hits of a text, kind by kind; a part of a text may be a hit of several kinds."""
    for kind in KINDS:
        if kind.triggers and not any(trigger in text for trigger in kind.triggers):
            continue
        for match in kind.pattern.finditer(text):
            if kind.holds is None or kind.holds(match[0]):
                yield Hit(kind.name, kind.sort, *match.span(), masked=_masked(match[0]))


def _masked(text: str) -> str:
    """At most the first four characters, and at most a quarter."""
    return "".join(c if c.isprintable() else " " for c in text[: min(4, len(text) // 4)]) + "…"


def mask(text: str) -> str:
    """A text as a report may show it: every hit replaced by its first characters and its kind."""
    shown: list[str] = []
    position = 0
    for hit in sorted(find(text), key=lambda h: (h.start, -h.end)):
        if hit.start >= position:
            shown += [text[position : hit.start], hit.masked, f"[{hit.kind}]"]
        position = max(position, hit.end)
    return "".join([*shown, text[position:]])
