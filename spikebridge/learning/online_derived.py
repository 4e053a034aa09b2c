"""Eligibilities of any unit whose neurons keep to themselves, derived from its pure step.

With x_t the k states of a neuron and its output, M = k + 1 numbers, and a step

    x_t = step(x_{t-1}, drives_t, parameters)

of neurons that do not act on one another, the eligibility e_t = dx_t/dtheta, M numbers for each
neuron, sample and parameter theta of that neuron, follows from that of the step before:

    e_t = dx_t/dx_{t-1} e_{t-1} + dx_t/dtheta,    dx_t/dW_cj = dx_t/ddrive_c z_j

z_j being what synapse j carries and c the channel that it drives.  The derivatives of all neurons
and samples come from M backward passes through one call of the step, for a sum over neurons has the
gradient of each of them; that they do not act on one another is tried out, see `refused`.

Source: Bellec et al. 2020 (e-prop, whose eligibility vector this is) and Bohnstingl et al. 2022
(OSTL), both for any differentiable neuron; spikes have the derivative of their surrogate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from spikebridge.nn.units import Params, State, Unit, state_dtype

__all__ = ["Derived", "Jacobians", "Ran", "Widths", "jacobians", "refused"]

Rows = list[list[Tensor | None]]


class Widths(NamedTuple):
    """The sizes of a layer and of what its synapses carry."""

    size: int  # N
    states: int  # k
    drives: int  # channels of the array, of N drives each
    fed: int  # the first channels, into which the last outputs go; 0 without recurrence
    inputs: int  # I, and one more where the array has a constant drive
    own: int  # parameters of a neuron besides its synapses

    @property
    def columns(self) -> int:
        """Parameters of a neuron."""
        return self.drives * self.inputs + self.fed * self.size + self.own


class Ran(NamedTuple):
    """C time steps of a layer, as they were run."""

    x: Tensor  # (C, B, inputs), with a last column of ones where there is a constant drive
    drive: Tensor  # (C, B, channels N)
    before: State  # (C, B, ..) each
    after: State


class Jacobians(NamedTuple):
    """The derivatives of the M components of C time steps, (C, B, N) each; None is 0 throughout.

    A row for each component: the k states, then the output.
    """

    state: Rows  # by the components one step earlier
    drive: Rows  # by the drives, channel after channel
    own: Rows  # by the tensors of `params_of`


def params_of(params: Params) -> list[Tensor]:
    """The tensors among a unit's parameters, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(params) if isinstance(leaf, Tensor)]


def _stepped(unit: Unit, state: State, drive: Tensor, own: list[Tensor], of: Params) -> Any:
    """The components after a step with these tensors as parameters, (B, N) each."""
    leaves, structure = pytree.tree_flatten(of)
    given = iter(own)
    leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    after = unit.step(state, drive, pytree.tree_unflatten(leaves, structure))
    return [*after.s.split(unit.size, -1), after.y]


def jacobians(unit: Unit, ran: Ran, params: Params) -> Jacobians:
    """What a unit's step depends on, and how much, at C steps.

    The steps stand beside one another as if they were samples.
    """
    lead, n = ran.drive.shape[:2], unit.size
    k, drives = ran.before.s.shape[-1] // n, ran.drive.shape[-1] // n
    with torch.enable_grad():
        y, s, drive = (
            part.flatten(0, 1).detach().requires_grad_()
            for part in (ran.before.y, ran.before.s, ran.drive)
        )
        # A number that neurons share has a gradient for each of them too.
        own = [p.detach().expand(len(y), n).requires_grad_() for p in params_of(params)]
        components = _stepped(unit, State(y, s), drive, own, params)
        totals = [component.sum() for component in components]
    rows: tuple[Rows, Rows, Rows] = ([], [], [])
    for total in totals:
        found = _gradients(total, [s, y, drive, *own])
        parts = [*_channels(found[0], k), found[1], *_channels(found[2], drives), *found[3:]]
        parts = [_seen(part, lead) for part in parts]
        rows[0].append(parts[: k + 1])
        rows[1].append(parts[k + 1 : k + 1 + drives])
        rows[2].append(parts[k + 1 + drives :])
    return Jacobians(*rows)


def _gradients(total: Tensor, by: list[Tensor]) -> list[Tensor | None]:
    if not total.requires_grad:
        return [None] * len(by)
    return list(torch.autograd.grad(total, by, retain_graph=True, allow_unused=True))


def _channels(found: Tensor | None, count: int) -> list[Tensor | None]:
    return [None] * count if found is None else list(found.chunk(count, -1))


def _seen(found: Tensor | None, lead: torch.Size) -> Tensor | None:
    return None if found is None or not found.any() else found.unflatten(0, lead)


