"""GRAPES beside other machinery of torch, and its errors."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.grapes_models import DYNAMO, B, I, N, T, bare, dense_stack, pair, published
from torch import Tensor, nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    register_optimizer_step_post_hook,
)

from spikebridge.learning import feedback, grapes, grapes_hooks
from spikebridge.nn.layers import Layer
from spikebridge.nn.network import build
from spikebridge.nn.synapses import (
    Dense,
)
from spikebridge.nn.units import State, make_unit
from spikebridge.settings.model import ModelConfig


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of these sizes are scaled in place, as large ones are."""
    monkeypatch.setattr(grapes_hooks, "_SMALL", 0)


# Other machinery of torch.


def test_in_place_activations_views_and_checkpoints_change_nothing() -> None:
    x = torch.randn(B, I).double().requires_grad_()
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(I, N), nn.ReLU(inplace), nn.Linear(N, 2)).double()
        with grapes.attach(model):
            found.append(torch.autograd.grad(model(x).square().sum(), model[0].weight)[0])
            for reentrant in (False, True):
                y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
                model.zero_grad()
                y.square().sum().backward()
                found.append(model[0].weight.grad.clone())
    assert all(torch.equal(gradient, found[0]) for gradient in found)


class Kept(torch.autograd.Function):
    """Hands the error on, and a place that keeps it."""

    kept: Tensor

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        Kept.kept = error
        return error


def _shared(kind: str, y: Tensor) -> Callable[[], Tensor]:
    """Goes back from y with an error of 3 that somebody else holds too; how that one reads it."""
    leaf = torch.zeros_like(y, requires_grad=True)
    error = torch.full_like(y, 3.0)
    if kind == "given":
        y.backward(error)
        return lambda: error
    if kind == "leaf":  # its gradient is this very memory
        ((y + leaf) * 3).sum().backward()
        return lambda: leaf.grad  # type: ignore[return-value]
    if kind == "retained":
        z = y + 0
        z.retain_grad()
        (z * 3).sum().backward()
        return lambda: z.grad  # type: ignore[return-value]
    if kind == "function":
        (Kept.apply(y) * 3).sum().backward()
        return lambda: Kept.kept
    if kind == "view":
        (Kept.apply(y.view(-1)) * 3).sum().backward()
        return lambda: Kept.kept.view_as(y)
    assert kind == "expanded"
    y.sum().mul(3).backward()  # one number for all of y: there is no room to write in
    return lambda: error


@pytest.mark.parametrize("kind", ["given", "leaf", "retained", "function", "view", "expanded"])
def test_an_error_that_somebody_else_holds_is_left_as_it_is(kind: str) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Identity())
    with grapes.attach(model, skip=()) as handle:
        y, seen = model(torch.randn(B, I)), []
        y.register_hook(seen.append)
        held = _shared(kind, y)()
        assert torch.equal(held, torch.full_like(held, 3.0))
        assert torch.equal(seen[0], handle.factors()["0"].expand(B, -1) * 3)


class Traced(torch.autograd.Function):
    """Hands a fresh error on, and tells where in memory it lies."""

    place = 0

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:  # type: ignore[override]
        fresh = error * 1
        Traced.place = fresh.data_ptr()
        return fresh


def test_an_error_that_nobody_else_holds_takes_no_second_array() -> None:
    model, where = nn.Linear(I, N), []
    with grapes.attach(model, skip=()):
        y = model(torch.randn(B, I))
        y.register_hook(lambda error: where.append(error.data_ptr()))
        Traced.apply(y).sum().backward()
    assert where == [Traced.place]


def test_a_small_error_gets_a_second_array_and_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2)), torch.randn(B, I)
    found = []
    with grapes.attach(model):
        for small in (0, 1 << 15):
            monkeypatch.setattr(grapes_hooks, "_SMALL", small)
            found.append(torch.autograd.grad(model(x).sum(), list(model.parameters())))
    assert all(map(torch.equal, *found))


