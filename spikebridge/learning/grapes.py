"""GRAPES: the error of each neuron scaled by the weights of that neuron.

    M_i = 2 I_i / max I,   I_i = sum over j of |W_ij|,   delta_i <- M_i delta_i

for the neurons i of every layer but the output, with M taken anew after each update of the weights
and, for backpropagation, kept in [1, 2].  Any model of torch takes it, and forward passes stay what
they are, bit for bit:

    with grapes.attach(model):
        train(model)

Source: Dellaferrera et al. 2022, Nature Communications 13 (arXiv 2104.11604), and the code that the
authors published (IBM/GRAPES); the local form is that of the patent US 12020162.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from spikebridge.learning.grapes_factors import (
    Bank,
    Clip,
    Population,
    checked_clip,
    factor,
    left_behind,
)
from spikebridge.learning.grapes_hooks import (
    InnerState,
    LayerFactors,
    OwnParameters,
    ScaledError,
    ScaledGradient,
    StackFactors,
    incoming_factors,
    outgoing_factors,
)
from spikebridge.learning.model_layers import Hook, apart, compile_anew, named, nodes, warn_of
from spikebridge.nn.units import whole

__all__ = ["Grapes", "attach", "factor"]

Form = Literal["propagated", "local"]
Importance = Literal["incoming", "outgoing"]
Control = Literal["none", "gain"]
# Banks with the rows to read anew; then where factors go, and from where.
_Plan = tuple[list[tuple[Bank, list[int]]], list[Tensor], list[Tensor]]
_attached: list[weakref.ref[Grapes]] = []  # a WeakSet takes longer to walk through
# The one post-hook of all optimisers.  One for each of the attached would have to go when they are
# collected, which may be while torch runs through the hooks.
_listening: list[Any] = []


def attach(
    model: nn.Module,
    *,
    form: Form | None = None,
    importance: Importance = "incoming",
    control: Control = "none",
    clip: Clip | Literal["published"] | None = "published",
    skip: Sequence[str] | None = None,
    output: str | None = None,
    refresh_every: int = 1,
) -> Grapes:
    """Scale the errors of a model's hidden neurons by their weights, until `Grapes.detach`.

    Args:
        model: any module; its layers are those of `spikebridge.learning.model_layers.nodes`.
            Whatever else has weights (embeddings, cells, torch.nn.MultiheadAttention) is left
            alone; `Grapes.left` names what multiplies by itself, and so does a warning.
        form: "propagated" multiplies the error that arrives at a neuron, which acts on its own
            weights and on all that lies below, as in the authors' code.  "local" multiplies the
            update of the neuron's own parameters only.  None is "propagated", and "local" with
            importance="outgoing", which has no other form.
        importance: "incoming" sums over the weights into a neuron: rows of a matrix, kernels of a
            channel, rows of a recurrent matrix too, those of all gates of an LSTM or GRU.
            "outgoing" is what the authors' code does with direct feedback alignment: in every
            hidden layer but the first, dW[i, k] is multiplied by P'[i] P[k], with
            P[k] = 2 sum over i of |W[i, k]| / max, and P' the same of the layer above, 1 where that
            is the output.  It is for stacks of dense layers.
        control: "gain" gives each neuron the mean factor of its layer: what the size of the steps
            does alone, without its distribution.
        clip: bounds of a factor.  "published" is (1, 2), none with importance="outgoing"; None is
            also what the authors' code does with feedback alignment.
        skip: names of layers to leave alone, or of what holds them, instead of the output: ()
            modulates that too.  With importance="outgoing" the first and the output are left alone
            in any case.  To name what is in `Grapes.left` ends its warning, and no more than that.
        output: name of the output layer, left alone in any case; None takes the one that was
            registered last.
        refresh_every: take the factors anew at every k-th step of an optimiser, as counted from
            `attach`, rather than at each: a sum over all weights less, k - 1 times out of k.  1 is
            as published; see docs/learning.md for what others cost and do.

    Errors are scaled where they enter a layer.  A Layer of SNUs, or an LSTM, carries them back
    through time by itself, which is linear in them.  So is the error at a state that is handed out;
    where the layer gets that very state back in its next call, it is not scaled again: many short
    calls are one long one.  A state that was changed between two calls counts as an output.

    In torch.nn.LSTM(num_layers=2) the errors of the lower layer cannot be reached: its form is
    local, `Grapes.notes` says so.  In the local form a decay that a layer shares is left alone, and
    a bias takes P' only.

    Whatever torch.compile has compiled is compiled anew: it would not see the hooks.  Reading
    weights never draws: noise of `noisy_weights` is left out, and of a crossbar the last read
    counts.  LBFGS keeps the factors of its step.  Copies and pickles of the model are plain.

    Raises:
        ValueError: unknown names and options; layers that it cannot do; parameters that layers
            share (local form).
        RuntimeError: it is attached already; in a backward pass, where factors changed after the
            forward pass; in a forward pass in the local form, where the layer is given other
            parameters than the model's (functional_call, torch.func).
    """
    for name, value, known in (
        ("form", form, (None, "propagated", "local")),
        ("importance", importance, ("incoming", "outgoing")),
        ("control", control, ("none", "gain")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; choose one of {list(known)}")
    if whole(refresh_every=refresh_every) < 1:
        raise ValueError(f"refresh_every={refresh_every}: it must be at least 1, a number of steps")
    outgoing = importance == "outgoing"
    if outgoing and form == "propagated":
        raise ValueError(
            'importance="outgoing" scales updates, form="propagated" errors; leave one of them out'
        )
    bounds = checked_clip((None if outgoing else (1.0, 2.0)) if clip == "published" else clip)
    known_layers = nodes(model, output)
    layers, left = {node.name: node.module for node in known_layers}, apart(model, known_layers)
    chosen = _chosen(list(layers), skip, left, outgoing, output is not None)
    taken = {
        id(m) for handle in _handles() for node in handle._nodes for m in node.module.modules()
    }
    twice = [n for n in chosen if not taken.isdisjoint(id(m) for m in layers[n].modules())]
    if twice:
        raise RuntimeError(f"GRAPES is attached to {twice} already; detach() that handle first")
    form = form or ("local" if outgoing else "propagated")
    settings = _Settings(form, importance, control, whole(refresh_every=refresh_every))
    make = outgoing_factors if outgoing else incoming_factors
    ends = list(layers)[-1], list(left)
    handle = Grapes(model, *make(model, layers, chosen), settings, bounds, *ends)
    warn_of(left, skip)
    return handle


class _Settings(NamedTuple):
    form: str
    importance: str
    control: str
    refresh_every: int


class Grapes:
    """GRAPES in force on a model; made by `attach`.  A context manager that detaches at its end.

    Attributes:
        layers: names of the layers that are modulated.
        output: name of the layer that is taken for the output.
        left: names of what multiplies by itself, where no factor acts.
        notes: what is not as `form` says, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: Sequence[LayerFactors],
        populations: Sequence[Population],
        settings: _Settings,
        clip: Clip | None,
        output: str,
        left: Sequence[str],
    ) -> None:
        self.layers, self.output = [node.name for node in nodes], output
        self.left = list(left)
        self.notes: list[str] = []
        self._model, self._nodes, self._populations = model, list(nodes), list(populations)
        self._stacks = list({id(n.stack[0]): n.stack[0] for n in nodes if n.stack}.values())
        self._settings, self._clip = settings, clip
        self._removable: list[Any] = []
        self._gradients: dict[int, tuple[nn.Parameter, Any]] = {}
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._bind()
        self._place()
        if settings.form == "propagated":
            for at in self._all_factors():
                self._scale_errors(at)
        compile_anew()
        for node in self._nodes:
            if node.hooked:
                self._removable.append(node.module.register_forward_pre_hook(OwnParameters(node)))
            loaded = node.module.register_load_state_dict_post_hook(_Loaded(self.refresh))
            self._removable.append(loaded)
        self.refresh()
        _attached.append(weakref.ref(self, _attached.remove))
        if not _listening:
            _listening.append(register_optimizer_step_post_hook(_stepped))

    def factors(self) -> dict[str, Tensor]:
        """The factors in force, (nodes,) for each layer: M, or P' of the layer above.

        Of a stack of torch those of all its layers and directions, in the order of its states.
        """
        return {node.name: node.M.flatten().clone() for node in self._nodes}

    def refresh(self) -> None:
        """Take the factors from the weights as they are now.

        An optimiser's step and load_state_dict of a layer do it by themselves; weights that are
        changed by hand, or replaced, need it.
        """
        if self._removable:
            self._bind()
            self._update(range(len(self._populations)))

    def detach(self) -> None:
        """Leave the model as it was before; a second call does nothing."""
        for removable in self._removable:
            removable.remove()
        for _, hook in self._gradients.values():
            hook.remove()
        self._removable, self._gradients = [], {}
        # A graph that was compiled before keeps the tensors: they turn it into a plain one.
        for at in self._all_factors():
            for tensor in (getattr(at, "M", None), getattr(at, "P", None), at.states):
                if tensor is not None:
                    tensor.fill_(1.0)
        _attached[:] = [known for known in _attached if known() is not self]
        while _listening and not _attached:
            _listening.pop().remove()

    def __enter__(self) -> Grapes:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        form, importance, control, every = self._settings
        notes = "".join(f", {note}" for note in self.notes)
        left = f", left={self.left}" if self.left else ""
        left = (f", refresh_every={every}" if every > 1 else "") + left
        return (
            f"Grapes(form={form}, importance={importance}, control={control}, clip={self._clip}, "
            f"layers={self.layers}, output={self.output!r}{left}{notes})"
        )

    def _all_factors(self) -> list[LayerFactors | StackFactors]:
        return [*self._nodes, *self._stacks]

    def _scale_errors(self, at: LayerFactors | StackFactors) -> None:
        scaled = ScaledError(self.refresh, at)
        self._removable.append(at.module.register_forward_hook(scaled))
        if at.states is not None:
            back = at.module.register_forward_pre_hook(InnerState(scaled), with_kwargs=True)
            self._removable.append(back)

    def _bind(self) -> None:
        """Hooks on the parameters there are now, and which of them a population depends on."""
        self._watched = [
            [p for s in population.sources for p in s.owner.parameters() if p.dim() > 1]
            for population in self._populations
        ]
        self._ids = [frozenset(map(id, watched)) for watched in self._watched]
        self._held: dict[tuple[int, ...], tuple[int, ...]] = {}  # populations by what is held
        wanted: dict[int, tuple[nn.Parameter, ScaledGradient]] = {}
        local = self._settings.form == "local"
        for node in self._nodes:
            if not local and not node.top:
                continue
            for parameter, rows in node.parameters():
                if local or rows.population < node.top:
                    wanted[id(parameter)] = parameter, ScaledGradient(self.refresh, node, rows)
        self._check_tied(wanted)
        for key in self._gradients.keys() - wanted.keys():
            self._gradients.pop(key)[1].remove()
        for key in wanted.keys() - self._gradients.keys():
            parameter, hook = wanted[key]
            self._gradients[key] = parameter, _hooked(parameter, hook)
        for node in self._nodes:
            node.hooked = [
                (part, key, p)
                for part in node.module.modules()
                for key, p in part._parameters.items()
                if id(p) in wanted and p is not None
            ]
        self.notes = [
            f"{node.name}: the {node.top} lower parts of the stack are local"
            for node in self._nodes
            if not local and node.top
        ]

    def _check_tied(self, wanted: Iterable[int]) -> None:
        named = list(self._model.named_parameters(remove_duplicate=False))
        uses = Counter(id(p) for _, p in named)
        shared = [name for name, p in named if uses[id(p)] > 1 and id(p) in set(wanted)]
        if shared:
            raise ValueError(
                f"{shared} are one parameter, and a local factor is that of one neuron; use "
                'form="propagated", or name a layer in skip'
            )

    def _place(self) -> None:
        """Banks and factors where the weights are."""
        kinds = [population.device_and_dtype() for population in self._populations]
        gain = self._settings.control == "gain"
        self._banks: list[tuple[Bank, int]] = [None] * len(kinds)  # type: ignore[list-item]
        for kind in dict.fromkeys(kinds):
            members = [k for k, own in enumerate(kinds) if own == kind]
            bank = Bank([self._populations[k] for k in members], self._clip, gain)
            for row, k in enumerate(members):
                self._banks[k] = bank, row
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._targets: list[list[Tensor]] = [[] for _ in kinds]
        for stack in self._stacks:
            stack.allocate(*kinds[0])
        for node in self._nodes:
            numbers = [*node.populations, *(node.below or ())[:1]]
            first = next(k for k in numbers if k is not None)
            for k, target in node.allocate(*kinds[first]):
                self._targets[k].append(target)
        for (bank, row), targets in zip(self._banks, self._targets, strict=True):
            if targets and bank.lead(row, targets[0]):
                del targets[0]

    def _update(self, which: Sequence[int]) -> None:
        """Read the weights of these populations; at once, where they are on one device."""
        for k in which:
            if left_behind(self._banks[k][0].sums, self._watched[k][0]):
                self._place()
                which = range(len(self._populations))
                break
        plan = self._plans.get(which := tuple(which))
        if plan is None:
            plan = self._plans[which] = self._plan(which)
        rows, to, values = plan
        for bank, members in rows:
            bank.update(members)
        if to:
            with torch.no_grad():
                torch._foreach_copy_(to, values)

    def _plan(self, which: Iterable[int]) -> _Plan:
        rows: dict[int, tuple[Bank, list[int]]] = {}
        to, values = [], []
        for k in which:
            bank, row = self._banks[k]
            rows.setdefault(id(bank), (bank, []))[1].append(row)
            to += self._targets[k]
            values += [bank.factors[row]] * len(self._targets[k])
        return list(rows.values()), to, values

    def _stepped(self, optimizer: Optimizer) -> None:
        if self._settings.refresh_every > 1:
            steps = self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
            if steps % self._settings.refresh_every:
                return
        held = tuple([id(p) for group in optimizer.param_groups for p in group["params"]])
        which = self._held.get(held)
        if which is None:
            # Backwards: the weights that an optimiser has updated last are still in the cache.
            populations = reversed(range(len(self._ids)))
            which = tuple(k for k in populations if not self._ids[k].isdisjoint(held))
            self._held = {held: which}
        if which:
            self._update(which)


