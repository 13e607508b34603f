"""Training computed by MLX, on Apple silicon; on Linux's CPU it is correct and slow, for tests.

The seam of backend.py over mlx_llama.py and MLX's AdamW. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import AdamW, clip_grad_norm

from fine_tune_runner.private.backend import State, out_of_memory, process_memory
from fine_tune_runner.private.batches import TRUNK_BYTES, Corpus, Tree, make_batch
from fine_tune_runner.private.llama_config import LlamaConfig, read_config
from fine_tune_runner.private.lora_layout import check_same, start
from fine_tune_runner.private.mlx_llama import Lora, MlxLlama, block, load_llama, reaches, summed_loss, top
from fine_tune_runner.settings import TrainingConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_TOKENS = 4096  # go through the frozen layers at once
MOMENTS = {"mean": "m", "square": "v"}  # our names, and those of mlx.optimizers.Adam


@contextmanager
def _memory() -> Iterator[None]:
    """MLX has no error of its own for this: what it says of buffers, from malloc and from Metal."""
    try:
        yield
    except RuntimeError as error:
        if "malloc" not in str(error) and "Insufficient Memory" not in str(error):
            raise
        raise out_of_memory(error) from None


class MlxAdapter:
    """LoRA weights under PEFT's names, on the layers `layers`; as lora_layout.PeftAdapter."""

    def __init__(self, rank: int, alpha: float, layers: Collection[int], matrices: Mapping[str, Any]) -> None:
        self.rank, self.alpha, self.layers = rank, alpha, layers
        self.matrices = {name: mx.array(matrix) for name, matrix in matrices.items()}

    @property
    def scale(self) -> float:
        """What the products are multiplied by."""
        return self.alpha / self.rank

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copies under PEFT's names."""
        return {name: np.array(matrix) for name, matrix in self.matrices.items()}


class Trunk:
    """What leaves the frozen layers, [T, E] a segment: computed once where `TRUNK_BYTES` hold it."""

    def __init__(self, llama: MlxLlama, corpus: Corpus, depth: int, memory_bytes: int = TRUNK_BYTES) -> None:
        self._llama, self._corpus, self._depth = llama, corpus, depth
        self._kept: dict[int, mx.array] = {}
        tokens = sum(len(segment.tokens) for segment in corpus.segments)
        # The bare embedding is not worth keeping. Float32 or less, so four bytes at most.
        if depth and tokens * llama.config.hidden * 4 <= memory_bytes:
            for tree in make_batch(corpus, range(len(corpus.chats)), CHUNK_TOKENS).trees:
                self._keep(tree)

    @property
    def kept(self) -> bool:
        """Whether hidden states are kept."""
        return bool(self._kept)

    def _keep(self, tree: Tree) -> None:
        states = self._run(tree)
        new = {span.segment: states[span.start : span.end] for span in tree.spans}
        # Copies: a slice would hold the whole tree's array, its ancestors' states in it once more.
        fresh = {segment: mx.contiguous(x) for segment, x in new.items() if segment not in self._kept}
        mx.eval(fresh)
        self._kept |= fresh

    def states(self, tree: Tree) -> mx.array:
        """[N, E] of a tree's flat tokens."""
        if self._kept:
            return mx.concatenate([self._kept[span.segment] for span in tree.spans])
        return self._run(tree)

    def _run(self, tree: Tree) -> mx.array:
        tokens = [token for span in tree.spans for token in self._corpus.segments[span.segment].tokens]
        x, spans = self._llama.embed(tokens), reaches(self._corpus, tree.spans)
        for index in range(self._depth):
            x = block(self._llama, index, None, x, spans)
        return x


