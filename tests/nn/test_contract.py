"""Lines that stand in code for torch.nn.LSTM, with a spikebridge layer in its place."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_map

from spikebridge import SNU, Dense, SoftSNU, Surrogate, build, make_unit, to_crossbar
from spikebridge.crossbar import pcm
from spikebridge.nn.layers import Layer, Readout
from spikebridge.nn.scan import scan
from spikebridge.nn.synapses import Conv2d, Embedding, Normalised, noisy_weights, round_weights
from spikebridge.nn.units import State
from spikebridge.settings.model import ModelConfig

F, H, T, B = 5, 4, 6, 3
# Of torch.jit as a whole, from torch 2.13 on.
deprecated = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
kinds = pytest.mark.parametrize("kind", [SNU, SoftSNU])


def x_of(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T, B, F))) * 2


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class Head(nn.Module):
    """A classifier as tutorials write it."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _c) = self.rnn(x)
        return self.head(h[-1])


# The state: a pair, the output first.


@kinds
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("recompute", [0, 2])
def test_the_state_is_a_pair_with_the_output_first(kind, recurrent: bool, recompute: int) -> None:
    layer, x = kind(F, H, 2, recurrent=recurrent, recompute=recompute), x_of()
    out, (h, c) = layer(x)
    assert torch.equal(h[-1], out[-1])
    assert h.shape == c.shape == (2, B, H)
    hidden = tuple(part.detach() for part in (h, c))
    hidden = [part.to("cpu") for part in hidden]
    again, _ = layer(x, hidden)
    expected, last = layer(x, tree_map(lambda part: part.clone(), State(h, c)))
    torch.testing.assert_close(again, expected)
    assert isinstance(last, State)
    torch.testing.assert_close(layer(torch.cat([x, x]))[0][T:], expected)


def test_a_unit_with_more_state_keeps_it_in_s() -> None:
    unit, drive = make_unit("adaptive-snu", H), x_of(T, B, H)
    out, (y, s) = scan(unit, drive)
    assert y.shape == (B, H)
    assert s.shape == (B, 2 * H)
    assert torch.equal(y, out[-1])
    torch.testing.assert_close(
        scan(unit, torch.cat([drive, drive]))[0][T:], scan(unit, drive, None, State(y, s))[0]
    )


def test_states_are_saved_and_loaded_as_torch_does_by_default() -> None:
    _, state = SNU(F, H)(x_of())
    file = io.BytesIO()
    torch.save({"state": state}, file)
    file.seek(0)
    again = torch.load(file)["state"]
    assert isinstance(again, State)
    assert torch.equal(again.y, state.y)
    assert torch.equal(again.s, state.s)


@kinds
def test_inputs_go_by_torchs_names_too(kind) -> None:
    layer, x = kind(F, H), x_of()
    y, state = layer(x)
    assert torch.equal(layer(input=x, hx=None)[0], y)
    assert torch.equal(layer(input=x, hx=state)[0], layer(x, state)[0])
    assert torch.equal(layer(x=x, state=state)[0], layer(x, hx=state)[0])
    with pytest.raises(TypeError, match="x and input are one argument"):
        layer(x, input=x)
    with pytest.raises(TypeError, match="state and hx are one argument"):
        layer(x, state, hx=state)


# Arguments and attributes.


@kinds
def test_attributes_are_those_of_an_lstm(kind) -> None:
    arguments = (F, H, 2, False, True, 0.25, True)
    layer, lstm = kind(*arguments), nn.LSTM(*arguments)
    for name in lstm.__constants__:
        assert getattr(layer, name) == getattr(lstm, name), name
    assert layer.flatten_parameters() is None
    weights = kind(F, H, 2, recurrent=True).all_weights
    assert [[tuple(w.shape) for w in one] for one in weights] == [
        [(H, H), (H, F), (H,)], [(H, H), (H, H), (H,)]
    ]  # fmt: skip


@kinds
def test_without_bias_no_threshold_is_trained(kind) -> None:
    layer = kind(F, H, bias=False, threshold=0.3)
    assert [name for name, _ in layer.named_parameters()] == ["layers.0.array.weight"]
    assert layer.layers[0].unit.threshold.tolist() == [pytest.approx(0.3)] * H
    other = kind(F, H, bias=True)
    other.load_state_dict(layer.state_dict())
    x = x_of()
    assert torch.equal(other(x)[0], layer(x)[0])


