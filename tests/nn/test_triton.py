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


@with_triton
@pytest.mark.timeout(600)
def test_in_the_interpreter_it_keeps_the_laws_of_the_kernels() -> None:
    """Apart, because whether Triton interprets is settled when it is imported."""
    laws = TESTS / "triton_interpreted.py"
    ran = run_python("-m", "pytest", str(laws), TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = re.search(r"(\d+) passed in", ran.stdout)
    assert found is not None, ran.stdout
    assert int(found[1]) > 100


@with_triton
@pytest.mark.timeout(600)
def test_the_script_for_a_gpu_runs_in_the_interpreter() -> None:
    ran = run_python("-m", "pytest", str(TESTS / "gpu_interpreted.py"), TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_script_for_a_gpu_says_where_there_is_none(tmp_path: Path) -> None:
    kept = tmp_path / "gpu.json"
    ran = run_python("benchmarks/gpu.py", "--json", str(kept), CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 2
    assert ran.stdout.startswith("there is no GPU"), ran.stdout + ran.stderr
    assert not kept.exists()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Calls a function of `kernels.triton` on tensors, and compiles what it would launch."""
    from triton import compile, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spikebridge.nn.kernels import triton as kernels

    def source(kernel: Any, arguments: tuple, constants: dict[str, Any]) -> ASTSource:
        """With the types that Triton would give the arguments of this launch."""
        types, attributes = dict.fromkeys(constants, "constexpr"), {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            types[name], aligned = type_of(value, name != "steps")
            if types[name] == "constexpr":
                constants[name] = value
            elif aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(kernel, types, constants, attributes)

    def run(call: Any, *operands: Any, **options: Any) -> list[Any]:
        launched, usual = [], kernels._launch
        fixed = {"BLOCK": kernels.BLOCK, "STAGES": kernels.STAGES}
        kernels._launch = lambda kernel, like, *arguments, **constants: launched.append(
            source(kernel, arguments, constants | fixed)
        )
        try:
            call(*operands)
        finally:
            kernels._launch = usual
        target, options = GPUTarget("cuda", 90, 32), kernels.LAUNCH | options
        return [compile(each, target=target, options=options) for each in launched]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knobs.cache, "dir", str(tmp_path_factory.mktemp("compiled")))
        yield run


def type_of(value: Any, special: bool) -> tuple[str, bool]:
    """Triton's type of an argument, and whether it is a multiple of 16; `special`: it looks."""
    if value is None:
        return "constexpr", False
    if isinstance(value, int):
        kind = "i32" if value < 2**31 else "i64"
        return "constexpr" if special and value == 1 else kind, special and value % 16 == 0
    bits = value.dtype.itemsize * 8
    return "*bf16" if value.dtype == torch.bfloat16 else f"*fp{bits}", value.data_ptr() % 16 == 0


def operands(
    size: tuple[int, int, int], dtype: torch.dtype, recurrent: bool = False, device: str = "cpu"
) -> tuple[torch.Tensor, tuple]:
    """A drive and what follows it, up to the rule."""
    t, b, n = size
    real = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    s, decay, bias = torch.zeros(b, n, **real), torch.ones((), **real), torch.zeros(n, **real)
    matrix = torch.zeros(n, n, **real) if recurrent else None
    return torch.zeros(t, b, n, dtype=dtype, device=device), (matrix, s, s, decay, bias, None)


def rule(g: str, h: str, reset: str = "gate") -> tuple:
    amount = {"subtract": 0.7, "trained": native.OF_THRESHOLD}.get(reset, 0.0)
    return g, 0.1, reset == "gate", amount, h, 0.6, 0.8, False, "snu", []


GS = ("identity", "relu", "leaky_relu", "elu")
HS = ("sigmoid", *FORMULAS)


@with_triton
@pytest.mark.parametrize("dtype", ops.KERNELS["triton"].dtypes, ids=str)
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
    ("dtype", "fused"), [(torch.float32, "FFMA"), (torch.float64, "DFMA")], ids=str
)
def test_membranes_are_rounded_after_each_operation(
    compiled: Any, tmp_path: Path, dtype: torch.dtype, fused: str
) -> None:
    from triton import knobs

    from spikebridge.nn.kernels import triton

    found = []
    for options in ({}, {"enable_fp_fusion": True}):
        drive, rest = operands((3, 2, 64), dtype)
        call = (triton.forward, drive, *rest, *rule("leaky_relu", "window", "subtract"), True)
        (binary,) = compiled(*call, **options)
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
