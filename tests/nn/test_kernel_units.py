"""Units with more state and coupled layers on the native kernel: they equal the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.turns import in_turn
from test_kernel import (
    DTYPES,
    LAYOUTS,
    SIZES,
    Watching,
    assert_alike_alone,
    assert_equal_to_loop,
    matrix_of,
    resetting,
    results,
    state_of,
)

from spikebridge.nn.dynamics import AdaptiveUnit, DynamicUnit
from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.kernels import native, ops, sparse
from spikebridge.nn.kernels.product import goes_on, linear
from spikebridge.nn.layers import Layer
from spikebridge.nn.scan import scan, unsupported
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import Rule, SNUnit, State, Unit, state_dtype
from spikebridge.settings.names import MEMORIES, MODULATIONS

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)

# Of each step of the kernel its unit.
DYNAMIC = ("adaptation", "gate", "oscillation", "threshold", "output", "gate+output")
CLASSES: dict[str, type[Unit]] = {"snu": SNUnit} | dict.fromkeys(DYNAMIC, DynamicUnit)
# What laws go through that are about neither g nor the reset.
UNITS = [("snu", "lateral"), ("adaptation", "lateral"), *((name, "gate") for name in DYNAMIC)]
SOFT = [False, True]
EVERY_G = ("identity", "relu", "leaky_relu", "elu")
SOME_G = ("identity", "leaky_relu")


def unit_of(
    name: str, n: int, dtype: torch.dtype, reset: str = "gate", soft: bool = False, **rule
) -> Unit:
    fire = None if soft else rule.pop("surrogate", Surrogate())
    rule = Rule(fire, **resetting(reset), **rule)
    parts = set(name.split("+"))
    own: dict = {} if name == "snu" else {"rho": 0.8, "beta": 0.6, "slow_decay": 0.9}
    own |= {"memory": part for part in parts & set(MEMORIES)}  # noqa: B035
    own |= {"modulation": part for part in parts & set(MODULATIONS)}  # noqa: B035
    options = {"train_decay": True, "per_unit": True, "threshold": 0.8}
    return CLASSES[name](n, rule, **options, **own).to(state_dtype(dtype))


def drive_of(unit: Unit, t: int, b: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(t, b, unit.drives * unit.size).to(dtype) * 2


def wide_state(unit: Unit, b: int, dtype: torch.dtype) -> State:
    state = state_of(b, unit.size, dtype, not unit.spiking)
    more = torch.rand(b, unit.state_size - unit.size, dtype=state.s.dtype)
    return State(state.y, torch.cat([state.s, more], dim=-1))


def matrix_for(unit: Unit, dtype: torch.dtype, gates: bool = True) -> torch.Tensor:
    """Of the layer's outputs to all its currents, or to the first ones only."""
    parts = [matrix_of(unit.size, dtype) for _ in range(unit.drives if gates else 1)]
    return torch.cat(parts)


def assert_law(unit: Unit, drive: torch.Tensor, recurrent: bool) -> None:
    matrix = matrix_for(unit, drive.dtype) if recurrent else None
    assert_equal_to_loop(unit, drive, wide_state(unit, drive.shape[1], drive.dtype), matrix)


def test_every_step_of_the_kernel_is_held_to_its_unit() -> None:
    assert {step.name for step in ops.STEPS} == set(native.STEP_CODES) == set(CLASSES)
    for step in ops.STEPS:
        assert step.definition is CLASSES[step.name].step
    assert native._native.units == native._UNITS  # a GPU has them where that is not built


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(
    ("name", "g", "reset", "soft", "dtype"),
    in_turn(
        CLASSES,
        EVERY_G,
        ("gate", "subtract", "trained", "none", "lateral"),
        SOFT,
        last=DTYPES,
        of=lambda name, g, reset, soft: (
            (name != "snu" or reset == "lateral")
            and g in (EVERY_G if name in ("snu", "adaptation") else SOME_G)
        ),
    ),
    ids=str,
)
def test_every_member_of_the_family(
    name: str, g: str, reset: str, soft: bool, dtype: torch.dtype, recurrent: bool
) -> None:
    unit = unit_of(name, 37, dtype, reset, soft, g=g)
    if reset == "trained":  # each neuron takes off its own, one of them less than nothing
        with torch.no_grad():
            unit.threshold.copy_(torch.linspace(-0.1, 1.5, 37))
    assert_law(unit, drive_of(unit, 7, 3, dtype), recurrent)


@pytest.mark.parametrize(
    ("unit", "formula", "dtype"), in_turn(UNITS, FORMULAS, last=DTYPES), ids=str
)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
def test_every_surrogate(
    unit: tuple[str, str], formula: str, dtype: torch.dtype, recurrent: bool
) -> None:
    layer = unit_of(unit[0], 37, dtype, unit[1], surrogate=Surrogate(formula, 0.6, 0.8))
    assert_law(layer, drive_of(layer, 7, 3, dtype), recurrent)


