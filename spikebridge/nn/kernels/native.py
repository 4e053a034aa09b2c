"""The native CPU kernel: what the ops of `ops.py` do on a CPU.

The kernel works on raw pointers: torch allocates, the kernel fills.  What is not contiguous along
the units is copied; strides of time and batch are handed on as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.utils.dlpack
from torch import Tensor
from torch.nn import Parameter

from spikebridge.nn.gradients import FORMULAS, SMALLEST
from spikebridge.nn.units import state_dtype

try:
    from spikebridge import _native as _built

    _native: Any = _built
except ImportError as error:  # built without a compiler
    _native = None
    missing: str | None = f"the native kernels are not built in this installation ({error})"
else:
    missing = None

__all__ = [
    "DTYPES",
    "OF_THRESHOLD",
    "TAKES",
    "backward",
    "buffer_use",
    "call",
    "channel_dots",
    "channel_sums",
    "checked_backward",
    "checked_forward",
    "empty",
    "forward",
    "importance",
    "importance_call",
    "instruction_set",
    "missing",
    "openmp",
    "output_dtype",
    "release_buffers",
    "rows",
    "step",
]

BUFFER_BYTES = 1 << 20
POISON = False  # set by tests: fresh memory is NaN
DLPACK = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.bfloat16: (4, 16),
    torch.int64: (0, 64),
}
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
FORWARD = {dtype: f"forward_{name}" for dtype, name in DTYPES.items()}
SUMMED = {torch.float32: "importance_float32", torch.float64: "importance_float64"}
TAKES = "float32, float64 and bfloat16"
G_CODES = {"identity": 0, "leaky_relu": 0, "relu": 1, "elu": 2}
OF_THRESHOLD = -1.0
"""As an amount: each neuron takes off its threshold, -bias, which gets the gradient of that too."""
# "sigmoid" of soft units, then the surrogates in the order of native/pointwise.h.
_H_NAMES = getattr(_native, "surrogates", ("sigmoid", *FORMULAS))
H_CODES = {name: code for code, name in enumerate(_H_NAMES)}


class StepSizes(NamedTuple):
    """What a neuron of a unit has."""

    states: int  # k
    drives: int  # d
    own: int  # parameters beside decay and bias
    reads: bool  # whether the backward pass needs the drive
    every_g: bool  # else identity and leaky_relu only


# The steps of native/units.h in its order: where that is not built, a GPU has them too.
_UNITS = [
    ("snu", 1, 1, 0, False, True),
    ("adaptation", 2, 1, 0, False, True),
    ("gate", 1, 2, 0, True, False),
    ("oscillation", 2, 1, 3, True, False),
    ("threshold", 2, 2, 0, False, False),
    ("output", 1, 2, 1, True, False),
    ("gate+output", 1, 3, 1, True, False),
]
_STEPS = {name: StepSizes(*numbers) for name, *numbers in getattr(_native, "units", _UNITS)}
STEP_CODES = {name: code for code, name in enumerate(_STEPS)}


def instruction_set() -> str | None:
    """The instruction set chosen for this processor; None without the kernels."""
    return None if _native is None else _native.instruction_set()


def openmp() -> bool:
    """Whether the kernels use more than one thread."""
    return _native is not None and _native.openmp


def forward(
    drive: Tensor, recurrent: Tensor | None, s0: Tensor, y0: Tensor, decay: Tensor, bias: Tensor,
    own: Tensor | None, g: str, slope: float, gate: bool, amount: float, h: str, width: float,
    height: float, lateral: bool, step: str, numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (T, B, N), the last s (k B, N) and y (B, N), and with `keep` all s (T, k B, N), else none.

    drive is (T, B, d N) for d currents.  A unit with k states has them one after another, the
    membranes (B, N) first.  The fifth is (T, B, d N), the currents with what came back to them,
    where the backward pass of a coupled layer reads it, else empty.
    """
    operands = {"s0": s0, "y0": y0, "decay": decay, "bias": bias, "own": own}
    check(g, h, width, step, drive=drive, recurrent=recurrent, **operands)
    if drive.dtype not in DTYPES:
        raise TypeError(f"drive must be of {TAKES} for the native kernel, got {drive.dtype}")
    rule = g, slope, gate, amount, h, width, height, lateral, step, numbers
    made = checked_forward(drive, recurrent, s0, y0, decay, bias, own, *rule, keep)
    y, s_last, y_last, s_all, seen = made
    s_all = s0.new_empty((0, *s0.shape)) if s_all is None else s_all
    seen = s0.new_empty((0, *drive.shape[1:])) if seen is None else seen
    return y, s_last, y_last, s_all, seen