def test_attaching_in_inference_mode_counts_owners_as_elsewhere() -> None:
    expected = grapes_hooks._sole_owners()
    assert expected is not None
    with torch.inference_mode():
        grapes_hooks._sole_owners.cache_clear()
        assert grapes_hooks._sole_owners() == expected


def test_many_errors_at_once_are_scaled_as_one_by_one() -> None:
    model = nn.Linear(I, N)
    with grapes.attach(model, skip=()) as handle:
        y = model(torch.randn(B, I))
        (found,) = torch.autograd.grad(
            y * 1, model.bias, torch.eye(B)[..., None].expand(B, B, N), is_grads_batched=True
        )
        assert torch.equal(found, handle.factors()[""].expand(B, -1))


def test_autocast_keeps_the_dtype_of_gradients() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)), torch.randn(B, I)
    seen: list[torch.dtype] = []
    gradient = []
    for attached in (False, True):
        handle = grapes.attach(model) if attached else None
        keep = model[0].register_forward_hook(
            lambda _m, _x, out: out.register_hook(lambda g: seen.append(g.dtype)) and None
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
        gradient.append(torch.autograd.grad(loss, model[0].weight)[0])
        keep.remove()
        if handle is not None:
            handle.detach()
    assert set(seen) == {torch.bfloat16}
    expected = gradient[0] * published(model[0].weight)[:, None]
    torch.testing.assert_close(gradient[1], expected, rtol=3e-2, atol=1e-3)


@DYNAMO
@pytest.mark.parametrize("form", ["propagated", "local"])
@pytest.mark.parametrize("kind", ["mlp", "network"])
def test_one_compiled_graph_follows_updates_and_becomes_plain(kind: str, form: Any) -> None:
    torch.compiler.reset()
    if kind == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(I, N), nn.ReLU(), nn.Linear(N, 2))
    else:
        model = build(ModelConfig(hidden=(N,), unit="snu"), I, 2, "mean")
    x = torch.randn(T, B, I) * 2
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def run(f: Callable) -> list[Tensor]:
        out = f(x)
        out = out if isinstance(out, Tensor) else out[0]
        return list(torch.autograd.grad(out.square().sum(), list(model.parameters())))

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = run(compiled)  # attaching must reach a model that is compiled already
    handle = grapes.attach(model, form=form)
    for _ in range(2):
        eager = run(model)
        assert not torch.allclose(eager[0], plain[0])
        for a, b in zip(run(compiled), eager, strict=True):
            torch.testing.assert_close(a, b)
        for parameter, gradient in zip(model.parameters(), eager, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(compiled)
    handle.detach()
    for a, b in zip(run(compiled), run(model), strict=True):
        torch.testing.assert_close(a, b)


def test_functional_transforms_see_the_factors() -> None:
    model, x = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double(), torch.randn(B, I).double()
    with grapes.attach(model):
        parameters = {n: p.detach() for n, p in model.named_parameters()}
        found = torch.func.grad(
            lambda own: torch.func.functional_call(model, own, (x,)).square().sum()
        )(parameters)
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)


