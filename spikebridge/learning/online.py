"""Learning online: gradients through time that go forward with it, in memory constant in T.

Backpropagation through time keeps every step until the end.  Here each layer carries its
eligibilities (`spikebridge.learning.online_eligibility`), an error comes down at the very step at
which it arises, and gradient and step are done with:

    dE/dtheta = sum over t of L_t dy_t/dtheta,   L_t = dE_t/dy_t at the same step t

The rules, and what they leave out:

    ostl    within a layer all of time, the recurrent weights included (Bohnstingl et al., "Online
            Spatio-Temporal Learning in Deep Neural Networks", IEEE TNNLS 2022, arXiv 2007.12723).
            For one hidden layer, and for the last of several, it is the gradient of
            backpropagation through time, of the loss that `Online.learn` states (with a readout of
            the mean that is another one).  For layers further down it leaves out what an error
            does by way of the memory of the layers above.
    eprop   as ostl, and in a recurrent layer the influence of a neuron on the others by way of the
            recurrent weights is left out too (Bellec et al., "A solution to the learning dilemma
            for recurrent networks of spiking neurons", 2020, with the readout's own weights for
            learning signals).  The way of a neuron's output to its own reset stays.

Without recurrent weights the two are one.  Of a recurrent layer of N neurons with one state, from
which their output follows, eprop carries 2 B N (C (I + N) + q) numbers for C drives and q
parameters of a neuron (an SNU: 1 and 2), ostl N times as many; of other units with k states 2 k + 3
in place of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from spikebridge.data.task import Batch
from spikebridge.learning.online_eligibility import Forward, unsupported
from spikebridge.nn.layers import Dropout, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.units import State, state_dtype

__all__ = ["Learned", "Online", "OnlineRule", "attach", "check"]

OnlineRule = Literal["ostl", "eprop"]
Eligibilities = Literal["auto", "derived"]
RULES: tuple[str, ...] = get_args(OnlineRule)
MIB = 1 << 20


class Learned(NamedTuple):
    """What came out of a sequence, beside gradients."""

    loss: float
    state: tuple[State, ...]  # of each layer, after the last step


class Online:
    """A network's gradients, step by step: its modules are read, never called or changed.

        online = Online(network, "ostl")
        learned = online.learn(batch, task.loss)     # adds to .grad, as loss.backward() does

    For streams `begin` a sequence, `step` through it, and `collect` gradients whenever weights are
    to change; eligibilities live on through that.  In training dropout falls as in the network's
    own forward pass: anew at each step, or with same_mask once per sequence; that of recurrent
    weights once per sequence, and anew after `collect`.

    Args:
        network: dense layers of units whose neurons do not act on one another within a step, ours
            or your own; see `check`.
        rule: "ostl" or "eprop"; see the module.
        max_eligibility_MiB: what eligibilities may take before `begin` raises MemoryError.
        eligibilities: "derived" is the definition, an eligibility of each state and of the output
            from the unit's step; "auto" carries one number where the output follows from one
            state, and takes the slopes of the SNU family written by hand, which is faster.

    Raises ValueError for a network that it cannot train.
    """

    def __init__(
        self,
        network: Network,
        rule: OnlineRule = "ostl",
        *,
        max_eligibility_MiB: float = 256.0,
        eligibilities: Eligibilities = "auto",
    ) -> None:
        check(network, rule)
        if eligibilities not in get_args(Eligibilities):
            raise ValueError(
                f"eligibilities={eligibilities!r} is not known; choose one of "
                f"{list(get_args(Eligibilities))}"
            )
        self.network, self.rule, self.limit = network, rule, max_eligibility_MiB
        self.layers = [
            Forward(layer, rule == "ostl", eligibilities == "derived") for layer in network.layers
        ]
        self.sizes = [layer.unit.size for layer in network.layers]
        self.batch = 0

    @property
    def state(self) -> tuple[State, ...]:
        """The states of all layers after the last step."""
        self._require_sequence()
        return tuple(layer.state for layer in self.layers)

    def eligibility_MiB(self, batch: int) -> float:
        """What eligibilities take for a batch, in MiB, however long a sequence is."""
        width = state_dtype(self.network.readout.linear.weight.dtype).itemsize
        return sum(layer.bytes(batch, width) for layer in self.layers) / MIB

    @torch.no_grad()
    def begin(self, batch: int, state: Sequence[State] | None = None) -> None:
        """Begin sequences, B = batch side by side, in silence or in a state of each layer.

        Gradients that were not collected are dropped.

        Raises:
            MemoryError: eligibilities would take more than max_eligibility_MiB.
            ValueError: batch below 1, or states that do not fit.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        needed = self.eligibility_MiB(batch)
        if needed > self.limit:
            remedy = "a smaller batch, fewer neurons, or a higher max_eligibility_MiB"
            if self.rule == "ostl" and any(layer.recurrent for layer in self.layers):
                remedy = f'rule="eprop", {remedy}'
            raise MemoryError(
                f"the eligibilities of a batch of {batch} take {needed:.0f} MiB, "
                f"max_eligibility_MiB is {self.limit:g}; use {remedy}"
            )
        states = [None] * len(self.layers) if state is None else list(state)
        if len(states) != len(self.layers):
            raise ValueError(
                f"state must hold one entry for each of {len(self.layers)} layers, "
                f"got {len(states)}"
            )
        self.batch = batch
        for layer, before in zip(self.layers, states, strict=True):
            layer.begin(batch, before)
        self._read()
        widths = [self.network.layers[0].array.in_features, *self.sizes]
        self.masks = [self._mask(place, width) for place, width in enumerate(widths)]

    def step(
        self, x: Tensor, loss: Callable[[Tensor], Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One time step: its output, and the gradients of its loss added up.

        Args:
            x: (B, I).
            loss: of the output (B, O) to a scalar E_t; None, or a function that returns None, is
                a step without error.

        Returns:
            The output (B, O), and E_t without graph.
        """
        judge = None if loss is None else lambda outputs: loss(outputs[0])
        outputs, value = self.steps(x.unsqueeze(0), judge)
        return outputs[0], value

    @torch.no_grad()
    def steps(
        self, x: Tensor, loss: Callable[[Tensor], Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """C time steps at once: as C times `step`, several times faster, in C times the memory.

        Eligibilities still go from step to step; what has no memory is done for all C together.

        Args:
            x: (C, B, I).
            loss: of the outputs (C, B, O) to the sum of the steps' E_t.

        Returns:
            The outputs (C, B, O), and the loss without graph.
        """
        self._require_sequence()
        width = self.network.layers[0].array.in_features
        if x.dim() != 3 or x.shape[1:] != (self.batch, width) or not len(x):
            raise ValueError(
                f"a step's x must be {(self.batch, width)} here, got {tuple(x.shape[1:])} for "
                f"{len(x)} steps"
            )
        x = _times(x.to(self.weight.dtype), self._factors(0, x))
        sent, masks = [], []
        for place, layer in enumerate(self.layers, start=1):
            y = layer.run(x)
            masks.append(self._factors(place, y))
            x = _times(y, masks[-1])
            sent.append(x)
        read = self.network.read
        x = x if read == 1 else torch.cat(sent[-read:], 2)
        outputs = F.linear(x, self.weight, self.bias)
        value, errors = _judged(outputs, loss)
        self._learn(x, errors, masks)
        return outputs, value

    def collect(self) -> None:
        """Add the gradients so far to `.grad`, as `backward` does, and begin to sum up anew.

        Parameters are read again afterwards: a change of theirs counts from the next step on.
        """
        self._require_sequence()
        pairs = [pair for layer in self.layers for pair in layer.collect()]
        for root, total in zip(self.roots, self.sums, strict=True):
            if root.requires_grad:
                pairs.append((root, total.to(root.dtype)))
        if pairs:
            roots, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(roots, gradients)
        for layer in self.layers:
            layer.read()
        self._read()

    def sequence(
        self,
        x: Iterable[Tensor],
        loss: Callable[[Tensor, int], Tensor | None],
        state: Sequence[State] | None = None,
    ) -> Learned:
        """A whole sequence, and its gradients added to `.grad`.

        Args:
            x: (B, I) for each step: a tensor (T, B, I), or anything that yields them; steps that
                are made one by one are never all in memory.
            loss: of a step's output (B, O) and its number, from 0, to its part of the loss; None
                for a step without error.
            state: of each layer to begin with; None is silence.

        Returns:
            The sum of the parts, and the states after the last step.
        """
        total: Any = 0.0
        number = -1
        for number, now in enumerate(x):
            if number == 0:
                self.begin(len(now), state)
            _, value = self.step(now, partial(_at, loss, number))
            total = total if value is None else total + value
        if number < 0:
            raise ValueError("a sequence needs at least one step, got none")
        self.collect()
        return Learned(float(total), self.state)

    def learn(
        self,
        batch: Batch,
        loss: Callable[[Tensor, Batch], Tensor],
        state: Sequence[State] | None = None,
        *,
        block: int = 32,
    ) -> Learned:
        """A batch of a task, and the gradients of its loss added to `.grad`.

        What the loss is depends on the readout:

            each    the loss itself: a step has the share of it that its real frames have
            last    the loss itself: the last step has it all
            mean    the mean of the losses of all steps' own outputs, each as if it were the mean:
                    which output the steps will have in the mean is not known before the end.  For
                    a loss convex in the output, as cross-entropy and squared errors are, that is
                    never less than the loss of the mean output (Jensen's inequality)

        Where the batch has a mask, the last step of a sample is its last real one, and a mean is
        over its real steps.

        Args:
            batch: of a task; x (T, B, I).
            loss: `task.loss`, or another mean over what `Batch.counted` counts.
            state: of each layer to begin with; None is silence.
            block: C of `steps`; gradients depend on it only by rounding and dropout's draws.
        """
        if block < 1 or not len(batch.x):
            raise ValueError(
                f"a batch needs a step and a block one too, got {len(batch.x)} and block={block}"
            )
        self.begin(batch.x.shape[1], state)
        total: Any = 0.0
        for start in range(0, len(batch.x), block):
            x = batch.x[start : start + block]
            judge = partial(self._part, loss, batch, start)
            _, value = self.steps(x, judge)
            total = total if value is None else total + value
        self.collect()
        return Learned(float(total), self.state)

    def _part(
        self,
        loss: Callable[[Tensor, Batch], Tensor],
        batch: Batch,
        start: int,
        outputs: Tensor,
    ) -> Tensor | None:
        """What the outputs (C, B, O) of the steps from `start` add to the loss; None is nothing."""
        steps, end = len(batch.x), start + len(outputs)
        reduce = self.network.readout.reduce
        if reduce != "each" and batch.mask is not None:
            return _padded(loss, batch, start, outputs, last=reduce == "last")
        if reduce == "last":
            return loss(outputs[-1], batch) if end == steps else None
        if reduce == "mean":
            return torch.stack([loss(output, batch) for output in outputs]).sum() / steps
        mask = None if batch.mask is None else batch.mask[start:end]
        part = Batch(batch.x[start:end], batch.target[start:end], mask)
        share = part.counted / batch.counted if part.counted else 0.0
        return loss(outputs, part) * share if share else None

    def _require_sequence(self) -> None:
        if not self.batch:
            raise RuntimeError("no sequence is under way; call begin(batch) first")

    def _read(self) -> None:
        """The readout's parameters as they are now."""
        linear = self.network.readout.linear
        with torch.enable_grad():
            self.roots = [linear.weight] + ([] if linear.bias is None else [linear.bias])
        dtype = state_dtype(linear.weight.dtype)
        values = [root.detach().to(dtype) for root in self.roots]
        self.weight, self.bias = values[0], values[1] if len(values) > 1 else None
        self.sums = [torch.zeros_like(value) for value in values]

    def _learn(self, x: Tensor, errors: Tensor | None, masks: list[Tensor | None]) -> None:
        """The errors at the outputs, (C, B, O), from layer to layer within their steps."""
        if errors is None:
            for layer in self.layers:
                layer.learn(None)
            return
        self.sums[0] += errors.flatten(0, 1).t() @ x.flatten(0, 1)
        if self.bias is not None:
            self.sums[1] += errors.sum((0, 1))
        read = self.network.read
        direct = list((errors @ self.weight).split(self.sizes[-read:], 2))
        signal: Tensor | None = None
        for place in reversed(range(len(self.layers))):
            if direct:
                signal = direct.pop() if signal is None else signal + direct.pop()
            assert signal is not None
            layer = self.layers[place]
            at_drive = layer.learn(_times(signal, masks[place]))
            if place and at_drive is not None:
                signal = layer.down(at_drive)

    def _dropout(self, place: int) -> Dropout:
        return self.network.dropout if place else self.network.dropout_in

    def _mask(self, place: int, width: int) -> Tensor | None:
        """The factors that are drawn once per sequence, (1, B, width); None where none are."""
        dropout = self._dropout(place)
        if not (dropout.same_mask and dropout.training and dropout.p):
            return None
        return dropout(self.weight.new_ones(1, self.batch, width))

    def _factors(self, place: int, like: Tensor) -> Tensor | None:
        """What the inputs, place 0, or the outputs of a layer are multiplied by, (C, B, width)."""
        dropout = self._dropout(place)
        if dropout.same_mask or not (dropout.training and dropout.p):
            return self.masks[place]
        return dropout(torch.ones_like(like, dtype=self.weight.dtype))


def _padded(
    loss: Callable[[Tensor, Batch], Tensor],
    batch: Batch,
    start: int,
    outputs: Tensor,
    *,
    last: bool,
) -> Tensor | None:
    """As `Online._part`, for samples of their own lengths with one answer each.

    Samples of a length have equal weights, so that a mean loss can be asked of them at once.
    """
    assert batch.mask is not None
    lengths = batch.mask.sum(0)
    total: Tensor | None = None
    for length in lengths.unique().tolist():
        first = length - 1 if last else start
        steps = min(length, start + len(outputs)) - first
        if first < start or steps < 1:
            continue
        chosen = (lengths == length).nonzero().squeeze(1)
        own = outputs[first - start : first - start + steps, chosen].flatten(0, 1)
        x = batch.x[first : first + steps, chosen].flatten(0, 1).unsqueeze(0)
        target = batch.target[chosen]
        part = Batch(x, target.repeat(steps, *[1] * (target.dim() - 1)), None)
        if not part.counted:
            continue
        weight = part.counted / (batch.counted * (1 if last else length))
        value = loss(own, part) * weight
        total = value if total is None else total + value
    return total


def _at(loss: Callable[[Tensor, int], Tensor | None], t: int, output: Tensor) -> Tensor | None:
    return loss(output, t)


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _judged(
    outputs: Tensor, loss: Callable[[Tensor], Tensor | None] | None
) -> tuple[Tensor | None, Tensor | None]:
    """The loss, and its derivative by the outputs, (C, B, O)."""
    if loss is None:
        return None, None
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        value = loss(leaf)
        if value is None:
            return None, None
        (errors,) = torch.autograd.grad(value, leaf)
    return value.detach(), errors


def attach(model: Network, rule: OnlineRule = "ostl", **options: Any) -> Online:
    """`Online` under the name that other rules have: eligibilities from any pure step of its units.

    Args:
        model, rule, options: see `Online`; the model is read, nothing is put into it.

    Raises ValueError for a network that it cannot train, with the reason.
    """
    return Online(model, rule, **options)


def check(network: Network, rule: str = "ostl") -> None:
    """ValueError, with the remedy, for a network or a rule that `Online` cannot serve."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not known; choose one of {list(RULES)}")
    if network.embedding is not None:
        raise ValueError(
            "online learning takes numbers (T, B, I), and this network embeds symbols; train it "
            "by backpropagation through time"
        )
    if network.skip:
        raise ValueError(
            "online learning sends errors from each layer to the one before, and skip connections "
            "go past it; build the network with skip=False, or train it by backpropagation"
        )
    if not isinstance(network.readout, Readout) or network.readout.bias is not None:
        raise ValueError(
            "online learning needs a Readout with a matrix of its own; build the network with "
            "tied=False"
        )
    for number, layer in enumerate(network.layers, start=1):
        reason = unsupported(layer)
        if reason is not None:
            raise ValueError(
                f"online learning cannot train layer {number}: {reason}; "
                "or train it by backpropagation through time"
            )
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise ValueError(
                f"{name or 'the network'} has hooks, which would be passed over: online learning "
                "does not call modules; detach other learning rules first"
            )
