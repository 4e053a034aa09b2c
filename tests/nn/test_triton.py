"""The GPU kernel without a GPU: interpreted it equals the loop, and it compiles for sm_90."""

from __future__ import annotations

import itertools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.turns import in_turn
from torch._subclasses.fake_tensor import FakeTensorMode

from spikebridge.nn.gradients import FORMULAS
from spikebridge.nn.kernels import native, ops
from spikebridge.nn.scan import scan, unsupported
from spikebridge.nn.units import make_unit

TESTS = Path(__file__).parent
# Where the development tools bring Triton along it must be there; elsewhere the reason is said.
EXPECTED = (platform.system(), platform.machine()) == ("Linux", "x86_64")
with_triton = pytest.mark.skipif(
    find_spec("triton") is None and not EXPECTED, reason="Triton has no package for this platform"
)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=TESTS.parents[1],
        env=os.environ | environment,
    )


# Of each dtype, unit and surrogate a case, and that a wrong kernel is seen.
SOME_LAWS = "every_surrogate or surrogate_for_each_unit or kernel_that_is_wrong"


@with_triton
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("chosen", "count"),
    [(("-k", SOME_LAWS), 35), pytest.param((), 400, marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_in_the_interpreter_it_keeps_the_laws_of_the_kernels(
    chosen: tuple[str, ...], count: int
) -> None:
    """Apart, because whether Triton interprets is settled when it is imported.

    With the script for a GPU, in the interpreter too.
    """
    laws = [str(TESTS / name) for name in ("triton_interpreted.py", "gpu_interpreted.py")]
    ran = run_python("-m", "pytest", *laws, *chosen, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = re.search(r"(\d+) passed", ran.stdout)
    assert found is not None, ran.stdout
    assert int(found[1]) > count


def test_the_script_for_a_gpu_says_where_there_is_none(tmp_path: Path) -> None:
    kept = tmp_path / "gpu.json"
    ran = run_python("benchmarks/gpu.py", "--json", str(kept), CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 2
    assert ran.stdout.startswith("there is no GPU"), ran.stdout + ran.stderr
    assert not kept.exists()


class NoDriver:
    """Of a GPU that compiles and never runs."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Calls a function of `kernels.triton` on tensors, and compiles what it would launch."""
    from triton import knobs
    from triton.runtime import driver

    from spikebridge.nn.kernels import triton as kernels

    def run(call: Any, *operands: Any, **options: Any) -> list[Any]:
        binaries: list[Any] = []

        def launch(kernel: Any, like: Any, *arguments: Any, **constants: Any) -> None:
            fixed = {"BLOCK": kernels.BLOCK, "STAGES": kernels.STAGES, **kernels.LAUNCH, **options}
            binaries.append(kernel.warmup(*arguments, **constants, **fixed, grid=(1,)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_launch", launch)
            call(*operands)
        return binaries

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knobs.cache, "dir", str(tmp_path_factory.mktemp("compiled")))
        patch.setattr(driver, "_active", NoDriver())
        yield run


def operands(
    size: tuple[int, int, int], dtype: torch.dtype, recurrent: bool = False, device: str = "cpu",
    step: str = "snu",
) -> tuple[torch.Tensor, tuple]:  # fmt: skip
    """A drive and what follows it, up to the rule."""
    (t, b, n), kind = size, native.step(step)
    real = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    s, y = torch.zeros(kind.states * b, n, **real), torch.zeros(b, n, **real)
    decay, bias = torch.ones((), **real), torch.zeros(n, **real)
    own = torch.zeros(kind.own, n, **real) if kind.own else None
    matrix = torch.zeros(kind.drives * n, n, **real) if recurrent else None
    drive = torch.zeros(t, b, kind.drives * n, dtype=dtype, device=device)
    return drive, (matrix, s, y, decay, bias, own)


def rule(g: str, h: str, reset: str = "gate", step: str = "snu") -> tuple:
    amount = {"subtract": 0.7, "trained": native.OF_THRESHOLD}.get(reset, 0.0)
    numbers = [0.9, 0.1, 1.5]
    return g, 0.1, reset == "gate", amount, h, 0.6, 0.8, reset == "lateral", step, numbers


# Compiling takes long, and the dtype changes little of it.
BY_DTYPE = [
    pytest.param(dtype, marks=[pytest.mark.long] if turn else [], id=str(dtype))
    for turn, dtype in enumerate(ops.KERNELS["triton"].dtypes)
]
GS = ("identity", "relu", "leaky_relu", "elu")
SOME_G = ("identity", "leaky_relu")
HS = ("sigmoid", *FORMULAS)


@with_triton
@pytest.mark.parametrize("dtype", BY_DTYPE)
def test_every_g_and_h_compiles_for_sm_90(compiled: Any, dtype: torch.dtype) -> None:
    from spikebridge.nn.kernels import triton

    resets = itertools.cycle(("gate", "subtract", "none", "trained"))
    # With a matrix each step is a launch: the first step and another; and 37 aligns nothing.
    with_matrix, binaries = itertools.cycle((False, True, True, False)), []
    for g, h in itertools.product(GS, ("sigmoid", "window")):
        size, matrix = ((1, 2, 37), True) if next(with_matrix) else ((3, 2, 64), False)
        drive, rest = operands(size, dtype, matrix)
        call = (triton.forward, drive, *rest, *rule(g, h, next(resets)), not matrix)
        binaries += compiled(*call)
    for g, h in zip(itertools.cycle(GS), HS, strict=False):
        size, matrix = ((2, 2, 37), True) if h in ("sigmoid", "arctan") else ((3, 2, 64), False)
        drive, (recurrent, s, *rest) = operands(size, dtype, matrix)
        s_all = s.expand(size).contiguous()
        grads = (None, None) if h == "window" else (s, s)
        call = (triton.backward, drive, *grads, None, recurrent, s_all, s, *rest)
        binaries += compiled(*call, *rule(g, h, next(resets)))
    assert len(binaries) == 8 + 7 + 2
    assert all(binary.asm["cubin"] for binary in binaries)


@with_triton
@pytest.mark.parametrize("dtype", BY_DTYPE)
def test_every_step_compiles_for_sm_90(compiled: Any, dtype: torch.dtype) -> None:
    """Feed-forward and with a matrix or lateral inhibition in turn, another turn for each dtype."""
    from spikebridge.nn.kernels import triton

    turn = ops.KERNELS["triton"].dtypes.index(dtype)
    for i, step in enumerate(native.STEP_CODES):
        matrix, reset = [(False, "gate"), (True, "trained"), (True, "lateral")][(i + turn) % 3]
        g, h = SOME_G[(i + turn) % 2], HS[(i + turn) % len(HS)]
        coupled, kind = matrix or reset == "lateral", native.step(step)
        drive, rest = operands((2, 2, 37), dtype, matrix, step=step)
        binaries = compiled(triton.forward, drive, *rest, *rule(g, h, reset, step), True)
        assert len(binaries) == (2 if coupled else 1)
        matrix_, s, y, *params = rest
        seen = (drive.to(s.dtype) if coupled else drive) if kind.reads else None
        s_all = s.expand(2, *s.shape).contiguous()
        grads = y.to(dtype).expand(2, *y.shape), s, None
        call = (triton.backward, *grads, seen, matrix_, s_all, s, y, *params)
        backward = compiled(*call, *rule(g, h, reset, step))
        assert len(backward) == 1 + coupled + (reset == "lateral")
        assert all(binary.asm["cubin"] for binary in binaries + backward)


@with_triton
def test_more_than_two_to_the_31_numbers_take_64_bits(compiled: Any) -> None:
    from spikebridge.nn.kernels import triton

    drive, rest = operands((3, 2**16, 2**16), torch.float32, device="meta")
    forward = compiled(triton.forward, drive, *rest, *rule("identity", "window"), True)
    backward = compiled(
        triton.backward, None, None, None, None, rest[0], drive, *rest[1:],
        *rule("identity", "window"),
    )  # fmt: skip
    assert all(each.asm["cubin"] for each in forward + backward)


@with_triton
@pytest.mark.parametrize(
    ("step", "number"),
    in_turn(
        ["snu", "oscillation", "adaptation"],
        last=[(torch.float32, "FFMA"), (torch.float64, "DFMA")],
    ),
    ids=str,
)
def test_membranes_are_rounded_after_each_operation(
    compiled: Any, tmp_path: Path, step: str, number: tuple[torch.dtype, str]
) -> None:
    dtype, fused = number
    from triton import knobs

    from spikebridge.nn.kernels import triton

    found = []
    for options in ({}, {"enable_fp_fusion": True}):
        drive, rest = operands((3, 2, 64), dtype, step=step)
        last = rule("leaky_relu", "window", "subtract", step)
        (binary,) = compiled(triton.forward, drive, *rest, *last, True, **options)
        (tmp_path / "cubin").write_bytes(binary.asm["cubin"])
        listing = subprocess.run(
            [knobs.nvidia.nvdisasm.path, tmp_path / "cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(listing.stdout.count(fused))
    assert found[0] == 0
    assert found[1] > 0  # so the first would have been seen


def test_cuda_tensors_go_to_the_gpu_kernel_and_cpu_tensors_to_the_native_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "_no_triton", None)
    unit = make_unit("snu", 4)
    with FakeTensorMode(), torch.no_grad():  # autograd wants the streams of a real GPU
        unit._apply(lambda x: torch.empty(x.shape, device="cuda"))
        for dtype in ops.KERNELS["triton"].dtypes:
            drive = torch.empty(3, 2, 4, dtype=dtype, device="cuda")
            assert unsupported(unit, drive) is None
            y, state = scan(unit, drive, backend="triton")
            assert (y.shape, y.dtype, y.device.type) == (drive.shape, dtype, "cuda")
            assert state.s.dtype == torch.promote_types(dtype, torch.float32)
            with pytest.raises(RuntimeError, match="the drive is on cuda"):
                scan(unit, drive, backend="native")
    unit, drive = make_unit("snu", 4), torch.zeros(3, 2, 4)
    with pytest.raises(RuntimeError, match='"triton" cannot serve: the triton kernel runs on CUDA'):
        scan(unit, drive, backend="triton")
    assert unsupported(unit, drive) == native.missing


def test_without_triton_the_cpu_has_its_kernel_and_cuda_the_loop_which_is_said_once() -> None:
    code = """
import sys, warnings
sys.modules["triton"] = None
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from spikebridge import SNU
from spikebridge.nn.scan import scan
from spikebridge.nn.units import make_unit
SNU(3, 4)(torch.randn(5, 2, 3))[0].sum().backward()
unit = make_unit("snu", 4)
with warnings.catch_warnings(record=True) as caught, FakeTensorMode(), torch.no_grad():
    warnings.simplefilter("always")
    unit._apply(lambda x: torch.empty(x.shape, device="cuda"))
    for _ in range(3):
        scan(unit, torch.empty(3, 2, 4, device="cuda"))
print(len(caught), caught[0].message)
"""
    ran = run_python("-c", code)
    assert ran.stdout.startswith("1 spikebridge runs its time loop in Python: the GPU"), ran.stderr
