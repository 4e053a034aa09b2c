"""Every place where the backward pass is not the derivative of the forward pass.

`forward_as` takes the value of one tensor and the gradient of another, `modulate` scales a
gradient and leaves the value alone, and a `Surrogate` is a step function whose derivative is that
of a stated smooth function.  A surrogate is named by its formula, because the customary names
("SuperSpike", "fast sigmoid") stand for several different functions in the literature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spikebridge.base.records import UsageError
from spikebridge.settings.names import is_place, named
from spikebridge.settings.surrogates import FORMULAS, Formula

__all__ = ["FORMULAS", "Formula", "Surrogate", "formula_of", "forward_as", "modulate"]

# Of widths and heights: beyond, 1 / width is infinite in float32 and the gradient NaN.
SMALLEST, LARGEST = 1e-30, 1e30


class _ForwardAs(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, hard: Tensor) -> Tensor:
        return hard.detach().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def forward_as(soft: Tensor, hard: Tensor) -> Tensor:
    """Value of `hard`, gradient of `soft`: the straight-through primitive.

    Exact for every value, unlike `soft + (hard - soft).detach()`, which may round.

    Args:
        soft: any shape; receives the whole gradient.
        hard: the same shape and dtype; receives none.
    """
    if soft.shape != hard.shape or soft.dtype != hard.dtype:
        raise ValueError(
            f"soft and hard must agree in shape and dtype, got {tuple(soft.shape)} {soft.dtype} "
            f"and {tuple(hard.shape)} {hard.dtype}; expand or cast one of them first"
        )
    return _ForwardAs.apply(soft, hard)


class _Modulate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(drive: Tensor, factor: Tensor) -> Tensor:
        return drive.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grads[0] * factor.to(grads[0].dtype), None


def modulate(drive: Tensor, factor: Tensor | float) -> Tensor:
    """Identity forward; backward the gradient is multiplied by `factor`, which gets none itself.

    Args:
        drive: (..., N).
        factor: a number, or a tensor that broadcasts against `drive`, for example (N,).
    """
    factor = torch.as_tensor(factor, dtype=drive.dtype, device=drive.device)
    pairs = zip(reversed(drive.shape), reversed(factor.shape), strict=False)
    if factor.dim() > drive.dim() or any(f not in (1, d) for d, f in pairs):
        raise ValueError(
            f"factor of shape {tuple(factor.shape)} does not broadcast to drive of shape "
            f"{tuple(drive.shape)}; give one number, or one factor per neuron"
        )
    return _Modulate.apply(drive, factor.detach())


def formula_of(name: str) -> Formula:
    """The formula of a name, one of `FORMULAS` or "module:FORMULA" of a user's.

    Raises ValueError for another name, UsageError for a module that the user has not named.
    """
    if name in FORMULAS:
        return FORMULAS[name]
    if not is_place(name):
        raise ValueError(f"surrogate formula {name!r} is not known; choose one of {list(FORMULAS)}")
    formula = named("surrogate", name)
    if not isinstance(formula, Formula):
        raise UsageError(f"surrogate={name!r}: it must be a spikebridge.Formula, got {formula!r}")
    return formula


class _Fire(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.surrogate = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.grad(x), None


@dataclass(frozen=True)
class Surrogate:
    """The step 1[x > 0] with the derivative of a smooth function: height * f(x / width).

    Args:
        formula: one of `FORMULAS`, or "module:FORMULA" of your own; f has the peak 1 at x = 0.
        width: scale of x, 1e-30 to 1e30.  Of "window" and "triangle" it is half the support.
        height: the derivative at the threshold, 1e-30 to 1e30.
        relaxed: the smooth function itself also in the forward pass.  Forward and backward then
            agree, which is what a numerical gradient check needs; no spikes come out.

    The SNU paper's surrogate is ("tanh_prime", 1, 1); Yin et al. use ("window", 1, 0.5).
    """

    formula: str = "tanh_prime"
    width: float = 1.0
    height: float = 1.0
    relaxed: bool = False

    def __post_init__(self) -> None:
        formula_of(self.formula)
        for name in ("width", "height"):
            value = getattr(self, name)
            if not SMALLEST <= value <= LARGEST:
                raise ValueError(
                    f"surrogate {name} must be positive, from {SMALLEST:g} to {LARGEST:g} so that "
                    f"float32 holds it and its inverse, got {value}"
                )

    def __call__(self, x: Tensor) -> Tensor:
        """Spikes of x = s + b: 1 where x > 0, else 0, in the dtype of x; NaN gives 0."""
        return self.smooth(x) if self.relaxed else _Fire.apply(x, self)

    def smooth(self, x: Tensor) -> Tensor:
        """The function whose derivative `grad` is: height * width * F(x / width)."""
        return formula_of(self.formula).smooth(x / self.width) * (self.height * self.width)

    def grad(self, x: Tensor) -> Tensor:
        """The derivative used in the backward pass: height * f(x / width)."""
        return formula_of(self.formula).grad(x / self.width) * self.height

    def relax(self) -> Surrogate:
        """The same surrogate with its smooth function in the forward pass too."""
        return replace(self, relaxed=True)
