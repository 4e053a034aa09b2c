"""GRAPES and feedback on models that multiply by themselves somewhere, against rules by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.learning import feedback, grapes

B, T, I, E, H, O = 3, 5, 4, 8, 12, 2  # noqa: E741
HEADS = 2
ATTENTION = "1.self_attn"
SKIP = [ATTENTION]
Linear = Callable[[str, Tensor], Tensor]


def transformer(norm_first: bool = False) -> Any:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(
        E, HEADS, H, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.Sequential(nn.Linear(I, E), layer, nn.Linear(E, O)).double()


def inputs() -> Tensor:
    return torch.randn(B, T, I, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def attended(attention: Any, x: Tensor) -> Tensor:
    """Self-attention in plain products."""
    heads = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (h.unflatten(-1, (HEADS, -1)).transpose(1, 2) for h in heads.chunk(3, -1))
    weights = (q @ k.mT / math.sqrt(E / HEADS)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def by_hand(model: Any, x: Tensor, linear: Linear) -> Tensor:
    """The model with its four Linears computed by `linear(name, input)`."""
    block = model[1]

    def forward(x: Tensor) -> Tensor:
        return linear("1.linear2", F.relu(linear("1.linear1", x)))

    x = linear("0", x)
    if block.norm_first:
        x = x + attended(block.self_attn, block.norm1(x))
        x = x + forward(block.norm2(x))
    else:
        x = block.norm1(x + attended(block.self_attn, x))
        x = block.norm2(x + forward(x))
    return linear("2", x)


def loss_of(y: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (weights * y + y**2).sum()


def gradients(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    model.zero_grad()
    run()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=name)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


def factor_of(weight: Tensor) -> Tensor:
    importance = weight.detach().abs().sum(1)
    return (2 * importance / importance.max()).clamp(1, 2)


@pytest.mark.parametrize("norm_first", [False, True])
def test_grapes_reaches_the_feed_forward_layers(norm_first: bool) -> None:
    model, x = transformer(norm_first), inputs()
    plain = gradients(model, lambda: loss_of(model(x)).backward())

    def linear(name: str, x: Tensor) -> Tensor:
        layer = model.get_submodule(name)
        y = F.linear(x, layer.weight, layer.bias)
        return y if name == "2" else Scaled.apply(y, factor_of(layer.weight))

    wanted = gradients(model, lambda: loss_of(by_hand(model, x, linear)).backward())
    with pytest.warns(UserWarning, match=r"themselves.*: 1.self_attn \(MultiheadAttention\); name"):
        handle = grapes.attach(model)
    assert handle.layers == ["0", "1.linear1", "1.linear2"]
    assert (handle.output, handle.left) == ("2", [ATTENTION])
    assert f"left=['{ATTENTION}']" in repr(handle)
    found = gradients(model, lambda: loss_of(model(x)).backward())
    same(found, wanted)
    assert not torch.allclose(found["1.self_attn.in_proj_weight"],
                              plain["1.self_attn.in_proj_weight"])  # fmt: skip
    handle.detach()
    same(gradients(model, lambda: loss_of(model(x)).backward()), plain)
    with grapes.attach(model, form="local", skip=SKIP):
        local = gradients(model, lambda: loss_of(model(x)).backward())
    for name in ("0", "1.linear1", "1.linear2"):
        factor = factor_of(model.get_submodule(name).weight)
        plain[f"{name}.weight"] *= factor[:, None]
        plain[f"{name}.bias"] *= factor
    same(local, plain)


class ThroughAnother(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (g,), (x, matrix) = grads, ctx.saved_tensors
        rows = g.flatten(0, -2)
        return g @ matrix, rows.mT @ x.flatten(0, -2), rows.sum(0), None


@pytest.mark.parametrize("norm_first", [False, True])
def test_feedback_alignment_goes_through_attention_exactly(norm_first: bool) -> None:
    model, x = transformer(norm_first), inputs()
    with feedback.attach(model, "fa", seed=5, skip=SKIP) as handle:
        assert handle.layers == ("0", "1.linear1", "1.linear2", "2")
        assert handle.left == {ATTENTION: "MultiheadAttention"}
        found = gradients(model, lambda: loss_of(model(x)).backward())
        matrices = handle.matrices()

    def linear(name: str, x: Tensor) -> Tensor:
        layer = model.get_submodule(name)
        if name == "0":
            return layer(x)
        return ThroughAnother.apply(x, layer.weight, layer.bias, matrices[name].double())

    same(found, gradients(model, lambda: loss_of(by_hand(model, x, linear)).backward()))


@pytest.mark.parametrize("norm_first", [False, True])
def test_direct_feedback_reaches_every_layer_of_a_transformer(norm_first: bool) -> None:
    model, x = transformer(norm_first), inputs()
    with feedback.attach(model, "dfa", seed=5, skip=SKIP) as handle:
        found = gradients(model, lambda: loss_of(model(x)).backward())
        matrices = handle.matrices()
    receivers = {"1.linear1": "0", "1.linear2": "1.linear1", "2": "1.linear2"}
    assert matrices.keys() == {*receivers.values()}

    def run() -> None:
        cuts: dict[str, Tensor] = {}

        def linear(name: str, x: Tensor) -> Tensor:
            cuts[name] = x
            return model.get_submodule(name)(x.detach())

        y = by_hand(model, x, linear)
        (error,) = torch.autograd.grad(loss_of(y), y, retain_graph=True)
        sent = sum((cuts[name] * (error @ matrices[to].double())).sum()
                   for name, to in receivers.items())  # fmt: skip
        (sent + (y * error).sum()).backward()

    same(found, gradients(model, run))


@pytest.mark.parametrize("rule", ["grapes", "fa", "dfa"])
def test_outputs_stay_on_torchs_fast_path_too(rule: str) -> None:
    layer = nn.TransformerEncoderLayer(E, HEADS, H, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(B, T, E)
    padding = torch.arange(T) >= torch.tensor([[T], [2], [3]])
    skip = ["layers.0.self_attn", "layers.1.self_attn"]
    for training in (True, False):
        model.train(training)
        found = []
        for attached in (False, True):
            torch.manual_seed(0)
            handle: Any = None
            if attached:
                attach: Any = grapes.attach if rule == "grapes" else feedback.attach
                handle = attach(model, **({} if rule == "grapes" else {"rule": rule}), skip=skip)
            with torch.set_grad_enabled(training), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*nested tensors")  # torch's own
                found.append(model(x, src_key_padding_mask=padding))
            if handle is not None:
                handle.detach()
        if training:
            assert torch.equal(*found)
        torch.testing.assert_close(*found)


def test_whole_transformers_learn_under_every_rule() -> None:
    torch.manual_seed(1)
    model = nn.Transformer(E, HEADS, 1, 1, H, dropout=0.0, batch_first=True)
    source, target = torch.randn(2, B, T, E).unbind()
    for rule in ("grapes", "fa", "dfa"):
        attach: Any = grapes.attach if rule == "grapes" else feedback.attach
        options = {} if rule == "grapes" else {"rule": rule}
        with pytest.warns(UserWarning, match="MultiheadAttention") as said:
            handle = attach(model, **options)
        assert len(said) == 1  # for three attentions
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(source, target) - target).square().mean()
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        handle.detach()


class Mixed(nn.Module):
    """What is no layer in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, E)
        self.place = nn.Parameter(torch.zeros(T, E))
        self.cell = nn.LSTMCell(E, E)
        self.norm = nn.LayerNorm([T, E])
        self.attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        self.both = nn.utils.parametrizations.weight_norm(nn.Bilinear(E, E, E))
        self.hidden = nn.Linear(E, E)
        self.head = nn.Linear(E, O)


