"""Environment, `.env` and a client's config.json become two frozen values, and each value knows its source.

Every wrong value is reported by name before any work starts. Nothing here opens a socket; secrets are
wrapped so that no repr, log or report can show them.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from fine_tune_runner.addresses import ollama_address, web_address
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import ConfigError, UsageError
from fine_tune_runner.types import Decoding, T, Track

CLIENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
NOTIFY = re.compile(r"\$FINE_TUNE_NOTIFY_[A-Z0-9_]+")
DEFAULT_BASE = "smollm2"
MOST_ANSWERS = 100  # to one question; what more of them say is less than one more question


class Secret:
    """A value that prints as `***`; `.reveal()` is called only where the value is sent."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """The secret itself."""
        return self._value


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`training` of config.json. Defaults are for Track B; Track A sends only what is set.

    Where the defaults come from: README, "Does it learn?".
    """

    rank: int = 16  # LoRA rank r (Hu et al. 2021, section 4.1)
    alpha: float = 32.0  # LoRA scale is alpha / rank
    # How many layers, counted from the top, get adapters; auto: a third of them (docs/track-b.md).
    layers: int | Literal["all", "auto"] = "auto"
    epochs: int | None = None  # None: 4 on Track B, the provider's auto rule on Track A
    learning_rate: float | None = None  # None: by the base's width (train_spec.py), the provider's own on A
    batch_size: int | None = None  # rows a step; None: 8 on Track B, the provider's own on Track A
    warmup: float = 0.1  # share of the steps over which the learning rate rises from 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    # Of the frozen base ("nf4": 4 bits by bitsandbytes, on mlx by its own); adapters are float32.
    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps", "mlx"] = "auto"  # auto: mlx on Apple silicon, if installed
    threads: int | None = None  # None: all cores
    checkpoint_every: int = 10  # optimizer steps between checkpoints


