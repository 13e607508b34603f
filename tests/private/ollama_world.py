"""A client whose versions go to the Ollama stand-in: a tiny base, and a trainer that is done at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save_file
from tests.contract.ollama_server.server import OllamaServer
from tests.contract.ollama_server.store import Stored, key_of
from tests.scripted_track import Letters, folder_of, in_process
from tests.small_client import PROMPT, TRAINING, train_rows, write_version

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.private.served import Served
from fine_tune_runner.private.sitting import Trainer
from fine_tune_runner.private.track import Embedded
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, load_client, load_settings
from fine_tune_runner.types import Job, RegistryEntry, TrainingSummary
from fine_tune_runner.workflow.engine import Event

LATEST = "small-client:latest"
HEADS = {"q": 64, "v": 32}  # rows of the projections of tests/tiny_llama.py


def at_once(
    specs: Sequence[TrainSpec],
    on_event: Callable[[int, dict[str, Any]], None],
    stopping: Callable[[], bool],
) -> list[TrainingSummary | RunnerError]:
    """An adapter of fixed random numbers, another one for each version, as PEFT saves it."""
    (spec,) = specs
    random = np.random.default_rng(int(Path(spec.train_path).stem.removeprefix("v")))
    folder = spec.adapter_dir
    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(2):
        for name, rows in HEADS.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora"
            tensors[f"{key}_A.weight"] = random.normal(0, 0.2, (4, 64)).astype(np.float32)
            tensors[f"{key}_B.weight"] = random.normal(0, 0.1, (rows, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    summary = TrainingSummary(
        steps=8, epochs=1, tokens=1, loss_tokens=1, seconds=1, first_loss=2, final_loss=1
    )
    return [summary]


class Desk:
    """A data folder with the client `small`, a tiny base, and the library with `OLLAMA_HOST` set."""

    def __init__(self, folder: Path, base: Path, url: str, trainer: Trainer | None = at_once) -> None:
        self.folder = folder
        self.client = folder_of(folder)
        self.base = base
        self.url = url
        self.trainer = trainer
        self.events: list[Event] = []
        self.notices: list[str] = []
        self.write_config()
        state = {"version": "1.0.0", "system_prompt": PROMPT}
        (self.client / "account_state.json").write_text(json.dumps(state))
        write_version(self.client, 1)
        write_version(self.client, 2, train_rows(61))

    def write_config(self, **base_model: str) -> None:
        """config.json, with more in the base model's object."""
        config = {
            "client_id": "small",
            "track_preference": "b",
            # Nearer to the trained model than Q8_0, so that no processor's rounding reaches the tolerance.
            "base_model": {"weights": str(self.base), "quantization": "F16", **base_model},
            "training": {**TRAINING, "learning_rate": 0.03},
            "eval": {"max_tokens": 4, "answers": 1},
        }
        (self.client / "config.json").write_text(json.dumps(config))

    def runner(self, host: str | None = None) -> FineTuneRunner:
        """The library; at another host where one is named."""
        env = {
            "CLIENT_DATA_DIR": str(self.folder / "clients"),
            "FINE_TUNE_MODELS_DIR": str(self.folder / "models"),
            "OLLAMA_HOST": self.url if host is None else host,
        }
        return FineTuneRunner(
            load_settings(env, self.folder),
            listener=self.events.append,
            notice=self.notices.append,
            tracks={"B": self.track},
            embedder=lambda settings: Letters(),
            engine=in_process,
            who="anna",
        )

    def track(self, settings: Settings, client: Client) -> Served:
        """The track with this desk's trainer."""
        return Served(settings, client, embedded=Embedded(settings, client, trainer=self.trainer))

    def served(self) -> Served:
        """The track by itself."""
        settings = self.runner().settings
        return self.track(settings, load_client(settings, "small"))

    def submit(self, version: int = 1) -> Job:
        """Run a version to its end."""
        return self.runner().submit("small", version)

    def active(self) -> RegistryEntry:
        """What is in service."""
        entry = self.runner().registry("small").active()
        assert entry is not None
        return entry

    def of(self, event: str) -> list[dict[str, Any]]:
        """The data of the events of that name."""
        return [dict(e.data) for e in self.events if e.event == event]


def put_foreign(server: OllamaServer, name: str) -> None:
    """A model that somebody put there by hand: no stamp, no weights."""
    writer = GGUFWriter(server.store.blob("sha256-foreign"), "llama")
    writer.add_string("general.name", "somebody else's")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    server.store.models[key_of(name)] = Stored(name=name, gguf="sha256-foreign")


def digests(server: OllamaServer) -> dict[str, str]:
    """Digest by name."""
    return {name: stored.digest for name, stored in server.store.models.items()}
