"""The fused scan as a torch custom op: schema, fakes and autograd, whatever device runs it.

`native.py` runs it on the CPU; `triton.py` runs it on a GPU and is imported on the first call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikebridge.nn.dynamics import DynamicUnit
from spikebridge.nn.kernels import native, sparse
from spikebridge.nn.kernels.product import plain, slow_bfloat16, unwrapped
from spikebridge.nn.kernels.sparse import Marks
from spikebridge.nn.units import Params, SNUnit, State, Unit

__all__ = ["KERNELS", "STEPS", "Kernel", "KernelStep", "missing", "scan", "step_of"]


COMPACT = ("window", "triangle")  # surrogates that are 0 beyond their width


class Kernel(NamedTuple):
    """What a kernel serves."""

    device: str  # torch's name of the device type
    place: str
    dtypes: tuple[torch.dtype, ...]  # of the drive
    takes: str


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KERNELS = {
    "native": Kernel("cpu", "the CPU", tuple(native.DTYPES), native.TAKES),
    "triton": Kernel("cuda", "CUDA", _DTYPES, "float32, float64, bfloat16 and float16"),
}


class KernelStep(NamedTuple):
    """The step of a unit as the kernels have it."""

    definition: Callable[..., State]  # the pure step that it equals
    name: str  # in SPIKEBRIDGE_UNITS of native/units.h, `variant` of the unit
    # What h takes, of the bias, the states and the numbers, rounded as native/units.h rounds it.
    # Without it every place of the outputs' gradient is computed.
    argument: Callable[[Tensor, tuple[Tensor, ...], list[float]], Tensor] | None = None

    @staticmethod
    def numbers(unit: Any) -> list[float]:
        """The constants of a unit, in the order of native/units.h."""
        return getattr(unit, "numbers", [])


def _membrane(bias: Tensor, states: tuple[Tensor, ...], numbers: list[float]) -> Tensor:
    return states[0] + bias


_ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("snu", "gate", "oscillation"), _membrane),
    "adaptation": lambda b, s, numbers: _membrane(b, s, numbers).sub_(s[1] * numbers[2]),
    "threshold": lambda b, s, numbers: _membrane(b, s, numbers).add_(s[1]),
}
STEPS = tuple(
    KernelStep(SNUnit.step if name == "snu" else DynamicUnit.step, name, _ARGUMENTS.get(name))
    for name in native.STEP_CODES
)


def step_of(unit: Unit) -> KernelStep | None:
    """The kernels' step of a unit; None where they have none."""
    for step in STEPS:
        if type(unit).step is step.definition and unit.variant == step.name:
            return step
    return None


# Found out here, not at each call: torch.compile cannot look for packages.
_no_triton = (
    None
    if importlib.util.find_spec("triton")
    else "the GPU kernels need the package triton, which is not installed; pip install triton"
)


def missing(kernel: str) -> str | None:
    """Why a kernel is not there at all in this installation; None where it is."""
    return native.missing if kernel == "native" else _no_triton