Quantization = Literal["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]


class BaseModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_model` of config.json as an object; as a string it is `weights`, or a name of `BASES`."""

    weights: str  # where training finds it: a Hugging Face folder, a .gguf file, a hub id, or "smollm2"
    ollama: str | None = None  # what the Ollama host calls the same model; None: it is not asked for its own
    quantization: Quantization = "Q8_0"  # of the merged file; the K kinds need llama-quantize on the PATH


# The bases that we know by name, and what Ollama's library calls them.
BASES: dict[str, BaseModel] = {
    "smollm2": BaseModel(weights="smollm2", ollama="smollm2:135m"),
    "llama3.1": BaseModel(weights="meta-llama/Llama-3.1-8B-Instruct", ollama="llama3.1:8b"),
    "mistral": BaseModel(weights="mistralai/Mistral-7B-Instruct-v0.3", ollama="mistral:7b"),
}


class EvalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`eval` of config.json; the defaults are how the model is asked in service."""

    temperature: float = 0.2
    max_tokens: int = 256
    seed: int = 0
    answers: int | None = None  # to each question; None: 1, 3, 5, 10, until the gate is decided
    judge: str | None = None  # a model at OLLAMA_HOST that reads what no rule could; None: people only

    @property
    def decoding(self) -> Decoding:
        """The part that says how an answer is drawn."""
        return Decoding(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """config.json. Unknown keys at the top level belong to other phases and are ignored."""

    client_id: str
    client_name: str | None = None
    track_preference: Literal["a", "b"] | None = None
    sensitive: bool | None = None
    base_model: str | BaseModel | None = None
    provider: str | None = None
    inference_url: str | None = None  # where a hosted provider answers, if not where it trains
    training: TrainingConfig = TrainingConfig()
    eval: EvalConfig = EvalConfig()
    allow_secrets: dict[str, str] = {}  # check: reason, for a secret that is meant to be in the data
    max_cost_usd: float | None = None  # of a run that `watch` submits; None: what costs waits for a yes
    notify: tuple[Secret, ...] = ()  # apprise addresses, or $FINE_TUNE_NOTIFY_… that hold one each

    @property
    def is_sensitive(self) -> bool:
        """Whether data may not leave the private network; absent means true where the preference is "b"."""
        return self.track_preference == "b" if self.sensitive is None else self.sensitive

    @property
    def weights(self) -> str | None:
        """`base_model` as one name: what a hosted provider trains, or where weights are found."""
        return self.base_model.weights if isinstance(self.base_model, BaseModel) else self.base_model

    @property
    def preferred_track(self) -> Track | None:
        """`track_preference` as the registry spells it."""
        return {"a": "A", "b": "B", None: None}[self.track_preference]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's side of the configuration; `sources` says for each field where its value came from."""

    data_dir: Path
    models_dir: Path
    openai_api_key: Secret | None
    openai_base_url: str | None
    ollama_host: str | None
    hf_token: Secret | None = None  # for gated models of the Hugging Face hub; used by `fine-tune fetch` only
    ollama_headers: dict[str, Secret] | None = None  # for a proxy in front of it
    tolerance: float
    poll_s: float = 60.0  # seconds between two looks at a hosted job
    database_url: Secret | None = None  # of the engine; None: SQLite beside the data
    notify: dict[str, Secret] = {}  # FINE_TUNE_NOTIFY_… by name, for `notify` of a config.json
    otlp_endpoint: str | None = None  # where worker and watch send spans; None: nowhere
    otlp_headers: dict[str, Secret] | None = None
    sources: dict[str, str]

    @property
    def database(self) -> str | None:
        """The address in `database_url`, for what connects to it; None: SQLite."""
        return self.database_url.reveal() if self.database_url else None


class AccountState(msgspec.Struct, frozen=True, kw_only=True):
    """The two keys of account_state.json that this system reads."""

    version: str
    system_prompt: str


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One client: its folder and config, read and checked."""

    id: str
    dir: Path
    config: ClientConfig

    @property
    def name(self) -> str:
        """What people call the client; its id in capitals where config.json has no name."""
        return self.config.client_name or self.id.upper()


def base_model(settings: Settings, config: ClientConfig) -> BaseModel:
    """The base of Track B: as config.json says, else Llama 3.1 8B where `OLLAMA_HOST` is set, else SmolLM2.

    A string may be a key of `BASES`, or the weights or the Ollama name of one of them.
    """
    named = config.base_model
    if isinstance(named, BaseModel):
        return named
    if named is None:
        return BASES["llama3.1" if settings.ollama_host else DEFAULT_BASE]
    known = (base for key, base in BASES.items() if named in (key, base.weights, base.ollama))
    return next(known, BaseModel(weights=named))


def whoami() -> str:
    """`user@host`, for the record; a container's user may have no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.getuid()}"
    return f"{user}@{os.uname().nodename}"


def _default_models_dir(env: Mapping[str, str]) -> str:
    cache = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".cache")
    return str(Path(cache) / "fine-tune-runner")


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("give a fraction between 0 and 1, such as 0.05")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise ValueError("give seconds, above 0 and up to 3600, such as 60")
    return value


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _key(text: str) -> Secret:
    text = text.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("a key is one word of ASCII letters, digits and signs; copy it again")
    return Secret(text)


def _headers(text: str) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for pair in text.split(";"):
        name, colon, value = pair.strip().partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.strip().isprintable():
            raise ValueError("give `Name: value`, several with ; between, such as Authorization: Bearer ...")
        found[name] = Secret(value.strip())
    return found


def _otlp_headers(text: str) -> dict[str, Secret]:
    """`name=value,name=value`, values percent-encoded (opentelemetry.io, OTLP exporter configuration)."""
    found: dict[str, Secret] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = pair.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z0-9-]+", name.strip()):
            raise ValueError("give `name=value`, several with , between, such as x-api-key=...")
        found[name.strip()] = Secret(unquote(value.strip()))
    return found


def _database(text: str) -> Secret:
    if not re.match(r"postgres(ql)?://", text):
        raise ValueError("give a PostgreSQL address, such as postgresql://user@host/fine_tune")
    # dbos and SQLAlchemy name the driver; psycopg takes the address without it.
    return Secret(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", text))


# (field, environment variable, default, parser). One table, one loop: `fine-tune config` prints it.
FIELDS: tuple[tuple[str, str, str | None, Any], ...] = (
    ("data_dir", "CLIENT_DATA_DIR", "data/clients", _path),
    ("models_dir", "FINE_TUNE_MODELS_DIR", None, _path),
    ("openai_api_key", "OPENAI_API_KEY", None, _key),
    ("openai_base_url", "OPENAI_BASE_URL", None, web_address),
    ("ollama_host", "OLLAMA_HOST", None, ollama_address),
    ("ollama_headers", "OLLAMA_HEADERS", None, _headers),
    ("hf_token", "HF_TOKEN", None, Secret),
    ("tolerance", "EVAL_REGRESSION_TOLERANCE", "0.05", _tolerance),
    ("poll_s", "FINE_TUNE_POLL_INTERVAL", "60", _seconds),
    ("database_url", "FINE_TUNE_DATABASE_URL", None, _database),
    ("otlp_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", None, web_address),
    ("otlp_headers", "OTEL_EXPORTER_OTLP_HEADERS", None, _otlp_headers),
)
# What may hold a password or a key is not repeated where it is wrong.
NOT_ECHOED = (_key, _headers, _otlp_headers, _database, web_address, ollama_address)


def load_settings(env: Mapping[str, str], cwd: Path | None = None) -> Settings:
    """Read the environment over `.env` over the defaults.

    Raises ConfigError naming every wrong variable at once.
    """
    dotenv = _read_dotenv((cwd or Path.cwd()) / ".env")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    wrong: list[str] = []
    for field, variable, default, parse in FIELDS:
        default = _default_models_dir(env) if field == "models_dir" else default
        candidates = (
            ("environment", env.get(variable)),
            (".env", dotenv.get(variable)),
            ("default", default),
        )
        source, text = next(((s, t) for s, t in candidates if t), ("not set", None))
        sources[field] = f"{source} ({variable})" if source in ("environment", ".env") else source
        try:
            values[field] = None if text is None else parse(text)
        except ValueError as error:
            shown = variable if parse in NOT_ECHOED else f"{variable}={text!r}"
            wrong.append(f"{shown} ({source}): {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    notify = {
        name: Secret(text)
        for source in (dotenv, env)
        for name, text in source.items()
        if NOTIFY.fullmatch(f"${name}") and text
    }
    return Settings(**values, notify=notify, sources=sources)


def _read_dotenv(path: Path) -> Mapping[str, str | None]:
    try:
        if not path.is_file():
            return {}
        from dotenv import dotenv_values  # only where a .env exists, so that `status` starts at once

        return dotenv_values(path, interpolate=False)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8, or move it away") from None


def check_client_id(client_id: str) -> str:
    """Refuse anything but `[a-z0-9][a-z0-9-]{0,62}` before a path is built from it."""
    if not CLIENT_ID.fullmatch(client_id):
        raise UsageError(
            f"client id {client_id!r}: use lower-case letters, digits and hyphens, at most 63, "
            "beginning with a letter or digit"
        )
    return client_id


def load_client(settings: Settings, client_id: str) -> Client:
    """Read and check `{client_id}/config.json`.

    Raises UsageError for a bad id, ConfigError where folder or file are missing or a value has a wrong type.
    """
    folder = settings.data_dir / check_client_id(client_id)
    with _readable(settings.data_dir):
        known = None if folder.is_dir() else ", ".join(client_ids(settings)) or "none yet"
    if known is not None:
        raise ConfigError(
            f"client {client_id!r} is unknown: no folder {folder} (known: {known}); "
            f"create it with: fine-tune init --client {client_id}"
        )
    path = folder / "config.json"
    config = read_json(path, ClientConfig, f"fine-tune init --client {client_id} writes one")
    if config.client_id != client_id:
        raise ConfigError(
            f"{path}: client_id is {config.client_id!r}, but the folder is {client_id!r}; make them the same"
        )
    check_training(path, config.training)
    if config.inference_url is not None:
        try:
            web_address(config.inference_url)
        except ValueError as error:
            raise ConfigError(f"{path}: inference_url: {error}") from None
    check_eval(path, config.eval)
    limit = config.max_cost_usd
    if limit is not None and limit < 0:
        raise ConfigError(f"{path}: max_cost_usd is {limit}; give dollars, 0 or more")
    return Client(id=client_id, dir=folder, config=config)


def check_training(path: Path, training: TrainingConfig) -> None:
    """Raise ConfigError for hyperparameters that no trainer can use, all of them at once."""
    rules: tuple[tuple[str, bool, str], ...] = (
        ("rank", 1 <= training.rank <= 512, "1 to 512"),
        ("alpha", training.alpha > 0, "above 0"),
        ("layers", isinstance(training.layers, str) or training.layers >= 1, '1 or more, "all", "auto"'),
        ("epochs", training.epochs is None or 1 <= training.epochs <= 100, "1 to 100"),
        ("learning_rate", training.learning_rate is None or 0 < training.learning_rate < 10, "above 0"),
        ("batch_size", training.batch_size is None or training.batch_size >= 1, "1 or more"),
        ("warmup", 0 <= training.warmup < 1, "0 up to, but not, 1"),
        ("max_grad_norm", training.max_grad_norm > 0, "above 0"),
        ("checkpoint_every", training.checkpoint_every >= 1, "1 or more"),
        ("threads", training.threads is None or training.threads >= 1, "1 or more"),
    )
    _refuse(path, "training", training, rules)


def check_eval(path: Path, evaluation: EvalConfig) -> None:
    """Raise ConfigError for values that no model can be asked with, all of them at once."""
    answers = evaluation.answers
    rules: tuple[tuple[str, bool, str], ...] = (
        ("temperature", 0 <= evaluation.temperature <= 2, "0 to 2"),
        ("max_tokens", evaluation.max_tokens >= 1, "1 or more"),
        ("answers", answers is None or 1 <= answers <= MOST_ANSWERS, f"1 to {MOST_ANSWERS}"),
        ("judge", evaluation.judge is None or bool(evaluation.judge.strip()), "a model's name"),
    )
    _refuse(path, "eval", evaluation, rules)


def check_judge(settings: Settings, client: Client) -> None:
    """Raise ConfigError where `eval.judge` of config.json names a model and there is no host to ask it at."""
    judge = client.config.eval.judge
    if judge is not None and not settings.ollama_host:
        raise ConfigError(
            f"{client.dir / 'config.json'}: eval.judge is {judge}, and OLLAMA_HOST is not set; set it to the "
            "host that has the model, or take eval.judge out"
        )


def _refuse(path: Path, section: str, config: object, rules: Iterable[tuple[str, bool, str]]) -> None:
    wrong = [
        f"{path}: {section}.{name} is {getattr(config, name)!r}; give {rule}"
        for name, holds, rule in rules
        if not holds
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def load_account_state(client: Client) -> AccountState:
    """Read `account_state.json`; ConfigError where it is missing or lacks `version` or `system_prompt`."""
    path = client.dir / "account_state.json"
    state = read_json(path, AccountState, "the upstream pipeline writes it")
    if not state.system_prompt.strip():
        raise ConfigError(f"{path}: system_prompt is empty; publish an AccountState with a prompt")
    return state


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Decode a JSON file into a struct; ConfigError with file, line or key, and remedy."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{path} line 1: begins with a byte order mark; save it as UTF-8 without BOM")
    try:
        return msgspec.json.decode(data, type=threadsafe(kind), dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; correct the value") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None


def _secret(kind: type[Any], value: Any) -> Secret:
    """A secret of config.json, which is an address; ValueError that repeats nothing of it."""
    if kind is not Secret or not isinstance(value, str):
        raise ValueError("expected a text")
    if not NOTIFY.fullmatch(value) and not re.match(r"[a-z][a-z0-9+.-]*://\S", value):
        raise ValueError(
            "expected an address such as mailto://... or json://..., or the name of a variable that holds "
            "one, such as $FINE_TUNE_NOTIFY_TEAM"
        )
    return Secret(value)


def client_ids(settings: Settings) -> list[str]:
    """The client folders there are, by name; `.fine-tune/` and other hidden folders are none."""
    folder = settings.data_dir
    with _readable(folder):
        if not folder.exists():
            return []
        return sorted(p.name for p in folder.iterdir() if CLIENT_ID.fullmatch(p.name) and p.is_dir())


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read: {error.strerror}; check its permissions, or set CLIENT_DATA_DIR "
            "to the folder of all clients"
        ) from None