@DYNAMO
def test_the_local_form_refuses_parameters_that_are_not_the_models() -> None:
    model, x = pair().double(), torch.randn(B, I).double()
    others = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def loss(own: dict[str, Tensor], run: Callable = model) -> Tensor:
        return torch.func.functional_call(run, own, (x,)).square().sum()

    with grapes.attach(model, form="local") as handle:
        message = r'^0: the local form .* weight is another .* use form="propagated"'
        for call in (
            lambda: torch.func.grad(loss)(others),
            lambda: loss({"0.weight": others["0.weight"]}),
            lambda: torch.compile(loss, backend="aot_eager")(others),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
        with torch.no_grad():  # nothing learns
            loss(others)
        head = {n: p for n, p in others.items() if n.startswith("1")}
        assert torch.func.grad(loss)(head).keys() == head.keys()  # the output is not modulated
        model[0].bias = nn.Parameter(torch.zeros(N).double())
        with pytest.raises(RuntimeError, match=r"bias is another .* call refresh\(\)"):
            model(x)
        handle.refresh()
        ours = torch.autograd.grad(model(x).sum(), model[0].bias)[0]
    expected = torch.autograd.grad(model(x).sum(), model[0].bias)[0] * published(model[0].weight)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("form", ["propagated", "local"])
def test_copies_and_pickles_are_plain_and_can_be_attached(form: Any) -> None:
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2)).double()
    x = torch.randn(B, I).double()
    plain = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    with grapes.attach(model, form=form) as handle:
        scaled = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved(model)):
            assert torch.equal(torch.autograd.grad(twin(x).sum(), twin[0].weight)[0], plain)
            with grapes.attach(twin, form=form):
                assert torch.equal(torch.autograd.grad(twin(x).sum(), twin[0].weight)[0], scaled)
        assert list(model.state_dict()) == list(nn.Sequential(*model).state_dict())
        assert torch.equal(torch.autograd.grad(model(x).sum(), model[0].weight)[0], scaled)
    assert handle.layers == ["0"]


def _saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_an_empty_batch_and_a_forward_pass_without_gradients() -> None:
    unit = make_unit("snu", N)
    model = nn.Sequential(nn.Linear(I, N), nn.Linear(N, 2))
    layer = Layer(Dense(I, N, unit), unit)
    with grapes.attach(nn.ModuleList([layer, model])):
        model(torch.randn(0, I)).sum().backward()
        assert torch.equal(model[0].weight.grad, torch.zeros(N, I))
        layer(torch.randn(T, 0, I))[0].sum().backward()
        with torch.no_grad():
            y, state = layer(torch.randn(T, B, I))
        assert y._backward_hooks is None
        assert isinstance(state, State)
        with torch.inference_mode():
            layer(torch.randn(T, B, I))


def test_factors_come_first_and_feedback_takes_what_they_leave() -> None:
    model, x = dense_stack(), torch.randn(B, I).double()
    found = []
    for first in (True, False):
        makers = [lambda: grapes.attach(model, clip=None), lambda: feedback.attach(model, "fa")]
        handles = [make() for make in (makers if first else makers[::-1])]
        found.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
        for handle in handles:
            handle.detach()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def _worker(rank: int, path: str, results: Any) -> list[Tensor]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    try:
        model, x = _ddp_model()
        parallel = nn.parallel.DistributedDataParallel(model)
        trained = _trained(parallel, model, x[rank::2])
        results.put([p.tolist() for p in trained])
        # A thread of the group lets go of objects of Python, for which it needs the interpreter:
        # it must have done so before the group waits for it and holds the interpreter.
        del parallel
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    return trained


def _ddp_model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    unit = make_unit("softsnu", N)
    layers = [Layer(Dense(I, N, unit), unit)]
    model = nn.ModuleDict({"a": layers[0], "b": nn.Linear(N, 4), "c": nn.Linear(4, 2)})
    model.forward = lambda x: model["c"](model["b"](model["a"](x)[0].mean(0)).tanh())  # type: ignore
    return model.double(), torch.randn(8, T, I).double()


