"""The native kernel equals the loop: spikes exactly, values and all gradients within a bound."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.kernels import native, ops
from spikebridge.nn.scan import scan, unsupported
from spikebridge.nn.units import Params, Rule, SNUnit, State, Unit, make_unit, state_dtype

pytestmark = pytest.mark.skipif(
    native.missing is not None, reason=f"no kernel to compare: {native.missing}"
)

# Relative to the largest entry: rounding differs where exp is taken, and in the order of sums; with
# bfloat16 also where gradients leave, rounded to 8 bits (float16: 11).
BOUND = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = list(native.DTYPES)
SIZES = [
    (0, 2, 3),
    (1, 1, 1),
    (5, 1, 1),
    (3, 0, 4),
    (7, 3, 37),
    (2, 5, 1030),
    (63, 1, 500),
    (9, 2, 1),
    (6, 8, 37),
    (6, 13, 130),
    (4, 33, 150),
]
INSTRUCTION_SETS = [] if native.missing else native._native.instruction_sets()


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest):
    """Each that this processor can run, in turn."""
    usual = native.instruction_set()
    native._native.choose_instruction_set(request.param)
    yield request.param
    native._native.choose_instruction_set(usual)


def each_instruction_set() -> Iterator[str]:
    """Chooses each that this processor can run: what the loop says is worked out once for all."""
    usual = native.instruction_set()
    try:
        for name in INSTRUCTION_SETS:
            native._native.choose_instruction_set(name)
            yield name
    finally:
        native._native.choose_instruction_set(usual)


def state_of(b: int, n: int, dtype: torch.dtype, soft: bool) -> State:
    dtype = state_dtype(dtype)
    y = torch.rand(b, n, dtype=dtype)
    return State(y if soft else (y > 0.5).to(dtype), torch.randn(b, n, dtype=dtype))


def matrix_of(n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, n, dtype=state_dtype(dtype)) * (0.7 / n**0.5)


def results(
    unit: Unit, drive: Tensor, state: State, backend: str, recurrent: Tensor | None = None
) -> dict[str, Tensor]:
    """Outputs, last state and the gradients of everything, of one fixed loss."""
    leaves = {"drive": drive, "s0": state.s, "y0": state.y}
    if recurrent is not None:
        leaves["recurrent"] = recurrent
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    y, last = scan(
        unit,
        leaves["drive"],
        leaves.get("recurrent"),
        State(leaves["y0"], leaves["s0"]),
        backend=backend,
    )
    noise = torch.Generator().manual_seed(1)
    loss = sum(
        (v * torch.randn(v.shape, generator=noise, dtype=v.dtype)).sum()
        for v in (y, last.s, last.y)
    )
    trained = {name: p for name, p in unit.named_parameters() if p.requires_grad}
    inputs = [*leaves.values(), *trained.values()]
    names = [*leaves, *trained]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    found = {
        f"grad {n}": torch.zeros_like(i) if g is None else g
        for n, i, g in zip(names, inputs, grads, strict=True)
    }
    return {"y": y.detach(), "s": last.s.detach(), "last y": last.y.detach(), **found}


def assert_equal_to_loop(
    unit: Unit, drive: Tensor, state: State, recurrent: Tensor | None = None
) -> None:
    loop = results(unit, drive, state, "loop", recurrent)
    for instructions in each_instruction_set():
        kernel = results(unit, drive, state, "native", recurrent)
        bound = BOUND[drive.dtype]
        for name, expected in loop.items():
            found, where = kernel[name], f"{name} with {instructions}"
            assert found.dtype == expected.dtype
            if unit.spiking and name in ("y", "last y"):
                assert torch.equal(found, expected), where
                continue
            scale = float(expected.abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(
                found, expected, rtol=0, atol=bound * max(scale, 1.0),
                msg=lambda m, where=where: f"{where}: {m}",
            )  # fmt: skip


def resetting(reset: str) -> dict:
    """Options of a unit; "trained" is the reset by subtraction of the threshold in force."""
    return {"reset": "subtract", "subtract": reset} if reset == "trained" else {"reset": reset}


def assert_alike_alone(unit: Unit, matrix: Tensor | None, dtype: torch.dtype, part: str) -> None:
    """Gradients of loop and kernel agree where `part` of the result is all that a loss reads."""
    seen = []
    for backend in ("loop", "native"):
        drive = torch.randn(5, 4, 9 * unit.drives, generator=torch.Generator().manual_seed(3))
        drive = (drive * 2).to(dtype)
        leaves = [drive.requires_grad_(), *unit.parameters()]
        if matrix is not None:
            leaves.append(matrix.detach().requires_grad_())
        y, state = scan(unit, drive, None if matrix is None else leaves[-1], backend=backend)
        loss = {"y": y.float(), "s": state.s, "last y": state.y}[part].pow(2).sum()
        seen.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for loop, kernel in zip(*seen, strict=True):
        expected = torch.zeros_like(kernel) if loop is None else loop
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(kernel, expected, rtol=0, atol=2 * BOUND[dtype] * scale)


def unit_of(kind: str, n: int, dtype: torch.dtype, **options) -> Unit:
    own = {} if kind.startswith("binary-") else {"train_decay": True, "per_unit": True}
    return make_unit(kind, n, **own, **options).to(state_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize(
    ("kind", "g", "reset"),
    [
        *itertools.product(
            ("snu", "softsnu"),
            ("identity", "relu", "leaky_relu", "elu"),
            ("gate", "subtract", "trained", "none"),
        ),
        ("binary-di", "identity", "none"),
        ("binary-ci", "identity", "subtract"),
    ],
)
def test_every_member_of_the_family(
    kind: str, g: str, reset: str, dtype: torch.dtype, recurrent: bool
) -> None:
    options = resetting(reset)
    if reset == "subtract" and kind != "binary-ci":
        options["amount"] = 0.7
    unit = unit_of(kind, 37, dtype, g=g, threshold=0.8, **options)
    if reset == "trained":  # each neuron takes off its own, one of them less than nothing
        with torch.no_grad():
            unit.threshold.copy_(torch.linspace(-0.1, 1.5, 37))
    assert_equal_to_loop(
        unit,
        torch.randn(7, 3, 37, dtype=dtype) * 2,
        state_of(3, 37, dtype, kind == "softsnu"),
        matrix_of(37, dtype) if recurrent else None,
    )


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
def test_every_surrogate(formula: str, dtype: torch.dtype, recurrent: bool) -> None:
    unit = unit_of("snu", 37, dtype, surrogate=Surrogate(formula, 0.6, 0.8))
    assert_equal_to_loop(
        unit,
        torch.randn(7, 3, 37, dtype=dtype) * 2,
        state_of(3, 37, dtype, False),
        matrix_of(37, dtype) if recurrent else None,
    )


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize("kind", ["binary-di", "binary-ci"])
def test_sums_of_quarters_are_exact_and_so_are_binary_units(
    kind: str, recurrent: bool, instruction_set: str
) -> None:
    """Where nothing rounds, values and gradients of the kernel are those of the loop bit for bit.

    Membranes, thresholds and slopes are multiples of powers of two here, and small.
    """
    unit, b, n = make_unit(kind, 37), 3, 37
    drive = torch.randint(-8, 12, (6, b, n)) / 4
    matrix = torch.randint(-2, 3, (n, n)) / 4 if recurrent else None
    found = []
    for backend in ("loop", "native"):
        leaves = [drive.clone().requires_grad_()]
        leaves += [matrix.clone().requires_grad_()] if matrix is not None else []
        y, last = scan(unit, leaves[0], matrix if matrix is None else leaves[1], backend=backend)
        weight = torch.arange(y.numel()).reshape(y.shape) % 5
        trained = [p for p in unit.parameters() if p.requires_grad]
        loss = (y * weight).sum() + last.s.sum()
        found.append([y, last.s, *torch.autograd.grad(loss, [*leaves, *trained])])
    for loop, kernel in zip(*found, strict=True):
        assert torch.equal(loop, kernel)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["snu", "softsnu", "binary-di", "binary-ci"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
def test_awkward_sizes(
    size: tuple[int, int, int], kind: str, dtype: torch.dtype, recurrent: bool
) -> None:
    t, b, n = size
    unit = unit_of(kind, n, dtype, g="identity" if "binary" in kind else "leaky_relu")
    assert_equal_to_loop(
        unit,
        torch.randn(t, b, n, dtype=dtype) * 2,
        state_of(b, n, dtype, kind == "softsnu"),
        matrix_of(n, dtype) if recurrent else None,
    )


@pytest.mark.parametrize("train_decay", [False, True])
def test_one_decay_shared_by_all_units(train_decay: bool) -> None:
    unit = make_unit("snu", 21, decay=0.9, train_decay=train_decay)
    assert_equal_to_loop(unit, torch.randn(6, 4, 21), state_of(4, 21, torch.float32, False))


LAYOUTS = {
    "batch first": lambda t, b, n: torch.randn(b, t, n).transpose(0, 1),
    "time last": lambda t, b, n: torch.randn(b, n, t).permute(2, 0, 1),
    "every second unit": lambda t, b, n: torch.randn(t, b, 2 * n)[..., ::2],
    "part of a row": lambda t, b, n: torch.randn(t, b, n + 5)[..., 3 : n + 3],
    "the same at every step": lambda t, b, n: torch.randn(1, b, n).expand(t, b, n),
    "one number": lambda t, b, n: torch.randn(1, 1, 1).expand(t, b, n),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [13, 1030])
def test_operands_of_any_stride(layout: str, n: int) -> None:
    drive = LAYOUTS[layout](6, 3, n)
    unit = unit_of("snu", n, torch.float32)
    assert_equal_to_loop(unit, drive, state_of(3, n, torch.float32, False))
    for reduce in (
        lambda y: y.sum(),
        lambda y: y.mean(0).pow(2).sum(),
        lambda y: y[-1].sum(),
        lambda y: (y.transpose(0, 1) * torch.ones(3, 6, n)).sum(),
    ):
        grads = []
        for backend in ("loop", "native"):
            leaf = drive.detach().requires_grad_()
            reduce(scan(unit, leaf, backend=backend)[0]).backward()
            grads.append(leaf.grad)
            drive = drive.detach().clone()
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(0, 20), b=st.integers(0, 5), n=st.integers(1, 300), seed=st.integers(0, 2**31),
    kind=st.sampled_from(["snu", "softsnu"]), g=st.sampled_from(["identity", "relu", "leaky_relu"]),
    reset=st.sampled_from(["gate", "subtract", "trained", "none"]), threads=st.integers(1, 4),
    formula=st.sampled_from(list(FORMULAS)), dtype=st.sampled_from([torch.float32, torch.float64]),
    recurrent=st.booleans(),
)  # fmt: skip
def test_anything_drawn_at_random(
    t, b, n, seed, kind, g, reset, threads, formula, dtype, recurrent
) -> None:
    torch.manual_seed(seed)
    surrogate = Surrogate(formula) if kind == "snu" else None
    unit = unit_of(kind, n, dtype, g=g, surrogate=surrogate, **resetting(reset))
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drive = torch.randn(t, b, n, dtype=dtype) * 2
        matrix = matrix_of(n, dtype) if recurrent else None
        assert_equal_to_loop(unit, drive, state_of(b, n, dtype, kind == "softsnu"), matrix)
    finally:
        torch.set_num_threads(usual)


def exact(kind: str, x: Tensor) -> np.ndarray:
    """The logistic function, or elu, in more digits than those of x."""
    wide = x.numpy().astype(np.longdouble)
    return (
        1 / (1 + np.exp(-wide)) if kind == "softsnu" else np.where(wide < 0, np.expm1(wide), wide)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["softsnu", "elu"])
def test_own_exponentials_are_within_three_units_in_the_last_place(
    kind: str, dtype: torch.dtype, instruction_set: str
) -> None:
    torch.manual_seed(0)
    tiny = -torch.logspace(-6, 0, 200, dtype=dtype)
    x = torch.cat(
        [torch.linspace(-30, 30, 2001, dtype=dtype), 3 * torch.randn(2000).to(dtype), tiny]
    )
    soft = kind == "softsnu"
    unit = (
        make_unit("softsnu", len(x), threshold=0.0) if soft else make_unit("snu", len(x), g="elu")
    )
    y, state = scan(unit.to(dtype), x[None, None], backend="native")
    found, right = (y[0, 0] if soft else state.s[0]).detach().numpy(), exact(kind, x)
    last = np.spacing(np.abs(right).astype(found.dtype)).astype(np.longdouble)
    assert float((np.abs(found - right) / last).max()) < 3


@pytest.mark.parametrize("kind", ["snu", "softsnu"])
def test_large_outputs_that_bypass_the_cache(kind: str, instruction_set: str) -> None:
    t, b, n = 40, 16, 10007
    unit = make_unit(kind, n)
    drive = torch.randn(t, b, n).requires_grad_()
    y, _ = scan(unit, drive, backend="native")
    y.backward(torch.ones_like(y))
    part = slice(5000, 5050)
    few = make_unit(kind, 50)
    leaf = drive.detach()[..., part].clone().requires_grad_()
    expected, _ = scan(few, leaf, backend="loop")
    expected.sum().backward()
    torch.testing.assert_close(
        y[..., part], expected, rtol=0, atol=1e-6 if kind == "softsnu" else 0
    )
    torch.testing.assert_close(drive.grad[..., part], leaf.grad, rtol=1e-5, atol=1e-5)
    assert bool(y.isfinite().all())
    assert bool(drive.grad.isfinite().all())


@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
def test_the_number_of_threads_changes_no_bit(recurrent: bool) -> None:
    unit, drive = unit_of("snu", 700, torch.float32), torch.randn(50, 5, 700)
    matrix = matrix_of(700, torch.float32) if recurrent else None
    usual, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(unit, drive, state_of_fixed(5, 700), "native", matrix))
    torch.set_num_threads(usual)
    for other in found[1:]:
        for name in other.keys() - {"grad recurrent"}:  # that product is torch's
            assert torch.equal(found[0][name], other[name]), name


def state_of_fixed(b: int, n: int) -> State:
    return State(torch.zeros(b, n), torch.zeros(b, n))


@pytest.mark.parametrize("g", ["identity", "relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("kind", ["snu", "softsnu"])
def test_extreme_and_missing_numbers_go_the_way_of_the_loop(kind: str, g: str) -> None:
    drive = torch.tensor([1e30, -1e30, float("nan"), 0.0, -0.0, 1e-30]).repeat(4, 2, 1)
    unit, found = make_unit(kind, 6, g=g), []
    for backend in ("loop", "native"):
        leaf = drive.clone().requires_grad_()
        y, state = scan(unit, leaf, backend=backend)
        (y.sum() + state.s.sum()).backward()
        found.append((y, state.s, leaf.grad.isnan().float()))
    for loop, kernel in zip(*found, strict=True):
        torch.testing.assert_close(kernel, loop, equal_nan=True, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["y", "s", "last y"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])
@pytest.mark.parametrize("kind", ["snu", "softsnu"])
def test_each_result_may_be_all_that_a_loss_depends_on(
    kind: str, recurrent: bool, dtype: torch.dtype, part: str
) -> None:
    assert_alike_alone(
        unit_of(kind, 9, dtype), matrix_of(9, dtype) if recurrent else None, dtype, part
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("h", "recurrent"), [("sigmoid", False), ("tanh_prime", True)])
def test_the_custom_op_keeps_the_rules_of_torch(
    dtype: torch.dtype, h: str, recurrent: bool
) -> None:
    b, n = 3, 5
    matrix = matrix_of(n, dtype) if recurrent else None
    small = [matrix, torch.randn(b, n), torch.rand(b, n), torch.tensor(0.8), -torch.ones(n)]
    small = [x if x is None else x.to(state_dtype(dtype)) for x in small]
    rule = ("leaky_relu", 0.1, True, 0.0, h, 1.0, 1.0, False, "snu", [])
    drive = torch.randn(4, b, n, dtype=dtype)
    forward = torch.ops.spikebridge.scan.default
    torch.library.opcheck(forward, (drive, *small, None, *rule, False))
    leaves = [x if x is None else x.clone().requires_grad_() for x in (drive, *small)]
    torch.library.opcheck(forward, (*leaves, None, *rule, True))
    s_all = torch.randn(4, b, n, dtype=state_dtype(dtype))
    for grad_y, grad_s in itertools.product((None, drive), (None, small[1])):
        torch.library.opcheck(
            torch.ops.spikebridge.scan_backward.default,
            (grad_y, grad_s, None, None, small[0], s_all, *small[1:], None, *rule),
        )


class Watching(TorchDispatchMode):
    """Whatever looks on at the level of dispatch gets the custom op."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", ["snu", "softsnu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_short_way_to_the_kernel_is_the_custom_op(
    kind: str, recurrent: bool, dtype: torch.dtype
) -> None:
    unit, drive, found = unit_of(kind, 9, dtype), torch.randn(5, 4, 9).to(dtype) * 2, []
    matrix = matrix_of(9, dtype)
    modes = [contextlib.nullcontext(), Watching()]
    for mode in modes:
        leaves = [drive.clone().requires_grad_(), *unit.parameters()]
        own = matrix.clone().requires_grad_() if recurrent else None
        with mode:
            with torch.no_grad():
                silent = scan(unit, drive, own, backend="native")
            y, state = scan(unit, leaves[0], own, backend="native")
            short = type(y.grad_fn).__name__ == "_ScanBackward"
            assert short == (mode is modes[0])
            loss = y.float().square().sum() + state.s.float().square().sum()
            gradients = torch.autograd.grad(loss, [*leaves, *([own] if recurrent else [])])
        found.append([y, *state[:2], silent[0], *silent[1][:2], *gradients])
    assert {"spikebridge.scan.default", "spikebridge.scan_backward.default"} <= modes[1].seen
    for short, op in zip(*found, strict=True):
        assert torch.equal(short, op)


