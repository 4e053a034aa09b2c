"""How the error gets to hidden layers, other than backwards through their weights.

Backpropagation sends an error down through the transpose of each weight matrix.  The rules here
send it through fixed random matrices instead:

    fa    feedback alignment: layer by layer, through B of the shape of each weight
    dfa   direct feedback alignment: from the output to every hidden layer at once
    drtp  direct random target projection: the targets in place of the error

Everything else is as in backpropagation: a layer's own weight gradient is the product of its error
and its input, derivatives of activations, dropout, pooling and normalisation act by autograd, and
what goes on inside one layer over time (a membrane, a recurrent matrix, all of an LSTM) keeps
exact backpropagation through time.  A forward pass is not changed by a bit.

Sources: Lillicrap et al., Nature Communications 7 (2016), 13276; Nøkland, NIPS 2016; Frenkel,
Lefebvre and Bol, Frontiers in Neuroscience 15 (2021), 629892.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from spikebridge.learning.feedback_direct import (
    Cut,
    Notice,
    direct,
    features_of,
    link,
    spread_of,
    upstream,
    watched,
)
from spikebridge.learning.feedback_transport import fan_in, sent, weight_shape
from spikebridge.learning.model_layers import Hook, Node, apart, compile_anew, named, nodes, warn_of
from spikebridge.learning.signals import Matrices, Targets
from spikebridge.nn.layers import Readout

__all__ = ["Feedback", "Rule", "attach"]

Rule = Literal["fa", "dfa", "drtp"]
ORIGIN = "_spikebridge_origin"  # what a cut input keeps: the input before the cut
INPUT = "input"  # stands for a layer before the first, such as an embedding


def attach(
    model: nn.Module,
    rule: Rule = "fa",
    *,
    seed: int = 0,
    matrices: Mapping[str, Tensor] | None = None,
    output: str | None = None,
    skip: Sequence[str] = (),
) -> Feedback:
    """Let a model's backward passes send errors to hidden layers by another rule.

    Layers are those of `spikebridge.learning.model_layers`; the output layer learns from its own
    error in all rules.

        with spikebridge.learning.feedback.attach(network, "dfa"):
            loss(network(x)).backward()

    Args:
        model: any torch module; its weights, buffers and outputs stay as they are, and copies
            and pickles of it have no feedback.
        rule: "fa", "dfa" or "drtp", see `Feedback`.
        seed: of the matrices.  Each depends on it and on the name of its layer alone, so that a
            model that is built and attached again has the same.
        matrices: in place of drawn ones, by the names that `Feedback.matrices` gives.
        output: name of the layer at whose outputs the loss begins; None takes the one that was
            registered last.
        skip: names of layers to leave alone, or of what holds them: they send their errors by
            exact backpropagation, as does what is no layer and multiplies by itself (attention),
            which `Feedback.left` names, and a warning unless it is named here.

    Returns:
        A handle; `detach`, or the end of a `with` block, makes the model what it was.

    Whatever torch.compile has compiled is compiled anew, here and by `detach`.

    Raises ValueError for another rule, a model without layers or without that output, one that has
    a feedback already, and matrices of names or shapes that do not fit.
    """
    feedback = Feedback(model, rule, seed, matrices or {}, output, skip)
    warn_of(feedback.left, skip)
    return feedback


class Feedback:
    """A feedback that is attached to a model.

    fa: the gradient that a layer sends to its input x goes through B, (N, I) or (C', C, k, k),
    in place of its weight.  Of a `Normalised` array the normalisation keeps its derivative, which
    is one factor per neuron.  torch's RNN, GRU and LSTM cannot send: ValueError in the forward pass
    of a training step, unless the layer is the first.

    dfa: the outputs of hidden layer l, after activation, dropout and pooling, as the next layer
    receives them, get the gradient e B_l.  e (B, O) is the gradient at the output layer's outputs,
    B_l (O, N), of a convolution for all of an image, (O, C H W).  Where hidden outputs (T, B, N)
    have time and e has none, a `Network` with a readout of the mean gives every step e / T and one
    of the last step that step alone; in other models each step gets e / T.  Several calls of one
    layer for one output share in the same way.  The backward pass raises RuntimeError where an
    error comes to a hidden layer's outputs and none from the output layer (another head, a
    reentrant checkpoint around hidden layers): the layers before that one would learn nothing.

    drtp: as dfa with -t / n in place of e: t (B, O) is 1 for the right class and 0 elsewhere, n the
    number of samples.  Softmax less target is the error of cross-entropy, averaged over samples;
    this keeps its second half, which has the error's sign for every class but need not wait for
    the output.  A factor on the loss does not reach hidden layers.

    Matrices are drawn uniformly from +-sqrt(6 / I), I the number of inputs of one neuron in the
    layer whose input receives (C k k in a convolution), as in the GRAPES authors' code.

    Attributes:
        rule: "fa", "dfa" or "drtp".
        layers: names of the layers, the output layer last.
        left: what multiplies by itself and keeps exact backpropagation, by name, with its kind.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        seed: int,
        matrices: Mapping[str, Tensor],
        output: str | None,
        skip: Sequence[str],
    ) -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"rule={rule!r} is not known; choose one of {list(get_args(Rule))}")
        known = nodes(model, output)
        self.left = apart(model, known)
        kept = _kept(known, named(skip, [node.name for node in known], self.left))
        _check_free(model)
        self.rule, self.seed = rule, seed
        self.layers = tuple(node.name for node in kept)
        self._targets = Targets()
        self._matrices = Matrices(rule, seed, matrices)
        self._check_given(kept)
        self._hooks: list[Any] = []
        for number, node in enumerate(kept):
            self._hook(node, number)
        for module in model.modules():
            if isinstance(module, Readout):
                self._hooks.append(module.register_forward_pre_hook(_whole, with_kwargs=True))
                if module.linear is kept[-1].module:
                    self._reduced = module.reduce
        compile_anew()

    _reduced: Literal["last", "mean", "each"] | None = None

    def matrices(self) -> dict[str, Tensor]:
        """The fixed matrices, float32 unless given otherwise, by name.

        fa: of every layer but the first, by its own name; dfa and drtp: by the name of the hidden
        layer that receives, of those that have been used: for each input the layer before in
        `layers`.  "input" is what comes before the first layer, where that is trained.  Copies:
        changing them changes nothing.
        """
        return self._matrices.copies()

    def target(self, targets: Tensor) -> None:
        """Tell drtp the targets, before each backward pass.

        Args:
            targets: classes, whole numbers (B,) or (T, B), or 0 and 1 per output (..., O).  Where
                outputs (T, B, O) have time and targets have none, they hold at every step.

        Raises ValueError under another rule.  The backward pass raises RuntimeError where it has
        got none, and ValueError where shapes do not fit its outputs.
        """
        if self.rule != "drtp":
            raise ValueError(f"rule={self.rule!r} learns from the loss alone; leave target out")
        self._targets.set(targets)

    def detach(self) -> None:
        """Make the model what it was; a second time does nothing."""
        if self._hooks:
            compile_anew()
        while self._hooks:
            self._hooks.pop().remove()

    def __repr__(self) -> str:
        return f"Feedback(rule={self.rule}, output={self.layers[-1]!r}, layers={self.layers})"

    def __enter__(self) -> Feedback:
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    def _hook(self, node: Node, number: int) -> None:
        last = number == len(self.layers) - 1
        if self.rule == "fa":
            site: _Site = _Transport(self, node)
            module = node.module if node.array is None else node.array
            if number and site.shape is not None:
                self._matrices.named(node.name, site.shape, site.inputs)
        else:
            site = (_Output if last else _Hidden)(self, node, self._receiver(number))
            module = node.module
        self._hooks.append(module.register_forward_pre_hook(_AtSite(site.before), with_kwargs=True))
        # First of all hooks: a factor on the layer's error, of another rule, comes before this.
        self._hooks.append(module.register_forward_hook(_AtSite(site.behind), prepend=True))

    def _receiver(self, number: int) -> str:
        return self.layers[number - 1] if number else INPUT

    def _check_given(self, kept: list[Node]) -> None:
        if self.rule == "fa":
            shapes = {node.name: weight_shape(node.array) for node in kept}
            sending = {name: shape for name, shape in shapes.items() if shape is not None}
            self._matrices.check(set(sending), sending)
        else:
            self._matrices.check({self._receiver(number) for number in range(len(kept))}, {})