def scan(
    unit: Unit, drive: Tensor, recurrent: Tensor | None, state: State, alone: bool
) -> tuple[Tensor, State]:
    """`spikebridge.nn.scan.scan` through a kernel; the caller has checked that one can serve.

    alone: `plain(drive)`, which is asked once for a call.
    """
    rule, params, step = unit.rule, unit.params(state.s.dtype), step_of(unit)
    assert step is not None
    formula, states = rule.surrogate, unit.state_size // unit.size
    if recurrent is not None:
        recurrent = recurrent.to(state.s.dtype)
    first = state.s if states == 1 else _one_after_another(state.s, states, unit.size)
    own = torch.stack(params.own) if params.own else None
    operands = (drive, recurrent, first, state.y, params.decay, params.bias, own)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    keep = keep or (not alone and torch.jit.is_tracing())  # what is traced may be trained later
    slope = 1.0 if rule.g == "identity" else rule.slope
    amount = rule.amount or 0.0 if rule.reset == "subtract" else 0.0
    amount = native.OF_THRESHOLD if rule.trained else amount
    h = ("sigmoid", 1.0, 1.0)
    if formula is not None:
        h = formula.formula, formula.width, formula.height
    # The shortest way to the kernel: the machinery of an op takes longer than a small scan.
    run: Any = torch.ops.spikebridge.scan  # where somebody looks on
    fits = alone and states == native.step(step.name).states and _per_neuron(params, state)
    if fits and unwrapped(*(x for x in operands[1:] if x is not None)):
        run = _Scan.apply if keep else native.checked_forward
    y, s_last, y_last, *_ = run(
        *operands, rule.g, slope, rule.reset == "gate", amount, *h,
        rule.reset == "lateral", step.name, step.numbers(unit), keep,
    )  # fmt: skip
    if states > 1:
        s_last = _side_by_side(s_last, states, drive.shape[1])
    return y, State(y_last, s_last)


def _one_after_another(s: Tensor, states: int, size: int) -> Tensor:
    """States (B, k N) as the kernels keep them, (k B, N)."""
    return s.unflatten(-1, (states, size)).transpose(0, 1).flatten(0, 1)


def _side_by_side(s: Tensor, states: int, batch: int) -> Tensor:
    """States (k B, N) as a `State` keeps them, (B, k N)."""
    return s.unflatten(0, (states, batch)).transpose(0, 1).flatten(1)


def _per_neuron(params: Params, state: State) -> bool:
    """Whether decay and bias are (N,), or () for all; the op refuses what else a unit may make."""
    n, dtype = state.y.shape[1:], state.s.dtype
    decay, bias = params[:2]
    return (
        decay.dtype == bias.dtype == dtype
        and (decay.shape == n or not decay.dim())
        and (bias.shape == n or not bias.dim())
    )


