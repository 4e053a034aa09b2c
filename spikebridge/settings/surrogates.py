"""The formulas that stand for the derivative of a spike.  Loads no torch: they are methods of x."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Formula(NamedTuple):
    """A smooth function and its derivative, both of x / width, for width = height = 1."""

    smooth: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    text: str


def _triangle(x: Tensor) -> Tensor:
    inside = x.clamp(-1, 1)
    return inside * (1 - inside.abs() / 2)


# Each derivative is 1 at x = 0, so that `height` is the peak and `width` the scale, in all of them.
FORMULAS = {
    "tanh_prime": Formula(lambda x: x.tanh(), lambda x: 1 - x.tanh() ** 2, "1 - tanh(x)^2"),
    "window": Formula(lambda x: x.clamp(-1, 1), lambda x: (x.abs() < 1).to(x.dtype), "1[|x| < 1]"),
    "triangle": Formula(_triangle, lambda x: (1 - x.abs()).clamp(min=0), "max(0, 1 - |x|)"),
    "fast_sigmoid": Formula(
        lambda x: x / (1 + x.abs()), lambda x: 1 / (1 + x.abs()) ** 2, "1 / (1 + |x|)^2"
    ),
    "arctan": Formula(lambda x: x.atan(), lambda x: 1 / (1 + x * x), "1 / (1 + x^2)"),
    "sigmoid_prime": Formula(
        lambda x: 4 * x.sigmoid(),
        lambda x: 4 * x.sigmoid() * (1 - x.sigmoid()),
        "4 sigmoid(x) (1 - sigmoid(x))",
    ),
}