class _Site:
    """What happens at one layer: its input is cut, and its output knows of that."""

    def __init__(self, feedback: Feedback, node: Node, receiver: str = "") -> None:
        self.feedback, self.node, self.receiver = feedback, node, receiver
        self.shape = weight_shape(node.array)
        self.inputs = fan_in(node.module, node.array)

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Cut the input, where it would receive a gradient."""
        if not args:
            raise ValueError(
                f"{self.node.name}: under a feedback a layer is called with its input first and "
                "without a name, layer(x)"
            )
        x = args[0]
        data = x.data if isinstance(x, PackedSequence) else x
        if not (isinstance(data, Tensor) and data.requires_grad):
            return None
        self.check()
        if data is not x:
            raise ValueError(
                f"{self.node.name}: packed sequences have no place for an error from elsewhere; "
                "pad them instead"
            )
        cut = x.detach()
        setattr(cut, ORIGIN, x)  # on the tensor, so that nothing is left if the layer fails
        return (cut, *args[1:]), kwargs

    def check(self) -> None:
        """Raise where the layer cannot do without the gradient through its weight."""

    def behind(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """The output, tied to the input before the cut in another way; None leaves it as it is."""
        return self.after(module, getattr(args[0], ORIGIN, None), output)

    def after(self, module: nn.Module, x: Tensor | None, output: Any) -> Any:
        """The same, of the input x before the cut; without x there was nothing to cut."""
        raise NotImplementedError


class _AtSite(Hook):
    """A method of a site as a hook before or after the layer's call; compilers leave it out."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple, given: Any) -> Any:
        return self.method(module, args, given) if torch.is_grad_enabled() else None