def with_default_device(f: Callable) -> list[Tensor]:
    with torch.device("meta"):
        return list(f())


def traced_by_jit(f: Callable) -> list[Tensor]:
    drive, unit = torch.randn(3, 2, 4), make_unit("softsnu", 4)
    for parameter in unit.parameters():
        parameter.requires_grad_(False)  # traces hold no constants that are trained
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: scan(unit, x)[0], (drive,), check_trace=False)
        torch.testing.assert_close(traced(drive * 2), scan(unit, drive * 2)[0])
    return list(f())


def compiled_backward(f: Callable) -> list[Tensor]:
    with torch._dynamo.config.patch(compiled_autograd=True):
        return list(torch.compile(f, backend="aot_eager")())


@pytest.mark.filterwarnings("ignore")  # of torch.jit's end, and what torch.compile says to itself
@pytest.mark.parametrize("look", [with_default_device, traced_by_jit, compiled_backward])
def test_whoever_looks_on_sees_the_same(look: Callable) -> None:
    unit, gradients = make_unit("softsnu", 4), []
    drive = torch.randn(3, 2, 4)
    for how in (None, look):
        leaf = drive.clone().requires_grad_()
        y, _ = scan(unit, leaf, backend="native")
        loss = y.square().sum()

        def back(loss: Tensor = loss, leaf: Tensor = leaf) -> list[Tensor]:
            loss.backward()
            return [leaf.grad]

        gradients.append(back()[0] if how is None else how(back)[0])
        with torch.device("meta") if how is with_default_device else contextlib.nullcontext():
            again, _ = scan(unit, drive, backend="native")
        torch.testing.assert_close(again, y)
    torch.testing.assert_close(*gradients)


