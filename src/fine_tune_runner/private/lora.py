"""LoRA on frozen linears (Hu et al. 2021, section 4.1), for PyTorch; lora_layout.py has names and files.

Knows module names and matrices; knows nothing of attention, batches or files of clients.
Projections that read the same input share one A matmul: their A matrices are stacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fine_tune_runner.private.activations import Before
from fine_tune_runner.private.four_bit import Packed, dense
from fine_tune_runner.private.lora_layout import GROUPS, Shapes, check_same, names, start


@dataclass(frozen=True)
class Lora:
    """The low-rank update of one group: `scale * x A_i^T B_i^T` for each linear i.

    `a` is [n linears * rank, in], `b` holds one [out_i, rank] a linear; both float32.
    """

    a: Tensor
    b: tuple[Tensor, ...]
    scale: float


@dataclass(frozen=True)
class Adapter:
    """LoRA weights by layer index and group name; layers without an entry stay as the base has them."""

    rank: int
    alpha: float
    layers: dict[int, dict[str, Lora]]

    def parameters(self) -> list[Tensor]:
        """All trainable tensors, in an order that depends on the shape alone."""
        return [
            tensor
            for groups in self.layers.values()
            for lora in groups.values()
            for tensor in (lora.a, *lora.b)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU under PEFT's key names, the stacked A matrices taken apart."""
        named: dict[str, Tensor] = {}
        for index, groups in self.layers.items():
            for group, lora in groups.items():
                parts = torch.split(lora.a.detach(), self.rank)
                for module, a, b in zip(GROUPS[group], parts, lora.b, strict=True):
                    name_a, name_b = names(index, module)
                    named[name_a], named[name_b] = a.cpu().clone(), b.detach().cpu().clone()
        return named

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite all weights with those of `tensors()`; TrainingError where names or shapes differ."""
        check_same(self.tensors(), tensors)
        for index, groups in self.layers.items():
            for group, lora in groups.items():
                keys = [names(index, module) for module in GROUPS[group]]
                lora.a.copy_(torch.cat([tensors[name_a] for name_a, _ in keys]))
                for (_, name_b), b in zip(keys, lora.b, strict=True):
                    b.copy_(tensors[name_b])

    def like(self, parameters: Sequence[Tensor]) -> Adapter:
        """An adapter of this shape around other tensors, in the order of `parameters()`."""
        rest = iter(parameters)

        def twin(lora: Lora) -> Lora:
            return replace(lora, a=next(rest), b=tuple(next(rest) for _ in lora.b))

        layers = {i: {name: twin(lora) for name, lora in groups.items()} for i, groups in self.layers.items()}
        return replace(self, layers=layers)


def new_adapter(
    shapes: Shapes, *, rank: int, alpha: float, seed: int, device: torch.device | str = "cpu"
) -> Adapter:
    """A fresh adapter as `lora_layout.start` draws it; `shapes[layer][group]` is (in, (out, ...))."""

    def empty(inputs: int, outputs: tuple[int, ...]) -> Lora:
        return Lora(
            a=torch.empty(len(outputs) * rank, inputs, device=device, requires_grad=True),
            b=tuple(torch.empty(out, rank, device=device, requires_grad=True) for out in outputs),
            scale=alpha / rank,
        )

    layers = {i: {name: empty(*shape) for name, shape in groups.items()} for i, groups in shapes.items()}
    adapter = Adapter(rank=rank, alpha=alpha, layers=layers)
    drawn = start(shapes, rank=rank, seed=seed)
    adapter.load({key: torch.from_numpy(array) for key, array in drawn.items()})
    return adapter


def linear(
    x_NI: Tensor,
    weight_OI: Tensor | Packed,
    loras: Sequence[tuple[int, Lora]],
    before: Before | None = None,
) -> Tensor:
    """[N, out]: the frozen linear of what `before` makes of `x_NI`, plus low-rank updates, by rows, in order.

    `loras` is empty, or covers all rows. No operation adds up over the rows of two of them. In the dtype of
    `x_NI`. The base's product is one for all, the low-rank ones come one after another; on the CPU that costs
    no more than one padded bmm (benchmarks/RESULTS.md).
    """
    layout = [(rows, len(lora.b), lora.scale) for rows, lora in loras]
    tensors = [t.to(x_NI.dtype) for _, lora in loras for t in (lora.a, *lora.b)]
    result: Tensor = _LoraLinear.apply(x_NI, weight_OI, before, layout, *tensors)  # type: ignore[no-untyped-call]
    return result


class _LoraLinear(torch.autograd.Function):
    """One pass over the output in place of autograd's cat and add; the base weight gets no gradient.

    `layout` is (rows, number of B matrices, scale) of each adapter, `tensors` its A and its B matrices.
    """

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weight: Tensor | Packed,
        before: Before | None,
        layout: list[tuple[int, int, float]],
        *tensors: Tensor,
    ) -> Tensor:
        x = source if before is None else before.forward(source)
        y = functional.linear(x, dense(weight))
        lows = []
        for (_, _, scale), xs, ys, a, b in _by_adapter(layout, tensors, x, y):
            z = xs @ a.T
            for part, zi, bi in _parts(ys, z, b):
                part.addmm_(zi, bi.T, alpha=scale)
            lows.append(z)
        ctx.save_for_backward(source, *lows, *tensors)
        ctx.weight, ctx.before, ctx.layout = weight, before, layout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        before, layout = ctx.before, ctx.layout
        source, *rest = ctx.saved_tensors
        lows, tensors = rest[: len(layout)], rest[len(layout) :]
        dy = grads[0]
        dx = dy @ dense(ctx.weight) if ctx.needs_input_grad[0] else None
        x = source if before is None or not layout else before.forward(source)
        given: list[Tensor] = []
        for place, ((_, _, scale), xs, dys, a, b) in enumerate(_by_adapter(layout, tensors, x, dy)):
            z, dz, db = lows[place], torch.empty_like(lows[place]), []
            dzs = torch.split(dz, b[0].shape[1], dim=1)
            for (dyi, zi, bi), dzi in zip(_parts(dys, z, b), dzs, strict=True):
                dzi.copy_(dyi @ bi).mul_(scale)
                db.append((dyi.T @ zi).mul_(scale))
            given += [dz.T @ xs, *db]
            if dx is not None:
                start = sum(rows for rows, _, _ in layout[:place])
                dx[start : start + len(dz)].addmm_(dz, a)
        if dx is not None and before is not None:
            dx = before.backward(source, dx)
        return dx, None, None, None, *given


def _by_adapter(layout: Any, tensors: Any, x: Tensor, y: Tensor) -> Any:
    """(its layout, its rows of x and of y, A, B matrices) of each adapter."""
    rows = [rows for rows, _, _ in layout]
    if not rows:
        return
    at = 0
    for own, xs, ys in zip(layout, torch.split(x, rows), torch.split(y, rows), strict=True):
        a, *b = tensors[at : at + 1 + own[1]]
        at += 1 + own[1]
        yield own, xs, ys, a, b


def _parts(y: Tensor, z: Tensor, b: Any) -> Any:
    """(output columns, low-rank columns, B) of each linear of a group."""
    outputs = torch.split(y, [bi.shape[0] for bi in b], dim=1)
    return zip(outputs, torch.split(z, b[0].shape[1], dim=1), b, strict=True)
