"""From what a config calls its base model to files on this machine: weights, tokenizer, and a GGUF to serve.

An alias, a Hugging Face folder, a GGUF file or a hub id; conversions are made once and kept in `models_dir`
under the hash of their source. Only `fetch_base` uses the network: a run finds what was fetched, or says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.errors import ConfigError, MissingModel, UsageError
from fine_tune_runner.files import locked, publish, sha256_file, write_atomic
from fine_tune_runner.private import gguf_base
from fine_tune_runner.private.fetch import ARTIFACTS, artifact_path
from fine_tune_runner.private.safetensors_file import weight_files
from fine_tune_runner.settings import BASES, Settings

ALIASES = ("smollm2",)
ARCHITECTURES = ("llama", "mistral")
# Raised when a conversion writes something else than before, so that old ones are not taken for new ones.
CONVERSION = 2
CONVERSION_WAIT_S = 4 * 3600.0  # for another process that converts the same base
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Not every *.safetensors: Mistral's repositories hold the weights a second time under another name.
_HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.jinja",
)
# Chat templates in place of a model's own. Mistral's puts the system message before the *last* user message
# and leaves it out where an answer follows, so that a training row would have none. This one gives the same
# prompt for a system message and a question, and keeps it at the beginning of a longer conversation.
_TEMPLATES = {
    "mistralai/Mistral-7B-Instruct-v0.3": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message.role == 'system' %}{{ '[INST] ' + message.content + '\\n\\n' }}"
        "{% elif message.role == 'user' %}"
        "{% if loop.first or loop.previtem.role != 'system' %}{{ '[INST] ' }}{% endif %}"
        "{{ message.content + '[/INST]' }}"
        "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
    ),
}


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base model on this machine; `sha256` is over its weights and config, `gguf` is None for a folder."""

    name: str
    dir: Path
    sha256: str
    architecture: str
    layers: int
    gguf: Path | None = None


def resolve(name: str, settings: Settings, *, offline: bool) -> Base:
    """Find (or, for a hub id and unless `offline`, download) a base model, ready to be trained on.

    A GGUF is converted on first use (seconds for 135M). Raises MissingModel with the command that brings it,
    ConfigError for a name that is nothing of the kind, or for an architecture that is not Llama's.
    """
    path = Path(name).expanduser()
    if name in ALIASES:
        return _from_gguf(name, artifact_path(name, ARTIFACTS[name][0].file, settings.models_dir), settings)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(name, path.resolve(), settings)
    if path.is_dir():
        return _from_folder(name, path.resolve(), settings)
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith("."):
        raise MissingModel(f"base model {name} is not there; correct base_model, or put the file in place")
    if _HUB_ID.fullmatch(name):
        folder = _with_template(name, _from_hub(name, settings, offline), settings)
        return _from_folder(name, folder, settings)
    raise ConfigError(
        f"base_model {name!r}: give an alias ({', '.join(ALIASES)}), a Hugging Face folder, a .gguf file "
        "or a hub id such as org/name"
    )


def fetch_base(name: str, settings: Settings) -> Base:
    """Download a base from the Hugging Face hub (network, gigabytes): a key of `BASES`, or a hub id.

    A gated one needs `HF_TOKEN`. Raises UsageError for a name that is neither, MissingModel saying why it
    cannot be had, ConfigError as `resolve`.
    """
    if name not in BASES and not _HUB_ID.fullmatch(name):
        known = ", ".join(sorted({*ARTIFACTS, *BASES}))
        raise UsageError(
            f"nothing to fetch is called {name!r}; there are: {known}, and hub ids such as org/name"
        )
    return resolve(BASES[name].weights if name in BASES else name, settings, offline=False)


def gguf_of(base: Base, settings: Settings, kind: str = "F16") -> Path:
    """The GGUF to serve: the base's own, or one made from its folder on first use and kept."""
    if base.gguf is not None:
        return base.gguf
    target = _kept(settings, base.sha256, f".{kind.lower()}.gguf")
    return _once(target, lambda part: gguf_base.folder_to_gguf(base.dir, part, kind))


def with_gguf(base: Base, settings: Settings, kind: str = "F16") -> Base:
    """The same base with `gguf` filled in."""
    return msgspec.structs.replace(base, gguf=gguf_of(base, settings, kind))