def test_many_gradients_at_once_and_lazy_negatives() -> None:
    unit = make_unit("softsnu", 4)
    drive = torch.randn(3, 2, 4, requires_grad=True)
    y, _ = scan(unit, drive, backend="native")
    many = torch.randn(5, *y.shape)
    (batched,) = torch.autograd.grad(y, drive, many, is_grads_batched=True, retain_graph=True)
    for one, found in zip(many, batched, strict=True):
        (expected,) = torch.autograd.grad(y, drive, one, retain_graph=True)
        torch.testing.assert_close(found, expected)
        (found,) = torch.autograd.grad(y, drive, torch._neg_view(one), retain_graph=True)
        torch.testing.assert_close(found, -expected)
    negative, _ = scan(unit, torch._neg_view(drive.detach()), backend="native")
    torch.testing.assert_close(negative, scan(unit, -drive.detach(), backend="native")[0])


def test_a_second_derivative_is_refused() -> None:
    drive = torch.randn(3, 2, 4, requires_grad=True)
    y, _ = scan(make_unit("softsnu", 4), drive, backend="native")
    (first,) = torch.autograd.grad(y.sum(), drive, create_graph=True)
    with pytest.raises(RuntimeError, match=r'no second derivatives.*use backend="loop"'):
        (first * drive).sum().backward()