def checked_forward(
    drive: Tensor, recurrent: Tensor | None, s0: Tensor, y0: Tensor, decay: Tensor, bias: Tensor,
    own: Tensor | None, g: str, slope: float, gate: bool, amount: float, h: str, width: float,
    height: float, lateral: bool, step: str, numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """`forward` of operands that fit: what `check` asks of them is known to hold."""
    t, (b, n) = drive.shape[0], y0.shape
    drive = rows(drive)
    kind = _STEPS[step]
    y = _empty_like(drive) if kind.drives == 1 else empty((t, b, n), drive.dtype)
    s_all = empty((t, *s0.shape), s0.dtype) if keep else None
    coupled = recurrent is not None or lateral
    seen = empty(tuple(drive.shape), s0.dtype) if keep and coupled and kind.reads else None
    # The contiguous copies must outlive the call.
    s0, y0, decay, bias = _dense(s0, y0, decay, bias, n=n)
    s_last, y_last = torch.empty_like(s0), torch.empty_like(y0)
    recurrent = None if recurrent is None else recurrent.contiguous()
    own = None if own is None else own.contiguous()
    rule = (G_CODES[g], slope, gate, amount, H_CODES[h], width, height, lateral, STEP_CODES[step],
            numbers)  # fmt: skip
    getattr(_native, FORWARD[drive.dtype])(
        (t, b, n), _strided(drive), _address(recurrent), _fed(recurrent, n), s0.data_ptr(),
        y0.data_ptr(), decay.data_ptr(), bias.data_ptr(), _address(own), rule, y.data_ptr(),
        _address(s_all), _address(seen), s_last.data_ptr(), y_last.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, s_last, y_last, s_all, seen


def backward(
    grad_y: Tensor | None, grad_s_last: Tensor | None, grad_y_last: Tensor | None,
    drive: Tensor | None, recurrent: Tensor | None, s_all: Tensor, s0: Tensor, y0: Tensor,
    decay: Tensor, bias: Tensor, own: Tensor | None, g: str, slope: float, gate: bool,
    amount: float, h: str, width: float, height: float, lateral: bool, step: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of drive (T, B, d N), s0 (k B, N), y0, and shares of each sample in those of decay
    and bias (B, N) and of `own` (P B, N).

    `drive` is what `forward` was given, or of a coupled layer the fifth of what it has returned.
    """
    grads = {"grad_y": grad_y, "grad_s_last": grad_s_last, "grad_y_last": grad_y_last}
    given = {"s0": s0, "y0": y0, "decay": decay, "bias": bias, "own": own, "drive": drive}
    check(g, h, width, step, s_all=s_all, recurrent=recurrent, **grads, **given)
    coupled = recurrent is not None or lateral
    io = output_dtype(s_all, grad_y, None if coupled else drive)
    if io not in DTYPES:
        raise TypeError(f"grad_y must be of {TAKES} for the native kernel, got {io}")
    rule = g, slope, gate, amount, h, width, height, lateral, step, numbers
    return checked_backward(
        grad_y, grad_s_last, grad_y_last, drive, recurrent, s_all, s0, y0, decay, bias, own, *rule
    )


def checked_backward(
    grad_y: Tensor | None, grad_s_last: Tensor | None, grad_y_last: Tensor | None,
    drive: Tensor | None, recurrent: Tensor | None, s_all: Tensor, s0: Tensor, y0: Tensor,
    decay: Tensor, bias: Tensor, own: Tensor | None, g: str, slope: float, gate: bool,
    amount: float, h: str, width: float, height: float, lateral: bool, step: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`backward` of operands that fit, as what autograd has kept and hands on does."""
    t, (b, n), kind = len(s_all), y0.shape, _STEPS[step]
    coupled = recurrent is not None or lateral
    io = output_dtype(s_all, grad_y, None if coupled else drive)
    grad_drive = empty((t, b, kind.drives * n), io)
    s0, y0, decay, bias = _dense(s0, y0, decay, bias, n=n)
    small = [torch.empty_like(like) for like in (s0, y0, y0, y0)]
    small.append(y0.new_empty((kind.own * b, n)))
    grad_y = None if grad_y is None else rows(grad_y)
    if drive is not None:
        drive = drive.contiguous() if coupled else rows(drive)
    # The contiguous copies must outlive the call.
    dense = [None if x is None else x.contiguous() for x in (grad_s_last, grad_y_last)]
    recurrent, own = (None if x is None else x.contiguous() for x in (recurrent, own))
    operands = [*dense, s_all, s0, y0, decay, bias, own]
    rule = (G_CODES[g], slope, gate, amount, H_CODES[h], width, height, lateral, STEP_CODES[step],
            numbers)  # fmt: skip
    getattr(_native, "backward_" + DTYPES[io])(
        (t, b, n), _strided(grad_y), _strided(None if coupled else drive),
        _address(drive if coupled else None), _address(recurrent), _fed(recurrent, n),
        *map(_address, operands), rule, grad_drive.data_ptr(), [x.data_ptr() for x in small],
        torch.get_num_threads(),
    )  # fmt: skip
    grad_s0, grad_y0, share_decay, share_bias, share_own = small
    return grad_drive, grad_s0, grad_y0, share_decay, share_bias, share_own


def output_dtype(s_all: Tensor, grad_y: Tensor | None, drive: Tensor | None) -> torch.dtype:
    """The type of what is kept for all steps but the states."""
    given = {x.dtype for x in (grad_y, drive) if x is not None}
    if len(given) > 1:
        raise TypeError(f"grad_y and drive must be of one dtype, got {sorted(map(str, given))}")
    return given.pop() if given else s_all.dtype


def importance(
    weights: Sequence[tuple[Tensor, int, int, int]],
    sums: Tensor,
    factors: Tensor | None = None,
    rule: tuple[bool, float, float, bool] = (False, 0.0, 0.0, False),
) -> bool:
    """Sums of |W| of neurons, and what GRAPES makes of them; see `learning.importance`.

    Args:
        weights: each with the axis of its neurons, gates and repeat.
        sums: (N,), written: over all weights.
        factors: (N,), written: 2 sums / max.
        rule: whether factors are clipped, the bounds, whether all get the mean factor.

    Returns False, and writes nothing, where it cannot; see `importance_call`.
    """
    call = importance_call(weights, sums, factors, rule)
    if call is not None:
        call(torch.get_num_threads())
    return call is not None


def importance_call(
    weights: Sequence[tuple[Tensor, int, int, int]],
    sums: Tensor,
    factors: Tensor | None,
    rule: tuple[bool, float, float, bool],
) -> Callable[[int], None] | None:
    """`importance` as a call that takes the number of threads, for as long as all memory stays.

    None where the kernel cannot: other devices, dtypes and layouts, empty weights.
    """
    name = SUMMED.get(sums.dtype)
    if _native is None or name is None or not (sums.is_cpu and sums.is_contiguous()):
        return None
    result = []
    for weight, axis, gates, repeat in weights:
        if (
            weight.dtype is not sums.dtype
            or type(weight) not in (Tensor, Parameter)
            or not (weight.is_cpu and weight.is_contiguous())
            or not (numbers := weight.numel())
            or (axis and weight.dim() != 2)
        ):
            return None
        rows = len(weight)
        result.append((weight.data_ptr(), rows, numbers // rows, axis, gates, repeat))
    run = getattr(_native, name)
    return partial(run, result, len(sums), sums.data_ptr(), _address(factors), rule)


def channel_dots(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a b over samples and pixels, (C,), float32 at least, for dense (samples, C, pixels).

    The number of threads does not change them.
    """
    _check_operand("b", b, a.shape, a.dtype, a.device)
    out = a.new_empty(a.shape[1], dtype=torch.promote_types(a.dtype, torch.float32))
    getattr(_native, "channel_dots_" + DTYPES[a.dtype])(
        tuple(a.shape), a.data_ptr(), b.data_ptr(), out.data_ptr(), torch.get_num_threads()
    )
    return out


def channel_sums(
    a: Tensor, by: Tensor, b: Tensor | None = None, by_b: Tensor | None = None
) -> Tensor:
    """a by + b by_b in reused memory, for dense a and b (samples, C, pixels) and factors (C,)."""
    if b is not None:
        _check_operand("b", b, a.shape, a.dtype, a.device)
    out = empty(tuple(a.shape), a.dtype)
    kind = torch.promote_types(a.dtype, torch.float32)
    # The contiguous copies must outlive the call.
    factors = [None if x is None else x.to(kind).contiguous() for x in (by, by_b)]
    getattr(_native, "channel_sums_" + DTYPES[a.dtype])(
        tuple(a.shape),
        a.data_ptr(),
        _address(factors[0]),
        _address(b),
        _address(factors[1]),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised; a large one takes over the memory of one that has died: no page faults."""
    if math.prod(shape) * dtype.itemsize < BUFFER_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device is
    made = torch.utils.dlpack.from_dlpack(_native.pooled(list(shape), *DLPACK[dtype]))
    if POISON:
        made.fill_(float("nan") if dtype.is_floating_point else -1)
    return made


def _empty_like(x: Tensor) -> Tensor:
    """`empty` in the shape and dtype of x; a small and dense one by the shortest way."""
    if x.is_contiguous() and x.nbytes < BUFFER_BYTES:
        return torch.empty_like(x)
    return empty(tuple(x.shape), x.dtype)


def call(name: str, dtype: torch.dtype) -> Any:
    """A function of the compiled module for numbers of that type."""
    return getattr(_native, f"{name}_{DTYPES[dtype]}")


def buffer_use() -> tuple[int, int]:
    """Bytes of buffers that live tensors hold, and bytes that lie ready for the next."""
    return (0, 0) if _native is None else _native.buffer_use()


def release_buffers() -> None:
    """Hands the memory that lies ready for the next call back to the system."""
    if _native is not None:
        _native.release_idle_buffers()


def rows(x: Tensor) -> Tensor:
    """x (T, B, N) with unit stride along N; a copy only where it has another one."""
    if x.stride(-1) == 1 or x.shape[-1] <= 1:
        return x
    if (
        x.shape[0] > 1 and x.stride(0) == 0
    ):  # the gradient of a sum or mean over time: one row serves
        return x[:1].contiguous().expand(x.shape)
    return x.contiguous()


# Axes of the operands, D: all drives, S: states of all samples, F: N or D, P: further parameters;
# decay and bias may be () too.  Only those over time have another dtype.
_AXES = {"drive": "TBD", "s_all": "TSN", "grad_y": "TBN"} | {
    **{"s0": "SN", "y0": "BN", "grad_s_last": "SN", "grad_y_last": "BN"},
    **{"recurrent": "FN", "decay": "N", "bias": "N", "own": "PN"},
}


def step(name: str) -> StepSizes:
    """A step of the native kernel; ValueError for one that it does not have."""
    if name not in _STEPS:
        raise ValueError(f"step={name!r} is not known; choose one of {list(_STEPS)}")
    return _STEPS[name]


def check(g: str, h: str, width: float, name: str = "snu", **operands: Tensor | None) -> None:
    """ValueError for operands that a kernel cannot walk through: it would read beyond them.

    The first, drive or s_all, decides sizes, dtype and device; what is None is not checked.
    """
    states, drives, own, reads, _ = step(name)
    first = next(iter(operands))
    like: Any = operands[first]
    if like.dim() != 3:
        raise ValueError(f"{first} must be (T, B, N), got {tuple(like.shape)}")
    device, state, (t, b, n) = like.device, state_dtype(like.dtype), like.shape
    b, n = (b, n // drives) if first == "drive" else (b // states, n)
    given = {"own": own, "drive": reads or first == "drive"}
    for needed, much in given.items():
        if (operands.get(needed) is None) == bool(much):
            raise ValueError(f"step={name!r} {'needs' if much else 'has no'} {needed}")
    sizes = {"T": t, "B": b, "N": n, "D": drives * n, "S": states * b, "P": own}
    recurrent = operands.get("recurrent")
    sizes["F"] = drives * n if recurrent is not None and recurrent.shape[0] != n else n
    for name, x in operands.items():
        if x is not None:
            axes = _AXES[name]
            shape = tuple(sizes[axis] for axis in axes) if axes != "N" or x.dim() else ()
            _check_operand(name, x, shape, x.dtype if axes[0] == "T" else state, device)
    grad_y = operands.get("grad_y")
    if grad_y is not None and state_dtype(grad_y.dtype) != like.dtype:
        raise ValueError(f"s_all is {like.dtype}, which does not go with {grad_y.dtype} grad_y")
    for what, name, known in (("g", g, G_CODES), ("h", h, H_CODES)):
        if name not in known:
            raise ValueError(f"{what}={name!r} is not known; choose one of {list(known)}")
    if not width >= SMALLEST:
        raise ValueError(f"width={width}: it must be at least {SMALLEST}")


def _check_operand(
    name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    if x.shape != shape or x.dtype != dtype or x.device != device or x.layout != torch.strided:
        raise ValueError(
            f"{name} must be a strided {tuple(shape)} {dtype} on {device}, got "
            f"{x.layout} {tuple(x.shape)} {x.dtype} on {x.device}"
        )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strided(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def _fed(recurrent: Tensor | None, n: int) -> int:
    """Of how many currents the recurrent matrix is."""
    return 1 if recurrent is None or not n else len(recurrent) // n


def _dense(*tensors: Tensor, n: int) -> tuple[Tensor, ...]:
    """Contiguous; shared parameters () spread to (N,), which is read and never written."""
    return tuple([x.contiguous() if x.dim() else _spread(x.item(), n, x.dtype) for x in tensors])


@lru_cache(maxsize=16)
def _spread(value: float, n: int, dtype: torch.dtype) -> Tensor:
    return torch.full((n,), value, dtype=dtype, device="cpu")
