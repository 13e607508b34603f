"""Frozen weights in 4 bits: NF4 with double quantisation (QLoRA, Dettmers et al. 2023, section 3).

bitsandbytes does the packing, an extra of this package. Weights are decoded anew at each use, so that only
one of them is dense at a time. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fine_tune_runner.errors import TrainingError

DEVICES = ("cuda", "cpu")  # where bitsandbytes packs and unpacks NF4


@dataclass(frozen=True)
class Packed:
    """A matrix in NF4; `state` is bitsandbytes' own, shape and dtype in it."""

    data: Tensor
    state: Any

    def dense(self) -> Tensor:
        """The matrix in the dtype that it was packed from."""
        from bitsandbytes import functional

        decoded: Tensor = functional.dequantize_4bit(self.data, self.state)
        return decoded


def pack(weight_OI: Tensor) -> Packed:
    """Encode a matrix; TrainingError where bitsandbytes is missing or does not know the device."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise TrainingError(
            'training.dtype "nf4" needs bitsandbytes; run: pip install bitsandbytes, or set it to "auto"'
        ) from None
    if weight_OI.device.type not in DEVICES:
        raise TrainingError(
            f'training.dtype "nf4" works on {" and ".join(DEVICES)}, not on {weight_OI.device.type}; '
            'set training.dtype to "auto"'
        )
    with torch.no_grad():
        return Packed(*functional.quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True))


def dense(weight: Tensor | Packed) -> Tensor:
    """A weight as a matrix, whichever form it is kept in."""
    return weight if isinstance(weight, Tensor) else weight.dense()
