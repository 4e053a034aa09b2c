"""What the resistance of wires does to a crossbar, to first order."""

from __future__ import annotations

import torch
from torch import Tensor


def behind_wires(g_uS: Tensor, tile: int, wire_ohm: float) -> Tensor:
    """Conductances (..., I) as they act behind the resistance of a column's wire, to first order.

    Cell j of a column sees its input less R sum_m min(j, m) G_m x_m, with rows counted from the
    converter, while half of all rows are driven.
    """
    found = g_uS.clone()
    for start in range(0, g_uS.shape[-1], tile):
        part = g_uS[..., start : start + tile]
        rows = torch.arange(1, part.shape[-1] + 1, dtype=part.dtype)
        lost = part @ torch.minimum(rows[:, None], rows) * (0.5e-6 * wire_ohm)
        found[..., start : start + tile] = part * (1 - lost).clamp_min(0)
    return found