class _Transport(_Site):
    """fa."""

    def check(self) -> None:
        if self.shape is None:
            kind = type(self.node.array or getattr(self.node.module, "core", self.node.module))
            raise ValueError(
                f"{self.node.name}: feedback alignment knows no matrix to send an error through "
                f'{kind.__name__}; use rule="dfa", or leave it alone with skip=[{self.node.name!r}]'
            )

    def after(self, module: nn.Module, x: Tensor | None, output: Any) -> Any:
        if x is None or self.shape is None:
            return None
        matrix = self.feedback._matrices.at(self.node.name, self.shape, self.inputs, x)
        return sent(output, x, matrix, module)


class _Hidden(_Site):
    """dfa and drtp."""

    def check(self) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                f"rule={self.feedback.rule!r} follows the graph of backward(), which torch.func "
                'does not build; call backward(), or use rule="fa"'
            )

    def after(self, module: nn.Module, x: Tensor | None, output: Any) -> Any:
        if x is None:
            return link(output, None)
        cut = self.cut(x)
        return watched(link(output, cut), cut, self.feedback.layers[-1])

    def cut(self, x: Tensor) -> Cut:
        return Cut(self.receiver, self.node, x, Notice())


class _Output(_Hidden):
    """Where the error is known."""

    def after(self, module: nn.Module, x: Tensor | None, output: Any) -> Any:
        if x is None:
            return None
        own = self.cut(x)
        if isinstance(output, tuple):
            return type(output)(self._sent(output[0], own), *output[1:])
        return self._sent(output, own)

    def _sent(self, y: Tensor, own: Cut) -> Tensor:
        feedback = self.feedback
        cuts = [own, *upstream(own.x)]
        calls = {cut.name: 0 for cut in cuts}
        for cut in cuts:
            calls[cut.name] += 1
        features = features_of(self.node.module, y)
        samples = y.shape[: y.dim() - features]
        outputs = math.prod(y.shape[len(samples) :])
        spreads, matrices = [], []
        for cut in cuts:
            spreads.append(spread_of(cut, samples, feedback._reduced, calls[cut.name]))
            width = features_of(cut.node.module, cut.x)
            size = math.prod(cut.x.shape[cut.x.dim() - width :])
            inputs = fan_in(cut.node.module, cut.node.array)
            matrices.append(feedback._matrices.at(cut.name, (outputs, size), inputs, cut.x))
        error = feedback._targets.error if feedback.rule == "drtp" else lambda g: g
        return direct(y, features, error, cuts, spreads, matrices)


def _kept(known: list[Node], skip: Sequence[str]) -> list[Node]:
    """The layers without some of them; ValueError for the output layer among these."""
    if (last := known[-1].name) in skip:
        raise ValueError(
            f"skip names {last!r}, the output layer, whose own error is what a rule sends; leave "
            "it in, or name another one as output"
        )
    return [node for node in known if node.name not in skip]


def _check_free(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _AtSite):
                raise ValueError(
                    f"{name or 'the model'} has a feedback already; detach that one first"
                )


def _whole(module: Readout, args: tuple, kwargs: dict) -> None:
    """A readout asked for some outputs reads rows of its matrix and calls no layer."""
    among = kwargs.get("among", args[2] if len(args) > 2 else None)
    if among is not None and module.bias is None and torch.is_grad_enabled():
        raise ValueError(
            "under a feedback the readout gives all of its outputs; leave among out, such as by "
            "sampling no words"
        )
