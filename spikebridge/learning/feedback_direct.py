"""The error of the output layer sent straight to the inputs of the layers before it.

Every layer's input is cut off, so that nothing flows through weights.  Which cut inputs an output
was made from is written into the autograd graph itself, at the node that made each layer's output:
nothing has to be remembered between calls, whatever is called in which order, or breaks off.

An error that comes to a hidden layer by another way than through the output layer would leave the
layers before it without one.  Each hidden layer's outputs watch for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from spikebridge.learning.model_layers import CONVOLUTIONS, Node
from spikebridge.nn.layers import Baseline, Layer, Plain
from spikebridge.nn.synapses import Conv2d, Dense

__all__ = ["Cut", "Spread", "direct", "features_of", "link", "spread_of", "upstream", "watched"]

KEY = "spikebridge.learning.direct"
Reduced = Literal["last", "mean", "each"]


class Notice:
    """Which backward pass last sent an error to a cut input."""

    def __init__(self) -> None:
        self.task = -1
        # Apart from a checkpoint that computes a layer again, nothing calls one in a backward pass.
        self.again = _task() != -1


class Cut(NamedTuple):
    """An input that was cut off, in one call of a layer."""

    name: str  # of the layer whose outputs it holds
    node: Node  # what takes it
    x: Tensor
    notice: Notice


def _task() -> int:
    """Number of the backward pass under way; -1 where there is none."""
    return torch._C._current_graph_task_id()


class Spread(NamedTuple):
    """How an error reaches an input: time is a dimension more, or none."""

    axis: int | None  # of time; None: each sample and step has an error of its own
    last: bool  # only the last step receives
    share: float  # 1 / number of calls of the same layer


class _Linked(torch.autograd.Function):
    """For outputs that need no gradient of their own, in a layer that is not trained."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def link(output: Any, cut: Cut | None) -> Any:
    """A layer's output, states included, with a note in its graph of the input it came from."""
    if isinstance(output, tuple):
        parts = [link(part, cut) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    if not output.requires_grad and cut is not None:
        output = _Linked.apply(output, cut.x)
    made_by: Any = output.grad_fn
    if made_by is not None:
        made_by.metadata.setdefault(KEY, cut)
    return output


def watched(output: Any, cut: Cut, last: str) -> Any:
    """A hidden layer's output, which raises where an error comes to it past the output layer.

    Args:
        output: a tensor, or a tuple whose first is one.
        cut: the input that the layer made it from.
        last: name of the output layer.

    The backward pass raises RuntimeError: whatever lies before the cut would learn nothing.
    """
    if isinstance(output, tuple):
        y, *states = output
        # A state may hold these very outputs.  Errors from the layer's next call are no outsiders,
        # so that what the layer hands out is not what it remembers.
        y = watched(y.view_as(y), cut, last)
        return type(output)(y, *states) if hasattr(output, "_fields") else (y, *states)
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(partial(_arrived, cut.notice, cut.node.name, last))
    return output


def _arrived(notice: Notice, name: str, last: str, grad: Tensor | None) -> None:
    # Autograd gets here after all that leads here: what goes through the output layer has been.
    if grad is None or notice.task == _task():
        return
    if notice.again:
        raise RuntimeError(
            f"{name}: a reentrant checkpoint computes it again in the backward pass, and errors "
            f"of the output layer {last!r} cannot be sent into that; pass use_reentrant=False to "
            'torch.utils.checkpoint, or use rule="fa"'
        )
    raise RuntimeError(
        f"{name}: an error came to its outputs and none from the output layer {last!r}, so that "
        "the layers before it would learn nothing; name the layer that gives the outputs, "
        f'attach(.., output={name!r}), give a checkpoint use_reentrant=False, or use rule="fa"'
    )


def upstream(x: Tensor) -> list[Cut]:
    """The cut inputs from which x was made, in no order.

    The search goes through what lies between layers, never into a layer: what a layer remembers
    from an earlier call leads nowhere.
    """
    cuts: dict[int, Cut] = {}
    seen: set[Any] = set()
    ahead: list[Any] = [x.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if KEY not in node.metadata:
            ahead += [following for following, _ in node.next_functions]
            continue
        cut = node.metadata[KEY]
        if cut is not None and id(cut) not in cuts:
            cuts[id(cut)] = cut
            ahead.append(cut.x.grad_fn)
    return list(cuts.values())


def features_of(module: nn.Module, t: Tensor) -> int:
    """How many trailing dimensions of an input or output of a layer are features."""
    form: Any = getattr(module, "array", module)
    convolution = isinstance(form, CONVOLUTIONS) and not isinstance(module, Layer | Plain)
    return min(len(form.kernel_size) + 1, t.dim()) if convolution else 1


def spread_of(cut: Cut, samples: torch.Size, reduced: Reduced | None, calls: int) -> Spread:
    """How errors of the outputs' samples (B,) or (T, B) reach the samples of a cut input.

    Args:
        reduced: how the readout of a `Network` takes time together; None where nothing says.
        calls: how often the layer was called on the way to this output.

    Raises ValueError where samples do not match, or could in two ways.
    """
    x, name, module = cut.x, cut.name, cut.node.module
    own = x.shape[: x.dim() - features_of(cut.node.module, x)]
    if own == samples:
        return Spread(None, False, 1 / calls)
    first, last = own[1:] == samples, own[:-1] == samples
    if len(own) == len(samples) + 1 and (first or last):
        if isinstance(module, nn.RNNBase):
            first = first and not module.batch_first
        elif isinstance(module, Layer | Plain | Baseline | Dense | Conv2d):
            last = False
        if first and last and reduced is None:
            raise ValueError(
                f"{name}: of its outputs {tuple(x.shape)} either of the first two dimensions could "
                "be time; use a batch of another size than the number of steps"
            )
        if first or last:
            return Spread(0 if first else len(own) - 1, reduced == "last", 1 / calls)
    raise ValueError(
        f"{name}: its outputs {tuple(x.shape)} hold samples {tuple(own)}, the output layer gives "
        f"{tuple(samples)}; direct feedback needs the same, or one dimension of time more. "
        'Reshape between layers less, or use rule="fa"'
    )


def injected(error: Tensor, matrix: Tensor, spread: Spread, shape: torch.Size) -> Tensor:
    """B e in the shape of the input that receives it.

    Args:
        error: (samples..., O), features in one dimension.
        matrix: B (O, N), N the number of features of the input.
        shape: of the input.
    """
    samples = error.shape[:-1]
    sent = (error @ matrix.to(error.dtype)) * spread.share
    if spread.axis is None:
        return sent.reshape(shape)
    steps = shape[spread.axis]
    features = shape[len(samples) + 1 :]
    sent = sent.reshape(*samples, *features).unsqueeze(spread.axis)
    if not spread.last:
        return (sent / steps).expand(shape)
    all_ = sent.new_zeros(shape)
    all_.narrow(spread.axis, steps - 1, 1).copy_(sent)
    return all_


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        features: int,
        error: Callable[[Tensor], Tensor],
        notices: Sequence[Notice],
        spreads: Sequence[Spread],
        matrices: Sequence[Tensor],
        *xs: Tensor,
    ) -> Tensor:
        ctx.features, ctx.error, ctx.notices, ctx.spreads = features, error, notices, spreads
        ctx.shapes = [(x.shape, x.dtype) for x in xs]
        ctx.save_for_backward(*matrices)
        return output.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,) = grads
        for notice in ctx.notices:
            notice.task = _task()
        error = ctx.error(g.flatten(g.dim() - ctx.features))
        sent = [
            injected(error, matrix, spread, shape).to(dtype)
            for matrix, spread, (shape, dtype) in zip(
                ctx.saved_tensors, ctx.spreads, ctx.shapes, strict=True
            )
        ]
        return g, None, None, None, None, None, *sent


def direct(
    output: Tensor,
    features: int,
    error: Callable[[Tensor], Tensor],
    cuts: Sequence[Cut],
    spreads: Sequence[Spread],
    matrices: Sequence[Tensor],
) -> Tensor:
    """The value of output; its gradient goes to it, and as `error` of it through B to each input.

    Args:
        output: (samples..., features).
        features: how many trailing dimensions are features.
        error: gradient (samples..., O) to what is sent, of the same shape.
        cuts, spreads, matrices: the inputs, and for each how and through which B (O, N).
    """
    xs, notices = [cut.x for cut in cuts], [cut.notice for cut in cuts]
    return _Direct.apply(output, features, error, notices, tuple(spreads), tuple(matrices), *xs)