class MlxTrainable:
    """As backend.Trainable; `corpus` and `trunk` are what its trees are about."""

    def __init__(self, adapter: MlxAdapter, corpus: Corpus, trunk: Trunk, weight_decay: float) -> None:
        self.adapter, self.corpus, self.trunk = adapter, corpus, trunk
        self.gradients: dict[str, mx.array] = {}
        # torch always corrects the bias, MLX only where asked; betas and eps are equal.
        self._optimizer = AdamW(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)
        self._optimizer.init(adapter.matrices)

    def add(self, gradients: Mapping[str, mx.array]) -> None:
        """Add to the gradients of this step."""
        own = self.gradients
        self.gradients = {name: own[name] + g if name in own else g for name, g in gradients.items()}
        mx.eval(self.gradients)

    def clip(self, limit: float) -> float:
        """As backend.Trainable."""
        self.gradients, norm = clip_grad_norm(self.gradients, limit)
        return float(norm)

    @_memory()
    def step(self, rate: float) -> None:
        """As backend.Trainable."""
        self._optimizer.learning_rate = rate
        self.adapter.matrices = self._optimizer.apply_gradients(self.gradients, self.adapter.matrices)
        mx.eval(self.adapter.matrices, self._optimizer.state)

    def forget(self) -> None:
        """As backend.Trainable."""
        self.gradients = {}

    def state(self) -> State:
        """As backend.Trainable."""
        moments = {
            kind: {name: np.array(self._optimizer.state[name][own]) for name in self.adapter.matrices}
            for kind, own in MOMENTS.items()
        }
        return {"weight": self.adapter.tensors(), **moments}

    def restore(self, state: State, step: int) -> None:
        """As backend.Trainable."""
        for arrays in state.values():
            check_same(self.adapter.matrices, arrays)
        # In the adapter's own order, not the file's: the norm of all gradients is added up in it.
        self.adapter.matrices = {name: mx.array(state["weight"][name]) for name in self.adapter.matrices}
        own = self._optimizer.state
        own["step"] = mx.array(step, mx.uint64)
        for name in self.adapter.matrices:
            own[name] = {short: mx.array(state[kind][name]) for kind, short in MOMENTS.items()}


class MlxBackend:
    """As backend.Backend; loads the base when it is made. `threads` has no meaning here."""

    @_memory()
    def __init__(self, training: TrainingConfig, base_dir: Path) -> None:
        self._four_bit = training.dtype == "nf4"
        self._dtype = choose_dtype(training)
        self._llama = load_llama(base_dir, read_config(base_dir), self._dtype, four_bit=self._four_bit)

    @property
    def config(self) -> LlamaConfig:
        """As backend.Backend."""
        return self._llama.config

    @_memory()
    def begin(self, corpus: Corpus, training: TrainingConfig, layers: int, scratch: Path) -> MlxTrainable:
        """As backend.Backend; hidden states stay in memory or are computed anew, none go to `scratch`."""
        depth = self.config.layers - layers
        trained = range(depth, self.config.layers)
        drawn = start(dict.fromkeys(trained, self.config.shapes), rank=training.rank, seed=training.seed)
        adapter = MlxAdapter(training.rank, training.alpha, trained, drawn)
        return MlxTrainable(adapter, corpus, Trunk(self._llama, corpus, depth), training.weight_decay)

    @_memory()
    def backward(self, parts: Sequence[tuple[MlxTrainable, Tree, int]]) -> list[float]:
        """As backend.Backend; one tree after another, so that no client's numbers meet another's."""
        return [self._backward(*part) for part in parts]

    def _backward(self, own: MlxTrainable, tree: Tree, tokens: int) -> float:
        states, adapter = own.trunk.states(tree), own.adapter

        def share(matrices: Mapping[str, mx.array]) -> mx.array:
            lora = Lora(adapter.scale, matrices)
            hidden_ME = top(self._llama, tree, own.corpus, states, lora, min(adapter.layers))
            return summed_loss(self._llama, hidden_ME, tree.targets) / tokens

        value, gradients = mx.value_and_grad(share)(adapter.matrices)
        own.add(gradients)
        return float(value)

    def settings(self) -> dict[str, Any]:
        """As backend.Backend."""
        dtype = "mlx 4-bit" if self._four_bit else str(self._dtype).removeprefix("mlx.core.")
        return {"device": "mlx", "dtype": dtype, "threads": None}

    def peak_memory(self) -> int:
        """As backend.Backend."""
        return mx.get_peak_memory() if mx.default_device() == mx.gpu else process_memory()


def choose_dtype(training: TrainingConfig) -> mx.Dtype:
    """`training.dtype`, or bfloat16 on a GPU and float32 on the CPU; with "nf4" for what is not packed."""
    auto = mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32
    return {"float32": mx.float32, "bfloat16": mx.bfloat16}.get(training.dtype, auto)
