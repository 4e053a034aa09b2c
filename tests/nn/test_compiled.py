"""backend="compiled": a step compiled by torch keeps the values and gradients of the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikebridge import SNU, Rule, State, Surrogate, make_unit
from spikebridge.nn import compiled as module
from spikebridge.nn.scan import scan
from spikebridge.nn.units import Params, Unit

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch.compile says to itself


class Synaptic(Unit):
    """A synapse that leaks before the membrane, with a trained factor that is no `Params`."""

    def __init__(self, size: int, rule: Rule, **settings: Any) -> None:
        super().__init__(size, rule, **settings)
        self.factor = nn.Parameter(torch.tensor(0.5))

    @property
    def state_size(self) -> int:
        return 2 * self.size

    def membrane(self, state: State) -> Tensor:
        return state.s[..., : self.size]

    def step(self, state: State, drive: Tensor, params: Params) -> State:
        s, current = state.s.split(self.size, dim=-1)
        current = self.factor * current + drive
        s = current + params.decay * s * (1 - state.y)
        return State(self.rule.fire(s + params.bias), torch.cat([s, current], dim=-1))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 2)  # what takes long is to compile many steps


def all_of(
    unit: Unit, drive: Tensor, matrix: Tensor | None, state: State, backend: Any
) -> list[Tensor]:
    """Outputs, the last state, and the gradients of all that has any."""
    leaves = [drive, *state, *([] if matrix is None else [matrix])]
    leaves = [x.detach().requires_grad_() for x in leaves]
    start, recurrent = State(*leaves[1:3]), leaves[3] if matrix is not None else None
    y, last = scan(unit, leaves[0], recurrent, start, backend=backend)
    torch.manual_seed(1)
    sum((x * torch.randn_like(x)).sum() for x in (y, *last)).backward()
    grads = [x.grad for x in (*leaves, *unit.parameters())]
    unit.zero_grad()
    return [y.detach(), *(x.detach() for x in last), *grads]


@pytest.mark.parametrize(
    ("dtype", "steps", "recurrent"),
    [(torch.float32, 5, True), (torch.bfloat16, 2, False)],
    ids=["float32 recurrent", "bfloat16"],
)
def test_a_step_of_ones_own(dtype: torch.dtype, steps: int, recurrent: bool) -> None:
    torch.manual_seed(0)
    unit = Synaptic(5, Rule(Surrogate("arctan", 0.7)), train_decay=True, per_unit=True)
    drive, matrix = torch.randn(steps, 3, 5).to(dtype), torch.randn(5, 5) if recurrent else None
    state = State((torch.rand(3, 5) > 0.5).float(), torch.randn(3, 10))
    loop, compiled = (all_of(unit, drive, matrix, state, kind) for kind in ("loop", "compiled"))
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    assert torch.equal(compiled[0], loop[0])  # spikes
    for got, wanted in zip(compiled, loop, strict=True):
        torch.testing.assert_close(got, wanted, **close)


def test_a_unit_of_ours_that_has_no_kernel() -> None:
    torch.manual_seed(0)
    unit, drive = make_unit("adaptive-snu", 6), torch.randn(2, 2, 6)
    state = unit.initial_state(2, drive.dtype)
    loop, compiled = (all_of(unit, drive, None, state, kind) for kind in ("loop", "compiled"))
    for got, wanted in zip(compiled, loop, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(scan(unit, drive, backend="compiled")[0], loop[0])
        assert scan(unit, drive[:0], backend="compiled")[0].shape == (0, 2, 6)


def test_where_something_else_compiles_or_looks_on() -> None:
    layer, x = SNU(4, 3, backend="compiled"), torch.rand(3, 2, 4)
    inner = torch.compile(layer, fullgraph=True, backend="eager")(x)[0]
    assert torch.equal(inner, SNU.forward(layer, x)[0])
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda drive: scan(make_unit("snu", 4), drive, backend="compiled")[0])(
            x[None]
        )
