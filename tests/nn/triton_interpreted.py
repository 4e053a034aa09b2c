"""The laws of test_kernel.py and test_kernel_units.py for the GPU kernel in Triton's interpreter.

test_triton.py starts them.  In this process the op's implementation for CPU tensors is the GPU
kernel's, so that what calls backend="native" runs it, through the op with its autograd.
"""

from __future__ import annotations

import itertools

import pytest
import test_kernel as laws
import test_kernel_units as units
import torch

from spikebridge.nn.gradients import FORMULAS
from spikebridge.nn.kernels import native, ops, triton
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit

native.missing = None  # the native kernel does nothing here
laws.each_instruction_set = lambda: iter(["Triton"])
ops.KERNELS["native"] = ops.KERNELS["triton"]._replace(device="cpu")
ops._scan.register_kernel("cpu", triton.forward)
ops._scan_backward.register_kernel("cpu", triton.backward)
# Not past the op, to the native kernel.
ops.unwrapped = lambda *operands: False
DTYPES = ops.KERNELS["triton"].dtypes


def each_with_a_dtype(*axes) -> list[tuple]:
    """All combinations; the dtypes take turns, since the interpreter is slow."""
    return [(*case, DTYPES[i % len(DTYPES)]) for i, case in enumerate(itertools.product(*axes))]


@pytest.mark.parametrize(
    ("kind", "g", "reset", "recurrent", "dtype"),
    [
        *each_with_a_dtype(
            ("snu", "softsnu"),
            ("identity", "relu", "leaky_relu", "elu"),
            ("gate", "subtract", "trained", "none"),
            (False, True),
        ),
        *each_with_a_dtype(("binary-di",), ("identity",), ("none",), (False, True)),
        *each_with_a_dtype(("binary-ci",), ("identity",), ("subtract",), (False, True)),
    ],
)
def test_every_member_of_the_family(
    kind: str, g: str, reset: str, recurrent: bool, dtype: torch.dtype
) -> None:
    laws.test_every_member_of_the_family(kind, g, reset, dtype, recurrent)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_surrogate(formula: str, dtype: torch.dtype) -> None:
    laws.test_every_surrogate(formula, dtype, False)


@pytest.mark.parametrize(
    ("size", "kind", "recurrent", "dtype"),
    each_with_a_dtype(
        [(0, 2, 3), (1, 1, 1), (3, 0, 4), (7, 3, 37), (5, 2, 1030)],
        ("snu", "softsnu"),
        (False, True),
    ),
)
def test_awkward_sizes(
    size: tuple[int, int, int], kind: str, recurrent: bool, dtype: torch.dtype
) -> None:
    laws.test_awkward_sizes(size, kind, dtype, recurrent)


@pytest.mark.parametrize("train_decay", [False, True])
def test_one_decay_shared_by_all_units(train_decay: bool) -> None:
    laws.test_one_decay_shared_by_all_units(train_decay)


@pytest.mark.parametrize("layout", laws.LAYOUTS)
def test_operands_of_any_stride(layout: str) -> None:
    laws.test_operands_of_any_stride(layout, 13)


@pytest.mark.parametrize(
    ("kind", "part", "recurrent", "dtype"),
    each_with_a_dtype(("snu", "softsnu"), ("y", "s", "last y"), (False, True)),
)
def test_each_result_may_be_all_that_a_loss_depends_on(
    kind: str, part: str, recurrent: bool, dtype: torch.dtype
) -> None:
    laws.test_each_result_may_be_all_that_a_loss_depends_on(kind, recurrent, dtype, part)