def test_dropout_of_a_single_layer_warns_as_an_lstm_does() -> None:
    for kind in (SNU, nn.LSTM):
        with pytest.warns(UserWarning, match="num_layers=1|num_layers greater than 1"):
            kind(F, H, 1, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SNU(F, H, 2, dropout=0.5)


def test_dropout_of_all_leaves_nothing_between_layers() -> None:
    layer, x = SoftSNU(F, H, 2, dropout=1.0), x_of().requires_grad_()
    y, _ = layer(x)
    silent, _ = layer.layers[1](torch.zeros(T, B, H))
    assert torch.equal(y, silent)
    assert not torch.autograd.grad(y.sum(), x)[0].any()
    assert not torch.equal(layer.eval()(x)[0], silent)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SNU(True, 3), TypeError, r"input_size must be a whole number, got True \(bool\)"),
        (lambda: SNU(3, False), TypeError, "hidden_size must be a whole number, got False"),
        (lambda: SNU(3.0, 4), TypeError, "input_size must be a whole number, got 3.0"),
        (lambda: SNU(3, "4"), TypeError, "hidden_size must be a whole number, got '4'"),
        (lambda: SoftSNU(3, 4, 2.0), TypeError, "num_layers must be a whole number, got 2.0"),
        (lambda: Dense(3, 4.5), TypeError, "out_features must be a whole number, got 4.5"),
        (lambda: make_unit("snu", True), TypeError, "size must be a whole number, got True"),
        (lambda: SNU(3, 4, bias="no"), TypeError, "bias must be True or False, got 'no'"),
        (lambda: SNU(3, 4, 1, 0.5), TypeError, "bias must be True or False, got 0.5"),
        (lambda: SNU(3, 4, batch_first=2), TypeError, "batch_first must be True or False, got 2"),
        (lambda: SNU(3, 4, proj_size=2), ValueError, r"proj_size=2: SNU has no .*Linear\(4, 2\)"),
        (lambda: SNU(3, 4, 2, dropout=True), ValueError, r"dropout must be a number in \[0, 1\]"),
        (lambda: SNU(3, 4, 2, dropout=1.5), ValueError, r"in \[0, 1\], got 1.5"),
        (lambda: SNU(3, 4, 2, dropout="a"), ValueError, r"in \[0, 1\], got 'a'"),
        (lambda: SNU(3, 4, surrogate="step"), ValueError, "'step' is not known; choose one of"),
        (lambda: SNU(), TypeError, r"^SNU.__init__\(\) missing 2 required"),
        (lambda: SoftSNU(3), TypeError, r"^SoftSNU.__init__\(\) missing 1 required.*'hidden_size'"),
    ],
)
def test_wrong_arguments_are_named(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_right_arguments_of_other_kinds_are_taken() -> None:
    layer = SNU(np.int64(F), np.int32(H), bias=1, batch_first=0, proj_size=0, surrogate="triangle")
    assert layer.layers[0].unit.rule.surrogate == Surrogate("triangle")
    assert layer.bias is True
    assert layer(x_of())[0].shape == (T, B, H)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((T, B, F), np.float32), TypeError, r"got a numpy.ndarray; give torch.from_numpy"),
        ([[0.0] * F], TypeError, "got a list; give torch.as_tensor"),
        (None, TypeError, "got a NoneType"),
        (torch.zeros(T, B, F).to_sparse(), ValueError, r"torch.sparse_coo; give x.to_dense\(\)"),
        (torch.zeros(T, B, F, dtype=torch.int64), ValueError, "x is torch.int64 and the layer"),
        (torch.zeros(T, B, F, dtype=torch.complex64), ValueError, "x is torch.complex64"),
        (torch.zeros(T, B, F - 1), ValueError, r"x must be \(..., 5\), got \(6, 3, 4\)"),
        (torch.zeros(1, T, B, F), ValueError, r"x must be \(T, B, 5\)"),
        (
            torch.nested.nested_tensor([torch.zeros(2, F)], layout=torch.jagged),
            ValueError,
            "x is nested; give .*pack_",
        ),
    ],
)
def test_wrong_inputs_are_named(x: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        SNU(F, H)(x)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (0, TypeError, r"state must be \(y, s\), each \(2, 3, 4\), got one int 0"),
        ("hidden", TypeError, "got one str 'hidden'"),
        (torch.zeros(2, B, H), TypeError, r"got one Tensor of shape \(2, 3, 4\)"),
        ({"y": 1, "s": 2}, TypeError, "got one dict"),
        ((torch.zeros(2, B, H),), ValueError, r"each \(2, 3, 4\), got \[\(2, 3, 4\)\]"),
        ((*zeros(2, B, H), torch.zeros(2, B, H)), ValueError, r"each \(2, 3, 4\), got \[\(2"),
        ((torch.zeros(2, B, H), None), ValueError, r"got \[\(2, 3, 4\), None\]"),
        (zeros(1, B, H), ValueError, r"each \(2, 3, 4\), got \[\(1, 3, 4\)"),
        (zeros(2, B + 1, H), ValueError, r"each \(2, 3, 4\), got \[\(2, 4, 4\)"),
        (zeros(B, 2, H), ValueError, r"each \(2, 3, 4\), got \[\(3, 2, 4\)"),
        (zeros(2, B, H, dtype=torch.int64), ValueError, "state is torch.int64 and"),
        (zeros(2, B, H, dtype=torch.bool), ValueError, "state is torch.bool"),
        (zeros(2, B, H, dtype=torch.float64), ValueError, r"float64, .*\(part.to\(torch.float32\)"),
    ],
)  # fmt: skip
def test_wrong_states_are_named(state: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        SNU(F, H, 2)(x_of(), state)


def test_states_of_one_sequence_are_named_by_their_own_shape() -> None:
    layer = SNU(F, H, 2)
    with pytest.raises(ValueError, match=r"each \(2, 4\), got \[\(2, 1, 4\), \(2, 1, 4\)\]"):
        layer(x_of(T, F), zeros(2, 1, H))
    assert layer(x_of(T, F), zeros(2, H))[1].y.shape == (2, H)


def test_sequences_that_no_packing_makes_are_refused() -> None:
    layer, data = SNU(F, H), x_of(4, F)
    order = torch.tensor([1, 0])
    for arguments, message in [
        ((data, torch.tensor([1, 3])), "batch_sizes must not rise"),
        (
            (data, torch.tensor([2, 1])),
            r"data must be \(3, I\) for these batch_sizes, got \(4, 5\)",
        ),
        ((data, torch.tensor([4, 0])), "at least 1"),
        ((data, torch.tensor([5, -1])), "at least 1"),
        ((data[:0], torch.tensor([], dtype=torch.int64)), "at least 1"),
        ((data[None], torch.tensor([2, 2])), r"data must be \(4, I\)"),
        ((data, torch.tensor([[2, 2]])), "at least 1"),
        ((data, torch.tensor([2, 2]), order, torch.tensor([0, 1])), "must undo each other"),
        ((data, torch.tensor([2, 2]), torch.tensor([0, 2]), order), "must undo each other"),
        ((data, torch.tensor([2, 2]), torch.tensor([0, 1, 2]), order), "must undo each other"),
    ]:
        with pytest.raises(ValueError, match=f"no packing makes: .*{message}"):
            layer(PackedSequence(*arguments))
    half = namedtuple("half", "data batch_sizes sorted_indices unsorted_indices")
    forged = PackedSequence(*half(data, torch.tensor([2, 2]), order, order))
    assert layer(forged)[0].data.shape == (4, H)


# Resetting.


def trained(model: Any, *inputs: Tensor) -> Any:
    """The model after some steps that move all it has."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        out = model(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        optimizer.zero_grad()
        (out.float().square().sum() + sum((p * p).sum() for p in model.parameters())).backward()
        optimizer.step()
    return model


def network_of(**settings: Any) -> nn.Module:
    symbols = settings.pop("symbols", False)
    outputs = F if settings.get("tied") else 3
    return build(ModelConfig(hidden=(7, H), **settings), F, outputs, "mean", symbols=symbols)


RESET: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "snu": (lambda: SNU(F, H, 2, recurrent=True, bidirectional=True, train_decay=True), x_of),
    "soft": (lambda: SoftSNU(F, H, decay=torch.linspace(0.2, 0.9, H), threshold=-0.4), x_of),
    "half": (lambda: SNU(F, H, 2, recurrent=True, dtype=torch.bfloat16), lambda: x_of().bfloat16()),
    "layer": (
        lambda: Layer(Dense(F, H, bias=True), make_unit("adaptive-snu", H), recurrent=True),
        x_of,
    ),
    "dense": (lambda: Dense(F, H, "relu", bias=True), x_of),
    "conv": (lambda: Conv2d((1, 4, 4), 2, 3, bias=True), lambda: x_of(T, B, 16)),
    "embedding": (lambda: Embedding(9, H), lambda: torch.randint(9, (T, B))),
    "normalised": (lambda: Normalised(Dense(F, H), centre=True), x_of),
    "layer norm": (lambda: SNU(F, H, 2, norm="layer"), x_of),
    "step norm": (lambda: network_of(unit="snu", norm="step"), x_of),
    "delays": (lambda: SNU(F, H, 2, recurrent=True, delays=3), x_of),
    "readout": (lambda: Readout(F, 3, "last"), x_of),
    "network": (lambda: network_of(unit="snu", recurrent=True, norm=True), x_of),
    "binary": (lambda: network_of(unit="binary-ci", weight_bits=4), x_of),
    "lstm": (lambda: network_of(unit="lstm"), x_of),
    "plain": (lambda: network_of(unit="relu", norm=True, centre=True), x_of),
    "symbols": (
        lambda: network_of(unit="softsnu", embedding=6, tied=True, symbols=True),
        lambda: torch.randint(F, (T, B)),
    ),
    "within": (lambda: nn.Sequential(nn.Linear(F, F), SNU(F, H, 2, recurrent=True)), x_of),
}  # fmt: skip


@pytest.mark.parametrize("name", RESET)
def test_resetting_gives_what_construction_gives(name: str) -> None:
    """By itself, and in the loop that stands between folds; twice, with other numbers."""
    make, inputs = RESET[name]
    torch.manual_seed(7)
    fresh, following = make(), torch.rand(3)
    model = trained(make(), inputs())
    assert not same(model, fresh)
    torch.manual_seed(7)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert same(model, fresh)
    assert torch.equal(torch.rand(3), following)
    if hasattr(model, "reset_parameters"):
        trained(model, inputs())
        torch.manual_seed(7)
        model.reset_parameters()
        assert same(model, fresh)
        assert torch.equal(torch.rand(3), following)


def test_parts_that_are_reset_again_later_are_drawn_anew() -> None:
    layer = SNU(F, H)
    layer.reset_parameters()
    first = layer.layers[0].array.weight.clone()
    layer.layers[0].array.reset_parameters()  # right after: what was drawn stays
    assert torch.equal(layer.layers[0].array.weight, first)
    layer.layers[0].array.reset_parameters()
    assert not torch.equal(layer.layers[0].array.weight, first)
    layer.reset_parameters()
    with torch.no_grad():
        layer.layers[0].array.weight.zero_()  # trained, by a rule that draws nothing
    layer.layers[0].array.reset_parameters()
    assert layer.layers[0].array.weight.all()


def test_weights_behind_something_are_drawn_anew_too() -> None:
    for dress in (
        lambda m: prune.random_unstructured(m, "weight", 0.5),
        lambda m: parametrizations.weight_norm(m, "weight"),
        lambda m: noisy_weights(m, 0.1),
        lambda m: round_weights(m, 4),
    ):
        for make in (lambda: Dense(F, H), lambda: Readout(F, H, "each").linear):
            model, x = make(), x_of()
            dress(model)
            model.eval()
            before = model(x)
            model.reset_parameters()
            assert not torch.allclose(model(x), before)


def test_weights_on_cells_are_not_reset_in_silence() -> None:
    chip = to_crossbar(nn.Sequential(Dense(F, H)), pcm.ITERATIVE)
    array = next(m for m in chip.network.modules() if isinstance(m, Dense))
    with pytest.raises(RuntimeError, match="lies on the cells of a crossbar; reset before"):
        array.reset_parameters()


@pytest.mark.parametrize("recipe", ["bias", "weight and bias", "one dimension"])
def test_recipes_by_name_leave_thresholds_alone(recipe: str) -> None:
    layer = SNU(F, H, 2, recurrent=True, threshold=0.7)
    for name, p in layer.named_parameters():
        if "bias" in name:
            nn.init.zeros_(p)
        elif "weight" in name and recipe == "weight and bias":
            nn.init.xavier_uniform_(p)
    assert all(
        float(t) == pytest.approx(0.7) for one in layer.layers for t in one.unit.threshold.tolist()
    )


# Defaults, and the example of the README.


@pytest.mark.parametrize("kind", ["snu", "softsnu"])
def test_python_and_the_settings_have_the_same_defaults(kind: str) -> None:
    by_settings = build(ModelConfig(unit=kind, hidden=(H, H)), F, 3, "mean").layers
    by_hand = {"snu": SNU, "softsnu": SoftSNU}[kind](F, H, 2).layers
    for one, other in zip(by_settings, by_hand, strict=True):
        assert one.unit.rule == other.unit.rule == make_unit(kind, H).rule
        assert torch.equal(one.unit.decay, other.unit.decay)
        assert torch.equal(one.unit.threshold, other.unit.threshold)
        assert one.unit.train_decay == other.unit.train_decay
        assert (one.recurrent is None) == (other.recurrent is None)
        assert one.array.gain == other.array.gain


def test_the_example_of_the_swap_runs() -> None:
    path = Path(__file__).parents[2] / "examples" / "digits_by_rows.py"
    command = [sys.executable, str(path), "--seeds", "1", "--epochs", "1"]
    command += ["--layers", "LSTM", "SNU, recurrent=True", "--validate"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["LSTM", "SNU, recurrent=True"]
    assert all(float(line[24:].split()[0]) > 30 for line in lines)


# Without numbers: the meta device, FakeTensorMode.


@kinds
def test_layers_are_made_and_run_on_the_meta_device(kind) -> None:
    options = {"num_layers": 2, "bidirectional": True, "recurrent": True, "train_decay": True}
    with torch.device("meta"):
        one = kind(F, H, **options)
    other = kind(F, H, **options, device="meta", dtype=torch.bfloat16)
    torch.set_default_device("meta")
    try:
        third = kind(F, H, **options)
        y, (h, c) = third(torch.randn(T, B, F))
    finally:
        torch.set_default_device(None)
    assert y.is_meta
    assert h.shape == c.shape == (4, B, H)
    assert {p.device.type for m in (one, other, third) for p in m.parameters()} == {"meta"}
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert other(torch.zeros(T, B, F, device="meta", dtype=torch.bfloat16))[0].is_meta
    real = kind(F, H, **options)
    one.load_state_dict(real.state_dict(), assign=True)
    x, packed = x_of(), pack_sequence([x_of(3, F)])
    assert torch.equal(one(x)[0], real(x)[0])
    assert torch.equal(one(packed)[0].data, real(packed)[0].data)


def test_what_was_made_without_numbers_is_drawn_where_it_is_wanted() -> None:
    make = lambda: SNU(F, H, 2, recurrent=True, threshold=0.4, decay=0.7)  # noqa: E731
    with torch.device("meta"):
        layer = make()
        network = network_of(unit="snu", decay_to=0.9, recurrent=True)
    for model, fresh in (
        (layer, make),
        (network, lambda: network_of(unit="snu", decay_to=0.9, recurrent=True)),
    ):
        model.to_empty(device="cpu")
        torch.manual_seed(3)
        model.reset_parameters()
        torch.manual_seed(3)
        assert same(model, fresh())


def test_large_layers_take_no_memory_on_the_meta_device() -> None:
    layer = SNU(1 << 20, 1 << 20, recurrent=True, device="meta")
    assert layer.layers[0].recurrent.numel() == 1 << 40


@kinds
def test_layers_are_made_and_run_under_fake_tensors(kind) -> None:
    with FakeTensorMode():
        layer = kind(F, H, 2, recurrent=True, train_decay=True, per_unit=True)
        y, _ = layer(torch.randn(T, B, F))
        y.sum().backward()
        assert y.shape == (T, B, H)
        assert layer.layers[0].array.weight.grad is not None


def test_a_seed_gives_the_same_weights_in_every_precision() -> None:
    made = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(1)
        made.append(SNU(F, H, 2, recurrent=True, decay=0.9, dtype=dtype))
    assert same(made[0].double(), made[1])
    torch.manual_seed(1)
    assert same(SNU(F, H, 2, recurrent=True, decay=0.9).bfloat16(), made[2])


# Programs.


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["import torch, spikebridge", "import spikebridge, torch"])
def test_exported_programs_and_states_load_in_a_fresh_process(first: str, tmp_path: Path) -> None:
    layer = SNU(F, H, 2, recurrent=True).eval()
    dims = {"x": {0: torch.export.Dim("T", min=2, max=99), 1: torch.export.Dim("B", min=2)}}
    program = torch.export.export(layer, (x_of(),), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "layer.pt2")
    x = x_of(17, 4, F)
    y, state = layer(x)
    torch.save((x, y, state), tmp_path / "values.pt")
    code = f"""
{first}
x, y, state = torch.load({str(tmp_path / "values.pt")!r})
out, (h, c) = torch.export.load({str(tmp_path / "layer.pt2")!r}).module()(x)
print(torch.equal(out, y), torch.equal(h, state.y), torch.equal(c, state.s), type(state).__name__)
"""
    assert run_python(code).split() == ["True", "True", "True", "State"]


@pytest.mark.parametrize(
    "module", ["nn.kernels.native", "nn.kernels.ops", "nn.gradients", "base.chance", "nn.units"]
)
def test_a_module_of_ours_may_be_what_imports_torch(module: str) -> None:
    code = f"""
import sys, spikebridge.{module}
import zipapp  # any import after it
print("torch" in sys.modules, "spikebridge.nn.kernels.ops" in sys.modules)
"""
    assert run_python(code).split() == ["True", "True"]


def test_looking_for_torch_without_importing_it_registers_later_all_the_same() -> None:
    code = """
import importlib.util, sys, spikebridge
importlib.util.find_spec("torch")
assert "torch" not in sys.modules
import torch
print(torch.ops.spikebridge.scan, len([f for f in sys.meta_path if "Along" in type(f).__name__]))
"""
    assert run_python(code).split() == ["spikebridge.scan", "0"]


@deprecated
@kinds
@pytest.mark.parametrize(
    "options", [{}, {"recurrent": True, "num_layers": 2, "bidirectional": True}]
)
def test_traced_layers_keep_length_and_batch_free_and_can_be_trained(kind, options: dict) -> None:
    layer = kind(F, H, **options)
    traced = torch.jit.trace(layer, (x_of(),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded, x = torch.jit.load(file), x_of(11, 2, F).requires_grad_()
    (y, (h, c)), (expected, state) = loaded(x), layer(x)
    assert torch.equal(y, expected)
    assert torch.equal(h, state.y)
    assert torch.equal(c, state.s)
    found, right = (torch.autograd.grad(out.sum(), x)[0] for out in (y, expected))
    assert torch.equal(found, right)


@deprecated
def test_scripting_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"cannot compile a SNU; use torch\.jit\.trace"):
        torch.jit.script(Head(SNU(F, H)))


def test_symbolic_tracing_takes_layers_whole() -> None:
    for model in (Head(SNU(F, H, 2)), Head(nn.LSTM(F, H, 2))):
        traced, x = torch.fx.symbolic_trace(model), x_of(9, 2, F)
        assert "call_module" in {node.op for node in traced.graph.nodes}
        assert torch.equal(traced(x), model(x))
    with pytest.raises(TypeError, match=r"torch\.fx takes a SNU whole"):
        torch.fx.symbolic_trace(SNU(F, H))
    with pytest.raises(TypeError, match=r"torch\.fx takes a Network whole"):
        torch.fx.symbolic_trace(network_of(unit="snu"))


@deprecated
def test_onnx_gets_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = SNU(F, H, recurrent=True).eval(), x_of()
    with_kernel = torch.jit.trace(layer, (x,))
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.warns(UserWarning, match=r'backend="loop"\) written out: .*, and no others'):
        traced = torch.jit.trace(layer, (x,), check_trace=False)
    operators = [
        {node.kind().split("::")[0] for node in one.inlined_graph.nodes()}
        for one in (with_kernel, traced)
    ]
    assert "spikebridge" in operators[0]
    assert "spikebridge" not in operators[1]
    assert torch.equal(traced(x)[0], layer(x)[0])
    layer.layers[0].backend = "native"
    with pytest.raises(RuntimeError, match=r'cannot be exported to ONNX, .* with backend="loop"'):
        torch.jit.trace(layer, (x,), check_trace=False)
