"""How far two learning rules are apart: the angle between their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["angle_deg", "angles_deg", "gradients_of"]

Gradients = Mapping[str, Tensor] | Sequence[Tensor]


def angle_deg(a: Gradients, b: Gradients) -> float:
    """The angle between two sets of gradients, each taken as one long vector.

    Args:
        a, b: tensors by name, or in the same order; any shapes, the same in both.

    Returns:
        Degrees, from 0 to 180; NaN where one of the two is all 0 and points nowhere.  Below 90
        a small step along -a lowers the loss whose gradient is b (Lillicrap et al. 2016).

    Raises ValueError where names or shapes differ.
    """
    pairs = _pairs(a, b).values()
    a_flat, b_flat = (torch.cat([_flat(t) for t in side]) for side in zip(*pairs, strict=True))
    return _angle(a_flat, b_flat)


def angles_deg(a: Gradients, b: Gradients) -> dict[str, float]:
    """As `angle_deg`, for each tensor on its own; by its name, or its number as text."""
    return {name: _angle(_flat(g), _flat(h)) for name, (g, h) in _pairs(a, b).items()}


def gradients_of(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """What one backward pass gives every trained parameter of a model, by name.

    Args:
        model: whose `.grad` are left as they are.
        loss: runs the model and gives its loss, a single number.

    Returns:
        A copy of each gradient, in the parameter's shape; 0 where the loss does not reach.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.grad for name, p in trained.items()}
    try:
        for p in trained.values():
            p.grad = None
        with torch.enable_grad():
            loss().backward()
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for name, p in trained.items()
        }
    finally:
        for name, p in trained.items():
            p.grad = before[name]


def _pairs(a: Gradients, b: Gradients) -> dict[str, tuple[Tensor, Tensor]]:
    left, right = (
        dict(side) if isinstance(side, Mapping) else {str(k): t for k, t in enumerate(side)}
        for side in (a, b)
    )
    if not left or left.keys() != right.keys():
        raise ValueError(
            "an angle is between gradients of the same parameters, got "
            f"{sorted(left)} and {sorted(right)}; give both the same names"
        )
    for name in left:
        if left[name].shape != right[name].shape:
            raise ValueError(
                f"{name}: gradients of shapes {tuple(left[name].shape)} and "
                f"{tuple(right[name].shape)} have no angle; give both the same shape"
            )
    return {name: (left[name], right[name]) for name in left}


def _flat(t: Tensor) -> Tensor:
    return t.detach().double().cpu().reshape(-1)


def _angle(a: Tensor, b: Tensor) -> float:
    if not (a.any() and b.any()):
        return math.nan
    # Scaled first, or tiny gradients square to 0.  An arc cosine is inexact near 0 and 180.
    a, b = (v / v.abs().amax() for v in (a, b))
    a, b = (v / v.norm() for v in (a, b))
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))