@pytest.mark.parametrize("g", ["identity", "relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("kind", ["snu", "softsnu"])
def test_extreme_and_missing_numbers_go_the_way_of_the_loop(kind: str, g: str) -> None:
    laws.test_extreme_and_missing_numbers_go_the_way_of_the_loop(kind, g)


@pytest.mark.parametrize(("h", "recurrent"), [("sigmoid", False), ("tanh_prime", True)])
def test_the_custom_op_keeps_the_rules_of_torch(h: str, recurrent: bool) -> None:
    laws.test_the_custom_op_keeps_the_rules_of_torch(torch.float32, h, recurrent)


@pytest.mark.parametrize("formula", FORMULAS)
def test_infinite_membranes_have_the_gradients_of_the_loop(formula: str) -> None:
    drive, grads = torch.tensor([float("inf"), -float("inf"), 1.0]).repeat(2, 1, 1), []
    unit = make_unit("snu", 3, surrogate=laws.Surrogate(formula), reset="none")
    for backend in ("loop", "native"):
        leaf = drive.clone().requires_grad_()
        y, state = scan(unit, leaf, backend=backend)
        (y.sum() + state.s.sum()).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_products_inside_are_not_subject_to_autocast() -> None:
    unit, matrix = make_unit("softsnu", 37), laws.matrix_of(37, torch.float32)
    drive = torch.randn(7, 3, 37)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = scan(unit, drive, matrix, backend="native")
    torch.testing.assert_close(y, scan(unit, drive, matrix, backend="loop")[0])


def units_in_turn(*axes) -> list[tuple]:
    """Each unit with all combinations; the dtypes take turns, and are counted on per unit."""
    return [
        (*unit, *case, DTYPES[(i + j) % len(DTYPES)])
        for j, unit in enumerate(units.UNITS)
        for i, case in enumerate(itertools.product(*axes))
    ]


@pytest.mark.parametrize(
    ("name", "reset", "soft", "recurrent", "dtype"),
    [
        case
        for case in each_with_a_dtype(
            units.CLASSES,
            ("gate", "subtract", "trained", "none", "lateral"),
            units.SOFT,
            (False, True),
        )
        if case[0] != "snu" or case[1] == "lateral"
    ],
)
def test_every_member_with_more_states_or_currents(
    name: str, reset: str, soft: bool, recurrent: bool, dtype: torch.dtype
) -> None:
    kinds = units.EVERY_G if native.step(name).every_g else units.SOME_G
    g = kinds[(len(name) + len(reset) + recurrent) % len(kinds)]
    units.test_every_member_of_the_family(name, g, reset, soft, dtype, recurrent)


@pytest.mark.parametrize(("name", "reset", "recurrent", "dtype"), units_in_turn((False, True)))
def test_a_surrogate_for_each_unit(
    name: str, reset: str, recurrent: bool, dtype: torch.dtype
) -> None:
    formula = [*FORMULAS][(units.UNITS.index((name, reset)) + recurrent) % len(FORMULAS)]
    units.test_every_surrogate((name, reset), formula, dtype, recurrent)


@pytest.mark.parametrize(
    ("name", "reset", "size", "dtype"),
    units_in_turn([(0, 2, 3), (1, 1, 1), (3, 0, 4), (3, 2, 515)]),
)
def test_awkward_sizes_of_each_unit(
    name: str, reset: str, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    for recurrent in (False, True):
        soft = recurrent == (size[0] == 1)
        units.test_awkward_sizes(name, reset, size, soft, dtype, recurrent)


@pytest.mark.parametrize("layout", laws.LAYOUTS)
@pytest.mark.parametrize(("name", "reset"), units.UNITS[::3])
def test_currents_of_any_stride(name: str, reset: str, layout: str) -> None:
    units.test_operands_of_any_stride(name, reset, layout, 13)


@pytest.mark.parametrize(
    ("name", "reset", "part", "recurrent", "dtype"),
    units_in_turn(("y", "s", "last y"), (False, True)),
)
def test_each_result_of_a_unit_may_be_all_that_a_loss_depends_on(
    name: str, reset: str, part: str, recurrent: bool, dtype: torch.dtype
) -> None:
    units.test_each_result_may_be_all_that_a_loss_depends_on(name, reset, recurrent, dtype, part)


@pytest.mark.parametrize("soft", units.SOFT)
@pytest.mark.parametrize(("name", "reset"), units.UNITS)
def test_missing_numbers_of_a_unit_go_the_way_of_the_loop(
    name: str, reset: str, soft: bool
) -> None:
    units.test_missing_numbers_go_the_way_of_the_loop(name, reset, soft)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("name", "reset"), units.UNITS)
def test_a_state_handed_on_continues_the_sequence(name: str, reset: str, recurrent: bool) -> None:
    units.test_a_state_handed_on_continues_the_sequence(name, reset, recurrent)


@pytest.mark.parametrize(("name", "reset"), units.UNITS)
def test_the_custom_op_of_a_unit_keeps_the_rules_of_torch(name: str, reset: str) -> None:
    units.test_the_custom_op_keeps_the_rules_of_torch(name, reset)


@pytest.mark.parametrize(("name", "reset", "recurrent", "dtype"), units_in_turn((False, True)))
def test_a_matrix_may_reach_the_first_current_only(
    name: str, reset: str, recurrent: bool, dtype: torch.dtype
) -> None:
    """In memory that is full of NaN before it is written."""
    unit = units.unit_of(name, 37, dtype, reset, soft=recurrent)
    drive, state = units.drive_of(unit, 5, 3, dtype), units.wide_state(unit, 3, dtype)
    matrix = units.matrix_for(unit, dtype, gates=False) if recurrent else None
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        laws.assert_equal_to_loop(unit, drive, state, matrix)
    finally:
        torch.use_deterministic_algorithms(False)
