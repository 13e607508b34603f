"""What stands between a Llama's linears: RMS norm, SwiGLU and rotation, each with its way back by hand.

Made again on the way back where that is cheaper than keeping it. It knows tensors, and no layer or adapter.
Axes: N tokens, E hidden, F feed-forward, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Before(Protocol):
    """A function with nothing to learn, right before a linear, which keeps `x` and not what is made of it."""

    def forward(self, x: Tensor) -> Tensor:
        """The linear's input."""
        ...

    def backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient of `x`, given that of the linear's input, which may be overwritten."""
        ...


@dataclass(frozen=True)
class RmsNorm:
    """Root-mean-square norm, in float32 (Zhang and Sennrich 2019); [N, E] to [N, E], `weight` [E]."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of `x`."""
        return (x.float() * self._rstd(x)).to(x.dtype) * self.weight

    def backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """r (g w - x r^2 mean(g w x)), where r is one over the root mean square."""
        wide, rstd = x.float(), self._rstd(x)
        inner = grad.mul_(self.weight).float()
        mean = (inner * wide).mean(-1, keepdim=True)
        return inner.mul_(rstd).addcmul_(wide, mean * rstd.pow(3), value=-1).to(x.dtype)

    def _rstd(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.rsqrt(norm.square() / x.shape[-1] + self.eps)


class SwiGLU:
    """SiLU of the gate times up (Shazeer 2020); [N, 2 F], gate and up side by side, to [N, F]."""

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of `x`."""
        gate, up = x.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)

    def backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """Both halves into one tensor."""
        gate, up = x.chunk(2, dim=1)
        back = torch.empty_like(x)
        back_gate, back_up = back.chunk(2, dim=1)
        torch.mul(functional.silu(gate), grad, out=back_up)
        torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=back_gate)
        return back


def rotate(x_NHD: Tensor, rope: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Rotate the pairs (i, i + D / 2) of the first `heads` heads, as Hugging Face lays them out.

    `rope` is cos and sin, each [N, 1, D / 2].
    """
    rotated: Tensor = _Rotate.apply(x_NHD, *rope, heads)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """One tensor made, and two passes over it, where autograd makes seven; back is a turn the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return _turned(x, cos, sin, heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin, ctx.heads), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    out = torch.empty_like(x)
    (left, right), (out_left, out_right) = (part[:, :heads].chunk(2, dim=-1) for part in (x, out))
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    out[:, heads:] = x[:, heads:]
    return out