def test_what_is_left_alone_is_named_once() -> None:
    model = Mixed()
    names = ["", "cell", "attention", "both"]
    with pytest.warns(UserWarning, match="themselves") as said:
        handle = grapes.attach(model)
    assert [str(one.message) for one in said] == [
        "these multiply by themselves and keep exact backpropagation: the model (Mixed), cell "
        "(LSTMCell), attention (MultiheadAttention), both (ParametrizedBilinear); name them in "
        "skip to say that this is meant"
    ]
    assert handle.left == names
    assert handle.layers == ["hidden"]
    handle.detach()
    with pytest.warns(UserWarning, match="themselves.*: cell .*, attention [^,]*; name"):
        grapes.attach(model, skip=["both", "hidden", ""]).detach()


def test_what_skip_names_besides_layers() -> None:
    def layers(skip: list[str]) -> list[str]:
        with grapes.attach(transformer(), skip=skip) as handle:
            return handle.layers

    hidden = ["0", "1.linear1", "1.linear2"]
    assert layers([ATTENTION]) == hidden  # no layer: the output stays left alone
    assert layers([f"{ATTENTION}.out_proj"]) == hidden
    assert layers(["1"]) == ["0", "2"]
    assert layers(["1.linear1", ATTENTION]) == ["0", "1.linear2", "2"]
    with pytest.raises(ValueError, match=r"skip=\['1.other'\] are no layers.*'1.self_attn'\] are"):
        layers(["1.other"])
    with feedback.attach(transformer(), "dfa", skip=["1"]) as handle:
        assert handle.layers == ("0", "2")
    with pytest.raises(ValueError, match="skip takes names in a list"):
        feedback.attach(transformer(), skip="1")
    alone = nn.MultiheadAttention(E, HEADS)
    with pytest.raises(ValueError, match="no layer that a learning rule knows"):
        grapes.attach(nn.Sequential(alone))