@pytest.mark.parametrize(("size", "soft", "dtype"), in_turn(SIZES, SOFT, last=DTYPES), ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_awkward_sizes(
    name: str, reset: str, size: tuple[int, int, int], soft: bool, dtype: torch.dtype,
    recurrent: bool,
) -> None:  # fmt: skip
    unit = unit_of(name, size[2], dtype, reset, soft, g="leaky_relu")
    assert_law(unit, drive_of(unit, *size[:2], dtype), recurrent)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [13, 1030])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_operands_of_any_stride(name: str, reset: str, layout: str, n: int) -> None:
    unit = unit_of(name, n, torch.float32, reset)
    drive = LAYOUTS[layout](6, 3, unit.drives * n)
    assert_law(unit, drive, False)
    state = wide_state(unit, 3, torch.float32)
    across = State(*(x.mT.contiguous().mT for x in state))
    for mine, theirs in zip(
        results(unit, drive, across, "native").values(),
        results(unit, drive, state, "native").values(),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    grads: list[torch.Tensor] = []
    for backend in ("loop", "native"):
        leaf = drive.detach().requires_grad_()
        (grad,) = torch.autograd.grad(scan(unit, leaf, backend=backend)[0].mean(0).sum(), leaf)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_the_number_of_threads_changes_no_bit(name: str, reset: str, recurrent: bool) -> None:
    unit = unit_of(name, 700, torch.float32, reset)
    drive = drive_of(unit, 50, 5) / 2
    matrix = matrix_for(unit, torch.float32) if recurrent else None
    state, usual, seen = wide_state(unit, 5, torch.float32), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        seen.append(results(unit, drive, state, "native", matrix))
    torch.set_num_threads(usual)
    for other in seen[1:]:
        for part in other.keys() - {"grad recurrent"}:  # that product is torch's
            assert torch.equal(seen[0][part], other[part]), part


@pytest.mark.parametrize("soft", SOFT, ids=["spiking", "soft"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_buffers_that_are_large_and_full_of_nan(
    name: str, reset: str, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "POISON", True)
    unit = unit_of(name, 5003, torch.float32, reset, soft)
    assert_law(unit, drive_of(unit, 30, 8) / 2, False)


@pytest.mark.parametrize("part", ["y", "s", "last y"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_each_result_may_be_all_that_a_loss_depends_on(
    name: str, reset: str, recurrent: bool, dtype: torch.dtype, part: str
) -> None:
    unit = unit_of(name, 9, dtype, reset)
    matrix = matrix_for(unit, dtype) if recurrent else None
    assert_alike_alone(unit, matrix, dtype, part)


@pytest.mark.parametrize("soft", SOFT, ids=["spiking", "soft"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_missing_numbers_go_the_way_of_the_loop(name: str, reset: str, soft: bool) -> None:
    """With lateral inhibition a NaN among soft outputs reaches the layer, of that sample only."""
    unit, seen = unit_of(name, 40, torch.float32, reset, soft), []
    drive = drive_of(unit, 4, 2) / 2
    drive[1, 0, 33] = float("nan")
    drive[2, 0, 3] = 1e30
    for backend in ("loop", "native"):
        leaf = drive.clone().requires_grad_()
        y, state = scan(unit, leaf, backend=backend)
        (y.sum() + state.s.sum()).backward()
        seen.append((y, state.s, leaf.grad.isnan().float()))
    for loop, kernel in zip(*seen, strict=True):
        torch.testing.assert_close(kernel, loop, equal_nan=True, rtol=0, atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_a_state_handed_on_continues_the_sequence(name: str, reset: str, recurrent: bool) -> None:
    unit = unit_of(name, 9, torch.float32, reset)
    drive = drive_of(unit, 8, 2)
    matrix = matrix_for(unit, torch.float32) if recurrent else None
    with torch.no_grad():
        whole, last = scan(unit, drive, matrix, backend="native")
        first, state = scan(unit, drive[:3], matrix, backend="native")
        second, state = scan(unit, drive[3:], matrix, state, backend="native")
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(state.s, last.s)
    assert torch.equal(state.y, last.y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_the_short_way_to_the_kernel_is_the_custom_op(
    name: str, reset: str, dtype: torch.dtype
) -> None:
    unit = unit_of(name, 9, dtype, reset)
    drive = drive_of(unit, 5, 4, dtype)
    state, seen = wide_state(unit, 4, dtype), []
    for watched in (False, True):
        with Watching() if watched else torch.no_grad():
            seen.append([*scan(unit, drive, state=state, backend="native")])
    short, op = seen
    assert torch.equal(short[0], op[0])
    assert torch.equal(short[1].s, op[1].s)


@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_the_custom_op_keeps_the_rules_of_torch(name: str, reset: str) -> None:
    (b, n), kind = (3, 5), native.step(name)
    small = [torch.randn(kind.states * b, n), torch.rand(b, n), torch.tensor(0.8), -torch.ones(n)]
    small.append(torch.rand(kind.own, n) if kind.own else None)
    numbers = [0.8, 0.2, 0.6]
    rule = ("leaky_relu", 0.1, reset == "gate", 0.0, "triangle", 1.0, 1.0)
    rule = (*rule, reset == "lateral", name, numbers)
    drive = torch.randn(4, b, kind.drives * n)
    leaves = [x if x is None else x.clone().requires_grad_() for x in (drive, *small)]
    torch.library.opcheck(
        torch.ops.spikebridge.scan.default, (leaves[0], None, *leaves[1:], *rule, True)
    )
    torch.library.opcheck(
        torch.ops.spikebridge.scan_backward.default,
        (
            torch.randn(4, b, n),
            small[0],
            None,
            drive if kind.reads else None,
            None,
            torch.randn(4, kind.states * b, n),
            *small,
            *rule,
        ),
    )


@pytest.mark.parametrize(("unit", "recurrent"), in_turn(UNITS, last=(False, True)), ids=str)
def test_a_layer_compiles_as_one_graph(unit: tuple[str, str], recurrent: bool) -> None:
    name, reset = unit
    torch._dynamo.reset()
    unit = unit_of(name, 9, torch.float32, reset)
    gates = recurrent and unit.drives > 1
    array = Dense(6, 9 * unit.drives)
    layer = Layer(array, unit, recurrent=recurrent, recurrent_gates=gates)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for t, b in ((5, 2), (7, 3)):
        x, seen = torch.randn(t, b, 6) * 3, []
        for run in (layer, compiled):
            leaf = x.clone().requires_grad_()
            y, state = run(leaf)
            loss = y.square().sum() + state.s.square().sum()
            seen.append([y, *state, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
        for mine, theirs in zip(*seen, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_recomputing_changes_nothing(name: str, reset: str, recurrent: bool) -> None:
    unit = unit_of(name, 9, torch.float32, reset)
    arrays = [(k, Dense(6, 9 * unit.drives)) for k in (0, 3)]
    layers = [Layer(array, unit, recurrent=recurrent, recompute=k) for k, array in arrays]
    layers[1].load_state_dict(layers[0].state_dict())
    x, seen = torch.randn(8, 2, 6) * 3, []
    for layer in layers:
        y, state = layer(x)
        loss = y.square().sum() + state.s.square().sum()
        seen.append([y, *state, *torch.autograd.grad(loss, [*layer.parameters()])])
    for whole, again in zip(*seen, strict=True):
        torch.testing.assert_close(whole, again)


def test_numbers_that_are_tensors_run_in_the_loop() -> None:
    unit, drive = unit_of("adaptation", 4, torch.float32), torch.randn(3, 2, 4)
    assert unsupported(unit, drive) is None
    unit.beta = torch.ones(4)  # type: ignore[assignment]
    assert "takes plain numbers" in str(unsupported(unit, drive))
    scan(unit, drive)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rule: (*rule[:8], "softplus", []),
        lambda rule: (*rule[:8], "adaptation", [0.1] * 3),  # s0 is that of one state
        lambda rule: (*rule[:8], "output", []),  # it has parameters of its own
    ],
)
def test_a_step_that_does_not_fit_is_refused(wrong: Callable[[tuple], tuple]) -> None:
    rule = ("identity", 1.0, True, 0.0, "triangle", 1.0, 1.0, False, "snu", [])
    small = (torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor(0.5), -torch.ones(5))
    with pytest.raises(ValueError, match=r"is not known|must be|needs own"):
        torch.ops.spikebridge.scan(torch.randn(3, 2, 5), None, *small, None, *wrong(rule), True)


@pytest.mark.parametrize("formula", ["window", "triangle"])
@pytest.mark.parametrize(("name", "reset"), UNITS)
def test_a_gradient_left_out_where_it_counts_nothing_is_that_of_the_loop(
    name: str, reset: str, formula: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow surrogate: few neurons are near their threshold, an adapted one."""
    calls: list[int] = []
    inner = sparse.input_gradient
    monkeypatch.setattr(
        sparse, "input_gradient", lambda *call: (calls.append(call[0].total), inner(*call))[1]
    )
    unit = unit_of(name, 512, torch.float32, reset, surrogate=Surrogate(formula, 0.1))
    drive, seen = drive_of(unit, 20, 4), []
    weight = torch.randn(unit.drives * 512, 512)
    for backend in ("loop", "native"):
        leaf = drive.clone().requires_grad_()
        y = goes_on(scan(unit, leaf, backend=backend)[0])
        z, _ = scan(unit, linear(y, weight, "sparse") / 5, backend=backend)
        seen.append(torch.autograd.grad(z.square().sum(), leaf)[0])
    torch.testing.assert_close(*seen, rtol=0, atol=1e-4 * float(seen[0].abs().max()))
    assert seen[0].any()
    step = ops.step_of(unit)
    assert step is not None
    assert len(calls) == (step.argument is not None)
    assert all(0 < total < 0.35 * drive.numel() for total in calls)


class Narrow(AdaptiveUnit):
    state_size = 4  # type: ignore[assignment]  # without room for the adaptation


def test_a_unit_whose_states_are_not_those_of_its_step_is_refused() -> None:
    with pytest.raises(ValueError, match="s0 must be a strided"):
        scan(Narrow(4, Rule()), torch.randn(3, 2, 4), backend="native")