def _stepped(optimizer: Optimizer, *_: Any) -> None:
    """Post-hook of every optimiser there is; it keeps no model alive."""
    for grapes in _handles():
        grapes._stepped(optimizer)


def _handles() -> list[Grapes]:
    return [handle for known in _attached if (handle := known()) is not None]


class _Loaded(Hook):
    """Post-hook of load_state_dict."""

    def __init__(self, refresh: Any) -> None:
        self.refresh = refresh

    def __call__(self, module: nn.Module, keys: Any) -> None:
        self.refresh()


def _hooked(parameter: nn.Parameter, hook: ScaledGradient) -> Any:
    """A tensor hook, on a frozen parameter too: it may be trained later."""
    trained = parameter.requires_grad
    handle = parameter.requires_grad_(True).register_hook(hook)
    parameter.requires_grad_(trained)
    return handle


def _chosen(
    names: Sequence[str],
    skip: Sequence[str] | None,
    left: dict[str, str],
    outgoing: bool,
    output_given: bool,
) -> list[str]:
    """Names of the layers to modulate, of all with the output last."""
    skipped = named(() if skip is None else skip, names, left)
    usual = skip is None or (len(skip) > 0 and not skipped)  # skip names no layer: nothing is said
    ends = [*names[:1], *names[-1:]] if outgoing else names[-1:] if output_given or usual else []
    chosen = [name for name in names if name not in ends and name not in skipped]
    if not chosen:
        raise ValueError(
            f"there is no layer to modulate: of {names} all are left alone; the output is, unless "
            'skip says otherwise, and with importance="outgoing" the first hidden layer too'
        )
    return chosen
