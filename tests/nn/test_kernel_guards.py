"""Wrong operands of the kernels are errors, never reads beyond memory; no NaN that need not be."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from spikebridge.base.records import ConfigError
from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.kernels import native
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit
from spikebridge.settings.model import ModelConfig

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))

T, B, N = 3, 2, 5
RULE = ("identity", 1.0, True, 0.0, "triangle", 1.0, 1.0, False, "snu", [])


def operands() -> dict[str, Any]:
    """What the op `scan` takes in front of the rule."""
    return {
        "drive": torch.randn(T, B, N),
        "recurrent": torch.randn(N, N),
        "s0": torch.zeros(B, N),
        "y0": torch.zeros(B, N),
        "decay": torch.tensor(0.5),
        "bias": torch.full((N,), -1.0),
        "own": None,
    }


def gradients() -> dict[str, Any]:
    """What the op `scan_backward` takes in front of the rule."""
    given = operands()
    del given["drive"]
    first = {
        "grad_y": torch.randn(T, B, N),
        "grad_s_last": torch.randn(B, N),
        "grad_y_last": torch.randn(B, N),
        "drive": None,
        "recurrent": given.pop("recurrent"),
        "s_all": torch.randn(T, B, N),
    }
    return first | given


WRONG: dict[str, list[Tensor]] = {
    "drive": [
        torch.randn(B, N),
        torch.randn(T, B, N + 1),
        torch.randn(T, B + 1, N),
        torch.randn(T, B, N).half(),
        torch.ones(T, B, N, dtype=torch.int32),
        torch.randn(T, B, N).double(),
    ],
    "recurrent": [
        torch.randn(N, N + 1),
        torch.randn(N - 1, N - 1),
        torch.randn(N * N),
        torch.randn(N, N).double(),
    ],
    "s0": [torch.zeros(1, 1), torch.zeros(N), torch.zeros(B, N).double(), torch.zeros(B, N + 1)],
    "decay": [torch.ones(N - 1), torch.ones(1), torch.ones(N).double(), torch.ones(1, N)],
    "s_all": [
        torch.randn(T - 1, B, N),
        torch.randn(0, B, N),
        torch.randn(T, B, N).double(),
        torch.randn(B, N),
        torch.ones(T, B, N, dtype=torch.int32),
    ],
    "grad_y": [torch.randn(T, B, N + 1), torch.randn(B, N), torch.randn(T, B, N).double()],
    "grad_s_last": [torch.randn(1, N), torch.randn(B, N).bfloat16()],
}
WRONG["own"] = [torch.zeros(1, N)]
for same, as_ in (("y0", "s0"), ("bias", "decay"), ("grad_y_last", "grad_s_last")):
    WRONG[same] = WRONG[as_]


@pytest.mark.parametrize(
    ("op", "given"), [("scan", operands), ("scan_backward", gradients)], ids=["forward", "backward"]
)
def test_an_op_refuses_what_it_would_read_beyond(op: str, given: Any) -> None:
    run = getattr(torch.ops.spikebridge, op)
    keep = (True,) if op == "scan" else ()
    run(*given().values(), *RULE, *keep)
    for name in given():
        for value in WRONG[name]:
            with pytest.raises((ValueError, TypeError), match=r"must be|does not go with|has no"):
                run(*(given() | {name: value}).values(), *RULE, *keep)
    for at, wrong in ((0, "softplus"), (4, "gauss"), (5, 1e-39), (5, math.nan)):
        rule = [*RULE]
        rule[at] = wrong
        with pytest.raises(ValueError, match=r"is not known|width="):
            run(*given().values(), *rule, *keep)


def test_sizes_beyond_any_memory_are_an_error() -> None:
    code = """
import torch
from spikebridge import make_unit
from spikebridge.nn.kernels import native
from spikebridge.nn.scan import scan

def refused(run):
    try:
        run()
    except (MemoryError, ValueError):
        print("refused")

for shape in ((2**62, 4), (2**61, 2), (2**60, 1), (2**31, 2**31), (2**63 - 1,), (2**40, 3)):
    refused(lambda: native.empty(shape, torch.float32))