class _Scan(torch.autograd.Function):
    """The op on a CPU, without its machinery."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Any, ...]:
        output = native.checked_forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        # create_graph=True: the op knows how to refuse what would come.
        if torch.is_grad_enabled() or not plain(*grads):
            return _backward(ctx, *grads)
        return _gradients(native.checked_backward, ctx, grads)

    @staticmethod
    def needed(ctx: Any) -> Marks | None:
        """Where the gradient of y counts at all; None where it may count everywhere.

        A window or a triangle is 0 beyond its width, and what comes back to y goes through it.
        """
        _, _, s_all, _, _, y0, _, bias, _ = ctx.saved_tensors
        *_, h, width, _, _, name, numbers = ctx.rule
        argument = _ARGUMENTS.get(name)
        if h not in COMPACT or argument is None:
            return None
        n, states = s_all.shape[-1], s_all.shape[1] // max(len(y0), 1)
        if states == 1:  # the marks add the bias
            return sparse.mark_near(s_all.view(-1, n), bias.expand(n).contiguous(), width)
        x = argument(bias, s_all.chunk(states, 1), numbers)
        return sparse.mark_near(x.view(-1, n), torch.zeros_like(bias).expand(n).contiguous(), width)


# The signatures of the CPU's implementations are the schemas.
_scan = torch.library.custom_op(
    "spikebridge::scan", native.forward, mutates_args=(), device_types="cpu"
)
_scan_backward = torch.library.custom_op(
    "spikebridge::scan_backward", native.backward, mutates_args=(), device_types="cpu"
)


@_scan.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from spikebridge.nn.kernels import triton

    return triton.forward(*arguments)


@_scan_backward.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from spikebridge.nn.kernels import triton

    return triton.backward(*arguments)


@_scan.register_fake
def _(drive, recurrent, s0, y0, *rest):  # type: ignore[no-untyped-def]
    t = drive.shape[0] if rest[-1] else 0  # keep
    return (
        drive.new_empty((drive.shape[0], *y0.shape)),
        s0.new_empty(s0.shape),
        y0.new_empty(y0.shape),
        s0.new_empty((t, *s0.shape)),
        s0.new_empty((t if _kept_apart(recurrent, rest[3:-1]) else 0, *drive.shape[1:])),
    )


@_scan_backward.register_fake
def _(grad_y, grad_s_last, grad_y_last, drive, recurrent, s_all, s0, y0, *rest):  # type: ignore[no-untyped-def]
    given = [x for x in (grad_y, drive, s_all) if x is not None]
    like, step, (b, n) = given[0], native.step(rest[-2]), y0.shape
    return (
        like.new_empty((s_all.shape[0], b, step.drives * n)),
        s0.new_empty(s0.shape),
        *(y0.new_empty(y0.shape) for _ in range(3)),
        y0.new_empty((step.own * b, n)),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    drive, recurrent, s0, y0, decay, bias, own, *rule, keep = inputs
    y, _, _, s_all, seen = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(x for x in (s_all, seen) if x is not None))
    if _kept_apart(recurrent, rule):
        drive = seen
    elif not native.step(rule[-2]).reads:
        drive = None
    y = None if recurrent is None else y
    ctx.save_for_backward(y, drive, s_all, recurrent, s0, y0, decay, bias, own)
    ctx.rule, ctx.keep = rule, keep


def _kept_apart(recurrent: Tensor | None, rule: Sequence[Any]) -> bool:
    """Whether the backward pass reads currents that are not the drive alone."""
    *_, lateral, step, _ = rule
    return (recurrent is not None or lateral) and native.step(step).reads


def _backward(ctx: Any, *grads: Any) -> tuple:
    if not ctx.keep:
        raise RuntimeError("scan was called with keep=False and kept no states for a backward pass")
    return _gradients(torch.ops.spikebridge.scan_backward, ctx, grads)


def _gradients(run: Callable[..., tuple[Tensor, ...]], ctx: Any, grads: Sequence[Any]) -> tuple:
    """Those of all inputs, from those of y, the last s and the last y."""
    y, drive, s_all, recurrent, s0, y0, decay, bias, own = ctx.saved_tensors
    drive, s, first_y, share_decay, share_bias, share_own = run(
        *grads[:3], drive, recurrent, s_all, s0, y0, decay, bias, own, *ctx.rule
    )
    needs = ctx.needs_input_grad
    return (
        drive if needs[0] else None,
        _recurrent_gradient(drive[..., : len(recurrent)], y, y0) if needs[1] else None,
        s if needs[2] else None,
        first_y if needs[3] else None,
        _reduced(share_decay, decay) if needs[4] else None,
        _reduced(share_bias, bias) if needs[5] else None,
        share_own.unflatten(0, (len(own), len(y0))).sum(1) if needs[6] else None,
        *[None] * (len(ctx.rule) + 1),
    )


def _recurrent_gradient(drive: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Sum over time of the outer products of dL/ddrive_t and y_{t-1}: one matrix product."""
    dtype = y0.dtype if drive.device.type == "cpu" and slow_bfloat16() else drive.dtype
    drive_rows, y_rows = (x.flatten(0, 1).to(dtype) for x in (drive[1:], y[:-1]))
    later = (drive_rows.mT @ y_rows).to(y0.dtype)
    return torch.addmm(later, drive[0].mT.to(y0.dtype), y0) if drive.shape[0] else later


def _refused(ctx: Any, *grads: Any) -> tuple:
    raise RuntimeError(
        "the kernels have no second derivatives: their gradients cannot be differentiated again; "
        'use backend="loop", or leave create_graph out'
    )


_scan.register_autograd(_backward, setup_context=_setup)
_scan_backward.register_autograd(_refused)


def _reduced(share: Tensor, like: Tensor) -> Tensor:
    if not like.dim():
        return share.sum()
    # A compiled graph is for every batch: nothing there may ask for its size.
    return share.squeeze(0) if type(share) is Tensor and len(share) == 1 else share.sum(0)