class Derived:
    """Eligibilities of a layer, and the gradients so far.

    A neuron's parameters stand in columns: synapses of each channel from the inputs, synapses of
    each fed channel from the last outputs, its own parameters.

    Args:
        batch: B.
        of: the layer's sizes.
        full: carry the influence of all parameters of the layer on all of its neurons (real-time
            recurrent learning within the layer, Williams and Zipser 1989); otherwise that of a
            neuron on itself only.
        unit: whose step is carried along.
        like: of the dtype and device of a state.
    """

    def __init__(self, batch: int, of: Widths, full: bool, unit: Unit, like: Tensor) -> None:
        self.of, self.full, self.unit = of, full, unit
        owners = (of.size,) if full else ()
        shape = (of.states + 1, batch, of.size, *owners, of.columns)
        self.now, self.next = like.new_zeros(shape), like.new_zeros(shape)
        self.sums = like.new_zeros(of.size * (1 if full else batch), of.columns)

    @staticmethod
    def bytes(batch: int, of: Widths, full: bool, width: int) -> int:
        """What eligibilities, gradients and products on the way take, `width` bytes a number."""
        influence = batch * of.size * of.columns * (of.size if full else 1)
        return (2 * (of.states + 1) + 1) * influence * width

    def advance(
        self, ran: Ran, params: Params, recurrent: Tensor | None, signal: Tensor | None
    ) -> Tensor | None:
        """C steps on, and the gradients of their errors added up.

        Args:
            ran, params: the steps, and the parameters that they were run with.
            recurrent: (fed N, N).
            signal: dE_t/dy_t, (C, B, N); None where there are none.

        Returns:
            The errors at the drives, (C, B, channels N).
        """
        found = jacobians(self.unit, ran, params)
        matrices = () if recurrent is None or not self.full else recurrent.split(self.of.size)
        for t in range(len(ran.x)):
            self._carry(found, t)
            for channel, matrix in enumerate(matrices):
                self._hear(matrix, [row[channel] for row in found.drive], t)
            self._enter(found, ran, t)
            self.now, self.next = self.next, self.now
            if signal is not None and self.full:
                influence = self.now[-1].flatten(0, 1).flatten(1)  # (B N, N columns)
                self.sums.view(-1).addmv_(influence.t(), signal[t].reshape(-1))
            elif signal is not None:
                self.sums.view_as(self.now[-1]).addcmul_(signal[t].unsqueeze(2), self.now[-1])
        if signal is None:
            return None
        zero = torch.zeros_like(signal)
        return torch.cat([zero if d is None else signal * d for d in found.drive[-1]], 2)

    def _carry(self, found: Jacobians, t: int) -> None:
        """dx_t/dx_{t-1} e_{t-1}, into what is next."""
        behind = (...,) + (None,) * (self.now.dim() - 3)
        for row, after in zip(found.state, self.next, strict=True):
            terms = [(j[t][behind], e) for j, e in zip(row, self.now, strict=True) if j is not None]
            if not terms:
                after.zero_()
                continue
            torch.mul(*terms[0], out=after)
            for slope, before in terms[1:]:
                after.addcmul_(slope, before)

    def _hear(self, matrix: Tensor, slopes: list[Tensor | None], t: int) -> None:
        """What others' last outputs do by way of a recurrent matrix."""
        heard = (matrix @ self.now[-1].flatten(2)).view_as(self.now[-1])
        for slope, after in zip(slopes, self.next, strict=True):
            if slope is not None:
                after.addcmul_(slope[t][..., None, None], heard)

    def _enter(self, found: Jacobians, ran: Ran, t: int) -> None:
        """dx_t/dtheta, for a neuron's parameters and itself."""
        of, own = self.of, self.next
        if self.full:
            own = own.diagonal(dim1=2, dim2=3).movedim(-1, 2)
        widths = [of.drives * of.inputs, of.fed * of.size, of.own]
        synapses, heard, rest = own.split(widths, -1)
        carried = [(synapses.unflatten(-1, (of.drives, of.inputs)), ran.x[t])]
        if of.fed:
            carried.append((heard.unflatten(-1, (of.fed, of.size)), ran.before.y[t]))
        for m, row in enumerate(found.drive):
            for into, z in carried:
                for channel, slope in enumerate(row[: into.shape[3]]):
                    if slope is not None:
                        into[m, :, :, channel].addcmul_(slope[t].unsqueeze(2), z.unsqueeze(1))
        for m, row in enumerate(found.own):
            for column, slope in enumerate(row):
                if slope is not None:
                    rest[m, ..., column].add_(slope[t])

    def collect(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The gradients, which start at zero again.

        Returns:
            Of synapses from inputs (channels N, inputs), of recurrent ones (fed N, N), and (N,) of
            each tensor of `params_of`.
        """
        of = self.of
        total = self.sums.view(-1, of.size, of.columns).sum(0)
        self.sums.zero_()
        widths = [of.drives * of.inputs, of.fed * of.size, of.own]
        synapses, heard, own = total.split(widths, 1)
        return (
            synapses.unflatten(1, (of.drives, of.inputs)).transpose(0, 1).flatten(0, 1),
            heard.unflatten(1, (of.fed, of.size)).transpose(0, 1).flatten(0, 1),
            list(own.unbind(1)),
        )


_SAMPLES = 16


def refused(unit: Unit) -> str | None:
    """Why no eligibilities can be derived from a unit's step; None where they can.

    The step is called with random numbers: whether it gives the same twice, has gradients, and
    keeps neurons and samples apart.
    """
    name, n = type(unit).__name__, unit.size
    if unit.state_size % n:
        return f"{name}: {unit.state_size} states of {n} neurons are not as many for each"
    with torch.no_grad():
        params = unit.params(state_dtype(unit.threshold.dtype))
    for leaf in params_of(params):
        if leaf.shape not in ((), (n,)):
            return f"{name}: a parameter is {tuple(leaf.shape)} in place of () or ({n},)"
    try:
        reason = _tried(unit, params)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = f"the step fails for parameters of (B, N): {str(error).splitlines()[0]}"
    return None if reason is None else f"{name}: {reason}"


@torch.enable_grad()
def _tried(unit: Unit, params: Params) -> str | None:
    """Why the step of a unit whose sizes fit has no eligibilities."""
    shape = (_SAMPLES, unit.size)
    run, draw = _trial(unit, params, shape, torch.Generator().manual_seed(0))
    parts, others = draw(), draw()
    found = run(parts)
    shapes = [tuple(part.shape) for part in found]
    if shapes != [shape] * (1 + unit.state_size // unit.size):
        return f"the step gives states and an output of {shapes} in place of {shape} each"
    if not _same(found, run(parts)):
        return "the step is not pure: called twice with the same it gives two results"
    if any(part.requires_grad for part in found):
        return "the step reads trained parameters past its arguments; hand them over in `params`"
    if not run([part.requires_grad_() for part in parts])[-1].requires_grad:
        return "the outputs have no gradient; give the unit a surrogate"
    row, column = torch.arange(_SAMPLES).unsqueeze(1), torch.arange(unit.size).unsqueeze(0)
    for what, number in (("neurons", column), ("samples of a batch", row)):
        if not _apart(run, parts, others, number.expand(shape).to(found[0].device)):
            return f"{what} act on one another within the step"
    return None


def _trial(
    unit: Unit, params: Params, shape: tuple[int, int], noise: torch.Generator
) -> tuple[Callable[[list[Tensor]], Any], Callable[[], list[Tensor]]]:
    """A step of (B, N) parts, and what draws them: output, states, drives, parameters."""
    own, k = [leaf.detach() for leaf in params_of(params)], unit.state_size // unit.size
    drives = getattr(unit, "drives", 1)

    def run(parts: list[Tensor]) -> Any:
        y, s = parts[0].clone(), torch.cat(parts[1 : 1 + k], -1)
        drive = torch.cat(parts[1 + k : 1 + k + drives], -1)
        found = _stepped(unit, State(y, s), drive, parts[1 + k + drives :], params)
        if any(part._version for part in (y, s, drive)):
            raise RuntimeError("it changes its arguments, where it must be pure")
        return found

    def draw() -> list[Tensor]:
        like = unit.threshold
        y = torch.rand(shape, generator=noise)
        y[::2].round_()  # spikes, and what soft units put out
        parts = [y] + [2 * torch.randn(shape, generator=noise) for _ in range(k + drives)]
        parts += [1 - torch.rand(shape, generator=noise) / 2 for _ in own]
        parts = [part.to(like.device, state_dtype(like.dtype)) for part in parts]
        for number, leaf in enumerate(own, start=1 + k + drives):
            parts[number] = parts[number] * leaf
        return parts

    return run, draw


def _apart(
    run: Callable[[list[Tensor]], Any], parts: list[Tensor], others: list[Tensor], number: Tensor
) -> bool:
    """Whether entries of another number never change an entry's results, nor their gradients.

    Any two numbers differ in one of their bits at least.
    """
    found = run(parts)
    noise = torch.Generator().manual_seed(1)
    weights = 0.5 + torch.rand(int(number.max()) + 1, generator=noise)
    weight = weights.to(parts[0].device, parts[0].dtype)[number]
    for part in found:
        plain, weighted = (_gradients(total.sum(), parts) for total in (part, part * weight))
        for one, other in zip(plain, weighted, strict=True):
            if one is not None and other is not None and not _near(one * weight, other):
                return False
    with torch.no_grad():
        for bit in range(math.ceil(math.log2(int(number.max()) + 1))):
            for value in (0, 1):
                kept = (number >> bit & 1) == value
                mixed = [torch.where(kept, *pair) for pair in zip(parts, others, strict=True)]
                if not _same([part[kept] for part in found], [part[kept] for part in run(mixed)]):
                    return False
    return True


def _near(one: Tensor, other: Tensor) -> bool:
    bound = 1e-4 * float(one.nan_to_num().abs().max())
    return torch.allclose(one, other, rtol=1e-4, atol=bound, equal_nan=True)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(
        torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5))
        for a, b in zip(one, other, strict=True)
    )