for shape in ([2**62, 4], [0, 2**62, 4], [2**60, 4], [-1, 4]):
    refused(lambda: torch.utils.dlpack.from_dlpack(native._native.pooled(shape, 2, 32)))
for steps, units in ((2**50, 1), (2**50, 3), (2**59, 1), (2**59, 3), (2**61, 3), (2**62, 1)):
    drive = torch.randn(1, 1, units).expand(steps, 1, units)
    refused(lambda: scan(make_unit("snu", units), drive))
print(native.empty((2**20,), torch.float32).zero_().sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 16 + ["0.0"]


@pytest.mark.parametrize("width", [1e-39, 1e-31, 0.0, math.nan, math.inf, 1e31])
def test_a_width_that_float32_cannot_divide_by_is_refused(width: float) -> None:
    for name in ("width", "height"):
        with pytest.raises(ValueError, match=f"surrogate {name} must be positive"):
            Surrogate(**{name: width})
        with pytest.raises(ConfigError, match=f"surrogate_{name}"):
            ModelConfig(**{f"surrogate_{name}": width})


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("width", [1e-30, 1e30])
def test_the_narrowest_and_widest_surrogates_are_those_of_the_loop(
    formula: str, width: float
) -> None:
    unit = make_unit("snu", 4, surrogate=Surrogate(formula, width), reset="none")
    drive = torch.tensor([1.0, 1.0 + 1e-7, 0.0, 3.0]).expand(2, 1, 4)
    found = []
    for backend in ("loop", "native"):
        x = drive.clone().requires_grad_()
        y, _ = scan(unit, x, backend=backend)  # type: ignore[arg-type]
        y.sum().backward()
        found.append(x.grad)
    assert found[0] is not None
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("reset", ["none", "subtract", "gate"])
@pytest.mark.parametrize("size", [1e10, 1e20, 1e30])
def test_a_product_that_only_the_gate_needs_does_not_overflow_without_it(
    reset: str, size: float, recurrent: bool
) -> None:
    surrogate = Surrogate("fast_sigmoid")
    unit = make_unit("snu", 1, surrogate=surrogate, decay=1.0, reset=reset)
    matrix = torch.zeros(1, 1) if recurrent else None
    found = []
    for backend in ("loop", "native"):
        x = torch.tensor([size, -size]).view(2, 1, 1).requires_grad_()
        y, _ = scan(unit, x, matrix, backend=backend)  # type: ignore[arg-type]
        y.backward(torch.full_like(y, 1e20))
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0], equal_nan=True)
    assert reset == "gate" or found[1].isfinite().all()


@pytest.mark.parametrize("isa", native._native.instruction_sets() if native._native else [])
def test_nan_stays_nan(isa: str) -> None:
    before = native.instruction_set()
    native._native.choose_instruction_set(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            unit = make_unit("softsnu", 9, g="elu").to(dtype)
            drive = torch.zeros(2, 1, 9, dtype=dtype)
            drive[0, 0, 3] = math.nan
            y, _ = scan(unit, drive, backend="native")
            assert y[:, 0, 3].isnan().all()
            assert int(y.isnan().sum()) == 2
    finally:
        native._native.choose_instruction_set(before)


@pytest.mark.parametrize(("name", "size"), [("threshold", N - 2), ("fixed_decay", N + 1)])
@pytest.mark.parametrize("trained", [True, False])
def test_parameters_that_do_not_fit_are_refused_in_a_layer_too(
    name: str, size: int, trained: bool
) -> None:
    unit = make_unit("snu", N)
    operand = "bias" if name == "threshold" else "decay"
    wrong = torch.ones(size)
    setattr(unit, name, torch.nn.Parameter(wrong) if name == "threshold" else wrong)
    drive = torch.randn(T, B, N, requires_grad=trained)
    with pytest.raises(ValueError, match=rf"{operand} must be a strided \({N},\)"):
        scan(unit, drive, backend="native")
