"""What a training needs of the library that computes it, and the choice of that library.

PyTorch (torch_backend.py) or MLX (mlx_backend.py), imported once chosen. Arrays that cross this seam are
numpy's under PEFT's names, so a checkpoint of one goes on in the other. Knows no files of clients.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.batches import Corpus, Tree
from fine_tune_runner.private.llama_config import LlamaConfig
from fine_tune_runner.private.lora_layout import PeftAdapter
from fine_tune_runner.settings import TrainingConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# "weight", and AdamW's two moments "mean" and "square"; each under PEFT's names
State = dict[str, "dict[str, NDArray[np.float32]]"]


class Trainable(Protocol):
    """One client's adapter where it is trained: weights, gradients, AdamW's moments."""

    @property
    def adapter(self) -> PeftAdapter: ...

    def clip(self, limit: float) -> float:
        """Scale the gradients down to this norm, all of them together; their norm before."""
        ...

    def step(self, rate: float) -> None:
        """Move the weights along their gradients: AdamW, bias-corrected, betas .9 and .999, eps 1e-8."""
        ...

    def forget(self) -> None:
        """Drop the gradients."""
        ...

    def state(self) -> State:
        """Copies of all that the next step depends on; after the first step."""
        ...

    def restore(self, state: State, step: int) -> None:
        """Go on after `step` steps; TrainingError where names or shapes differ."""
        ...


T = TypeVar("T", bound=Trainable)


class Backend(Protocol[T]):
    """A frozen base in memory, and the arithmetic on it."""

    @property
    def config(self) -> LlamaConfig: ...

    def begin(self, corpus: Corpus, training: TrainingConfig, layers: int, scratch: Path) -> T:
        """A fresh adapter on the last `layers` layers, to be trained on `corpus`.

        Equal on all back ends for one seed. What leaves the frozen layers below may be kept in `scratch`.
        """
        ...

    def backward(self, parts: Sequence[tuple[T, Tree, int]]) -> list[float]:
        """Loss of each tree over this number of tokens, summed cross-entropy; adds up its gradients.

        Numbers of one client never reach another's adapter.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """`device`, `dtype` and `threads` as they are used."""
        ...

    def peak_memory(self) -> int:
        """Bytes, of the accelerator where there is one, else of this process."""
        ...


def load_backend(training: TrainingConfig, base_dir: Path) -> Backend[Any]:
    """The base of this folder, loaded by the library that `training.device` asks for.

    Raises TrainingError where the device is not there, MissingModel where the folder has no weights.
    """
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    installed = find_spec("mlx") is not None and find_spec("mlx_lm") is not None
    if takes_mlx(training.device, apple=apple, installed=installed):
        from fine_tune_runner.private.mlx_backend import MlxBackend

        return MlxBackend(training, base_dir)
    from fine_tune_runner.private.torch_backend import TorchBackend

    return TorchBackend(training, base_dir)


def takes_mlx(device: str, *, apple: bool, installed: bool) -> bool:
    """Whether MLX trains: where it is asked for, and by itself on Apple silicon.

    Raises TrainingError where it is asked for and not installed.
    """
    if device == "mlx" and not installed:
        raise TrainingError(
            'training.device is "mlx", which is not installed here; '
            "run: pip install 'fine-tune-runner[mlx]', or set it to \"auto\""
        )
    return device == "mlx" or (device == "auto" and apple and installed)


def process_memory() -> int:
    """The most that this process has used, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(error: Exception) -> TrainingError:
    """What a back end raises in place of its library's own error."""
    return TrainingError(
        f"the accelerator's memory is too small: {error}; lower training.batch_size or training.layers, "
        "and resume"
    )
