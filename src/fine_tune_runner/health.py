"""What this machine is set up for: keys, hosts, disk, clock, versions, weights, extras; with remedies.

Sends no key but to the Ollama host that it belongs to, and nothing of a client; looking changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import httpx2
import msgspec

from fine_tune_runner.errors import MissingModel, RunnerError
from fine_tune_runner.hosted.place import place_of
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.policy.transport import checked_transport
from fine_tune_runner.settings import Client, Settings, base_model, client_ids, load_client
from fine_tune_runner.types import Clock

FREE_GB = 5.0  # a run of the small base writes one; a checkpoint of a large one several
SKEW_S = 60.0  # certificates, price dates and the wait after a cut-off call go by the clock
TIMEOUT_S = 10.0
# The extras that users install (pyproject.toml), and what lacks without.
EXTRAS = {
    "local": "Track B in this process",
    "mlx": "training by mlx",
    "four-bit": "training on a base of 4 bits",
    "postgres": "workers on several machines",
    "alerts": '"notify" of config.json',
    "observe": "spans and metrics",
}
State = Literal["ok", "off", "bad"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `off` is something optional that is not there, `bad` something that wants mending."""

    what: str
    state: State
    found: str
    remedy: str = ""


def installed(package: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def free_bytes(path: Path) -> int:
    """Free space where a folder is, or will be."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def check_machine(
    settings: Settings,
    clock: Clock,
    *,
    free: Callable[[Path], int] = free_bytes,
    version: Callable[[str], str | None] = installed,
    database: Callable[[], object] = lambda: None,
) -> list[Check]:
    """Look at everything, hosts included (network); `database` raises RunnerError where it is away."""
    clients = list(_clients(settings))
    return [
        *_keys(settings),
        *_hosts(settings, clients, clock),
        *_database(settings, database),
        *_disk(settings, free),
        *_versions(version),
        *_weights(settings, clients),
        *_extras(version),
    ]


def _clients(settings: Settings) -> Iterator[Client]:
    for name in client_ids(settings):
        try:
            yield load_client(settings, name)
        except RunnerError:
            continue  # said where its registry is read


def _keys(settings: Settings) -> Iterator[Check]:
    rows = (
        ("OPENAI_API_KEY", "openai_api_key", "Track A cannot be used; set it in the environment or .env"),
        ("OLLAMA_HOST", "ollama_host", "Track B answers in this process; set it to serve by Ollama"),
        ("HF_TOKEN", "hf_token", "needed to fetch gated bases only"),
    )
    for name, field, without in rows:
        known = getattr(settings, field) is not None
        found = settings.sources.get(field, "set") if known else "not set"
        yield Check(what=name, state="ok" if known else "off", found=found, remedy="" if known else without)


def _hosts(settings: Settings, clients: Sequence[Client], clock: Clock) -> Iterator[Check]:
    """The provider of each client that may be hosted, and the Ollama host."""
    hosted = [one for one in clients if not one.config.is_sensitive] if settings.openai_api_key else []
    places = {}
    for client in hosted:
        try:
            place = place_of(settings, client.config)
        except RunnerError:
            continue
        places[place.url] = place.provider.title
    for url, title in places.items():
        if url:
            yield from _provider(title, url, clock)
    if settings.ollama_host is not None:
        yield _ollama(settings, settings.ollama_host)


def _provider(title: str, url: str, clock: Clock) -> Iterator[Check]:
    """Whether it answers at all, and what its clock says; no key is sent, so it may answer 401."""
    try:
        with httpx2.Client(
            transport=checked_transport(EgressPolicy(sensitive=False)), timeout=TIMEOUT_S, trust_env=False
        ) as http:
            answer = http.get(f"{url}/models")
    except (httpx2.HTTPError, RunnerError) as error:
        remedy = "check the network, the proxy (https_proxy) and OPENAI_BASE_URL"
        yield Check(what=title, state="bad", found=f"{url}: {error}", remedy=remedy)
        return
    yield Check(what=title, state="ok", found=f"{url} answers")
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError):
        return
    yield _skew(title, (clock() - theirs).total_seconds())


def _skew(title: str, seconds: float) -> Check:
    good = abs(seconds) <= SKEW_S
    way = "ahead of" if seconds > 0 else "behind"
    found = f"within {SKEW_S:.0f} s of {title}'s" if good else f"{abs(seconds):.0f} s {way} {title}'s"
    remedy = "" if good else "set this machine's clock: timedatectl set-ntp true"
    return Check(what="clock", state="ok" if good else "bad", found=found, remedy=remedy)


def _ollama(settings: Settings, url: str) -> Check:
    from fine_tune_runner.private.ollama import Ollama, outdated

    if url.startswith("ssh://"):
        return Check(what="Ollama", state="ok", found=f"{url}: asked by runs, through ssh")
    try:
        transport = checked_transport(EgressPolicy(sensitive=False))
        with Ollama(url, transport=transport, headers=settings.ollama_headers, timeout_s=TIMEOUT_S) as ollama:
            version = ollama.version()
    except RunnerError as error:
        return Check(what="Ollama", state="bad", found=str(error), remedy="start it, or correct OLLAMA_HOST")
    old = outdated(version)
    remedy = "update Ollama: ollama.com/download" if old else ""
    return Check(what="Ollama", state="bad" if old else "ok", found=f"{version} at {url}", remedy=remedy)


def _database(settings: Settings, look: Callable[[], object]) -> Iterator[Check]:
    if settings.database_url is None:
        return
    try:
        look()
    except RunnerError as error:
        remedy = "start PostgreSQL, or correct FINE_TUNE_DATABASE_URL"
        yield Check(what="PostgreSQL", state="bad", found=str(error), remedy=remedy)
    else:
        yield Check(what="PostgreSQL", state="ok", found="answers")


def _disk(settings: Settings, free: Callable[[Path], int]) -> Iterator[Check]:
    for what, path in (("disk of clients", settings.data_dir), ("disk of models", settings.models_dir)):
        gigabytes = free(path) / 1e9
        good = gigabytes >= FREE_GB
        remedy = "" if good else "make room: fine-tune prune takes old models away"
        found = f"{gigabytes:.1f} GB free at {path}"
        yield Check(what=what, state="ok" if good else "bad", found=found, remedy=remedy)


def _versions(version: Callable[[str], str | None]) -> Iterator[Check]:
    yield Check(what="Python", state="ok", found=platform.python_version())
    for package in ("fine-tune-runner", "dbos", "torch", "xllamacpp"):
        if (found := version(package)) is not None:
            yield Check(what=package, state="ok", found=found)


def _weights(settings: Settings, clients: Iterable[Client]) -> Iterator[Check]:
    """The embedder, and the base of every client that may be trained here."""
    from fine_tune_runner.private.fetch import artifact_path

    for file in ("model.onnx", "tokenizer.json"):
        try:
            artifact_path("minilm", file, settings.models_dir)
        except MissingModel:
            yield Check(
                what="embedder", state="bad", found="minilm is missing", remedy="fine-tune fetch minilm"
            )
            break
    else:
        yield Check(what="embedder", state="ok", found="minilm")
    here = [one.config for one in clients if one.config.preferred_track != "A"]
    for name in sorted({base_model(settings, config).weights for config in here}):
        there = _is_there(name, settings)
        remedy = "" if there else f"fine-tune fetch {name}"
        found = name if there else f"{name} is not on this machine"
        yield Check(what="base", state="ok" if there else "bad", found=found, remedy=remedy)


def _is_there(name: str, settings: Settings) -> bool:
    """Whether a base lies here, as private/bases.py finds it; nothing is converted or loaded."""
    from fine_tune_runner.private.bases import ALIASES
    from fine_tune_runner.private.fetch import ARTIFACTS

    if name in ALIASES:
        return (settings.models_dir / name / ARTIFACTS[name][0].file).is_file()
    if Path(name).expanduser().exists():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _extras(version: Callable[[str], str | None]) -> Iterator[Check]:
    """What each extra asks for (by this package's own metadata) and is not installed."""
    needs = importlib.metadata.requires("fine-tune-runner") or []
    for extra, without in EXTRAS.items():
        asked = [text for text in needs if re.search(rf"""extra == ['"]{extra}['"]""", text)]
        here = [text for text in asked if _of_this_platform(text)]
        missing = [name for text in here if version(name := re.split(r"[^\w.-]", text)[0]) is None]
        if not here or not missing:
            if here:
                yield Check(what=f"extra {extra}", state="ok", found="installed")
            continue
        remedy = f"for {without}: pip install 'fine-tune-runner[{extra}]'"
        yield Check(what=f"extra {extra}", state="off", found=f"without {', '.join(missing)}", remedy=remedy)


def _of_this_platform(requirement: str) -> bool:
    named = re.search(r"""sys_platform == ['"](\w+)['"]""", requirement)
    return named is None or platform.system().lower() == named[1]