def _trained(run: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with grapes.attach(run):
        for _ in range(3):
            optimizer.zero_grad()
            run(x.transpose(0, 1)).square().mean().backward()
            optimizer.step()
    return list(model.parameters())


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    path = str(tmp_path / "store")
    other = context.Process(target=_worker, args=(1, path, results))
    other.start()
    _worker(0, path, results)
    other.join()
    model, x = _ddp_model()
    alone = _trained(model, model, x)
    for found in (results.get(), results.get()):
        for ours, parameter in zip(found, alone, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), parameter.detach())


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, 2))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (pair, {"form": "global"}, "form='global' is not known"),
        (pair, {"importance": "mine"}, "importance='mine' is not known"),
        (pair, {"control": "mean"}, "control='mean' is not known"),
        (pair, {"clip": (2.0, 1.0)}, "0 <= low <= high"),
        (pair, {"clip": (1.0, float("inf"))}, "0 <= low <= high"),
        (pair, {"skip": ["2"]}, r"skip=\['2'\].*its layers are \['0', '1'\]"),
        (pair, {"skip": "01"}, "takes names in a list"),
        (pair, {"skip": ["0", "1"]}, "no layer to modulate"),
        (pair, {"importance": "outgoing"}, "no layer to modulate"),
        (dense_stack, {"importance": "outgoing", "form": "propagated"}, "leave one of them out"),
        (lambda: nn.Linear(I, N), {}, "no layer to modulate"),
        (lambda: nn.ReLU(), {}, "no layer"),
        (tied, {"form": "local"}, "are one parameter"),
        (
            lambda: nn.Sequential(nn.LSTM(I, N, proj_size=2), nn.Linear(2, 2)),
            {},
            "proj_size=2",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), {}, "is lazy"),
        (
            lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)),
            {"importance": "outgoing"},
            "stacks of dense layers",
        ),
        (
            lambda: nn.ModuleList([nn.Linear(1, 2), nn.Linear(2, 3), nn.Linear(2, 3), pair()]),
            {"importance": "outgoing"},
            "no stack",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_mistakes_are_told(make: Callable, options: dict, message: str) -> None:
    model = make()
    hooks = len(_global_optimizer_post_hooks)
    with pytest.raises(ValueError, match=message):
        grapes.attach(model, **options)
    assert bare(model) or "Lazy" in repr(model)  # those have hooks of their own
    assert len(_global_optimizer_post_hooks) == hooks


def test_an_output_layer_that_is_not_registered_last_is_named() -> None:
    model = nn.ModuleDict({"c": nn.Linear(4, 2), "a": nn.Linear(I, N), "b": nn.Linear(N, 4)})
    for options, layers in (
        ({}, ["c", "a"]),
        ({"output": "c"}, ["a", "b"]),
        ({"output": "c", "skip": ["a"]}, ["b"]),
        ({"output": "c", "importance": "outgoing"}, ["b"]),
    ):
        with grapes.attach(model, **options) as handle:
            assert handle.layers == layers
            assert handle.output == options.get("output", "b")
            assert f"output={handle.output!r}" in repr(handle)
    with pytest.raises(ValueError, match=r"output='d' is no layer.*\['c', 'a', 'b'\]"):
        grapes.attach(model, output="d")


def test_a_model_is_attached_once_and_again_after_detaching() -> None:
    model = pair()
    handle = grapes.attach(model)
    with pytest.raises(RuntimeError, match="detach"):
        grapes.attach(model)
    handle.detach()
    with grapes.attach(model, skip=()) as handle:
        assert handle.layers == ["0", "1"]
        assert "propagated" in repr(handle)
    assert grapes.attach(tied()).layers == ["0", "1"]  # shared weights propagate


def test_a_forgotten_handle_lives_as_long_as_its_model() -> None:
    model = pair()
    grapes.attach(model)
    gc.collect()
    assert len(model[0]._forward_hooks) == 1
    count, gone = len(grapes._attached), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(grapes._attached) == count - 1


def test_a_handle_may_be_collected_in_the_middle_of_a_step() -> None:
    collecting = register_optimizer_step_post_hook(lambda *_: gc.collect())
    try:
        model, gone = pair(), pair()
        grapes.attach(gone).notes.append(gone)  # a cycle: only the collector finds it
        with grapes.attach(model) as handle:
            kept, before = weakref.ref(gone), handle.factors()["0"]
            del gone
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            model(torch.randn(4, model[0].in_features)).square().sum().backward()
            optimizer.step()
            assert kept() is None
            assert not torch.equal(handle.factors()["0"], before)
    finally:
        collecting.remove()