def _from_gguf(name: str, path: Path, settings: Settings) -> Base:
    digest = _remembered(path, settings)

    def build(part: Path) -> None:
        part.mkdir()
        gguf_base.gguf_to_folder(path, part)

    folder = _once(_kept(settings, digest, ""), build)
    config = _config(name, folder)
    return Base(
        name=name,
        dir=folder,
        sha256=digest,
        architecture=config["model_type"],
        layers=config["num_hidden_layers"],
        gguf=path,
    )


def _from_folder(name: str, folder: Path, settings: Settings) -> Base:
    config = _config(name, folder)
    weights = weight_files(folder)
    missing = [file for file in ("tokenizer.json",) if not (folder / file).is_file()]
    if not weights or missing:
        raise MissingModel(
            f"base model {name}: {folder} lacks {', '.join(missing) or '*.safetensors'}; "
            "fetch the whole model, with safetensors weights and tokenizer.json"
        )
    parts = [sha256_file(folder / "config.json"), sha256_file(folder / "tokenizer.json")]
    digest = hashlib.sha256(" ".join([*parts, *(_remembered(w, settings) for w in weights)]).encode())
    return Base(
        name=name,
        dir=folder,
        sha256=digest.hexdigest(),
        architecture=config["model_type"],
        layers=config["num_hidden_layers"],
    )


def _config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingModel(f"base model {name}: {path} is missing; give a Hugging Face folder") from None
    except ValueError as error:
        raise MissingModel(f"base model {name}: {path} is no JSON ({error}); fetch it again") from None
    if config.get("model_type") not in ARCHITECTURES:
        raise ConfigError(
            f"base model {name}: architecture {config.get('model_type')!r} is not supported; "
            f"take one of the Llama family ({', '.join(ARCHITECTURES)})"
        )
    return config


def _from_hub(name: str, settings: Settings, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    short = next((key for key, base in BASES.items() if base.weights == name), name)
    token = settings.hf_token.reveal() if settings.hf_token else None
    try:
        found = snapshot_download(
            name, allow_patterns=list(_HUB_FILES), local_files_only=offline, token=token
        )
        return Path(found)
    except GatedRepoError:
        reason = (
            f"is gated: accept its licence at huggingface.co/{name}, set HF_TOKEN to a token of that "
            f"account, then: fine-tune fetch {short}"
        )
    except RepositoryNotFoundError:
        reason = (
            "is not on the hub, or private (set HF_TOKEN to a token that may read it); correct base_model"
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "is not on this machine" if offline else f"cannot be downloaded ({type(error).__name__})"
        reason = f"{why}; run: fine-tune fetch {short} (a gated model needs HF_TOKEN)"
    raise MissingModel(f"base model {name} {reason}")


def _with_template(name: str, folder: Path, settings: Settings) -> Path:
    """The folder, or one of links to its files with our own chat template; the hub's cache stays as it is."""
    text = _TEMPLATES.get(name)
    if text is None:
        return folder

    def build(part: Path) -> None:
        part.mkdir()
        for file in folder.iterdir():
            if file.name != "chat_template.jinja":
                (part / file.name).symlink_to(file.resolve())
        (part / "chat_template.jinja").write_text(text)

    digest = hashlib.sha256(f"{folder} {text}".encode()).hexdigest()
    return _once(_kept(settings, digest, ""), build)


def _kept(settings: Settings, digest: str, suffix: str) -> Path:
    return settings.models_dir / "bases" / f"{digest[:16]}-{CONVERSION}{suffix}"


def _once(target: Path, build: Callable[[Path], None]) -> Path:
    """Build a file or folder beside its place and rename it, in one process at a time."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f".{target.name}.lock", wait_s=CONVERSION_WAIT_S):
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
                    part = Path(scratch) / target.name
                    build(part)
                    publish(part, target)
    except BlockingIOError as error:
        raise MissingModel(f"{target} is being made by process {error}; wait for it, or end it") from None
    except OSError as error:
        raise _unwritable(target, error) from None
    return target


def _unwritable(target: Path, error: OSError) -> MissingModel:
    return MissingModel(
        f"{target} cannot be written: {error.strerror or error}; free space, or set FINE_TUNE_MODELS_DIR "
        "to another folder"
    )


def _remembered(path: Path, settings: Settings) -> str:
    """A file's sha256, kept by path, size and time of change: 16 GB are not read at every start."""
    status = path.stat()
    key = f"{path} {status.st_size} {status.st_mtime_ns}"
    note = settings.models_dir / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    try:
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, sha256_file(path).encode())
        return note.read_text()
    except OSError as error:
        raise _unwritable(note, error) from None