def test_without_gradients_no_states_are_kept() -> None:
    seen = []
    real = native._native.forward_float32
    unit, drive = make_unit("snu", 4), torch.randn(3, 2, 4)
    try:
        native._native.forward_float32 = lambda *a: (seen.append(a[11]), real(*a))
        with torch.no_grad():
            scan(unit, drive)
        scan(unit, drive)
    finally:
        native._native.forward_float32 = real
    assert seen[0] == 0
    assert seen[1] != 0


class Own(SNUnit):
    def step(self, state: State, drive: Tensor, params: Params) -> State:
        return super().step(state, drive, params)


def test_the_reason_is_given_where_the_kernel_cannot_serve() -> None:
    drive = torch.randn(3, 2, 4)
    cases = [
        (Own(4, Rule()), drive, None, "Own has no native kernel"),
        (make_unit("snu", 4).half(), drive.half(), None, "the drive is torch.float16"),
    ]
    for unit, operand, recurrent, reason in cases:
        assert reason in unsupported(unit, operand)
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            scan(unit, operand, recurrent, backend="native")
        scan(unit, operand, recurrent)  # auto falls back to the loop


def test_the_gpu_kernel_names_what_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_no_triton", None)
    monkeypatch.setitem(ops.KERNELS, "triton", ops.KERNELS["triton"]._replace(device="cpu"))
    drive = torch.randn(3, 2, 4)
    assert unsupported(make_unit("snu", 4), drive, "triton") is None
    for kind in ("adaptive-snu", "li-snu"):
        assert unsupported(make_unit(kind, 4), drive, "triton") is None
    both = {"memory": "oscillation", "modulation": "output"}
    for unit, reason in (
        (make_unit("snu", 2, **both), "(oscillation+output) has no triton kernel"),
        (make_unit("snu", 2, memory="gate", g="elu"), "has g identity and leaky_relu, not elu"),
    ):
        operand = drive[..., : unit.drives * unit.size]
        assert reason in unsupported(unit, operand, "triton")
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            scan(unit, operand, backend="triton")


def test_without_kernels_the_loop_serves_and_says_so_once() -> None:
    code = """
import sys, warnings
sys.modules["spikebridge._native"] = None
import torch
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        scan(make_unit("snu", 4), torch.randn(3, 2, 4))
print(len(caught), caught[0].message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 spikebridge runs its time loop in Python: the native kernels")
