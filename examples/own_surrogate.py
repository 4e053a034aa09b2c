"""A surrogate of your own: what stands for the derivative of the spike in the backward pass.

    spikebridge train digits --surrogate own_surrogate:STEEP      in the folder of this file

Commands that only read such a run want SPIKEBRIDGE_MODULES=own_surrogate before them.
"""

import torch
from torch import Tensor

from spikebridge import SNU, Formula, Surrogate


def smooth(x: Tensor) -> Tensor:
    """What would be the step: its derivative is `slope`."""
    return x.sign() * (1 - (1 + x.abs()) ** -2) / 2


def slope(x: Tensor) -> Tensor:
    return (1 + x.abs()) ** -3  # 1 at the threshold, as of all formulas


STEEP = Formula(smooth, slope, "1 / (1 + |x|)^3")

if __name__ == "__main__":
    layer = SNU(10, 20, surrogate=Surrogate(f"{__name__}:STEEP", width=0.5))
    x = torch.rand(50, 3, 10, requires_grad=True)
    layer(x)[0].sum().backward()
    print(f"gradient of the inputs: {x.grad.abs().mean():.3g}")
