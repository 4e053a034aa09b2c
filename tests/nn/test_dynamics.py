"""Memories and modulations: what their equations say, whatever runs them."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikebridge.base.records import ConfigError
from spikebridge.nn.dynamics import AdaptiveUnit, DynamicUnit, drives_of
from spikebridge.nn.gradients import Surrogate
from spikebridge.nn.kernels import native
from spikebridge.nn.network import build
from spikebridge.nn.rnn import SNU, SoftSNU
from spikebridge.nn.scan import loop, scan, unsupported
from spikebridge.nn.units import KINDS, SNUnit, State, Unit, make_unit
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.names import MEMORIES, MODULATIONS

PAIRS = [*itertools.product(MEMORIES, MODULATIONS)]
GATED = [pair for pair in PAIRS if drives_of(*pair) > 1]


def unit_of(
    memory: str, modulation: str, n: int = 4, soft: bool = True, relaxed: bool = False, **options
) -> Unit:
    fire = {} if soft else {"surrogate": Surrogate("triangle", relaxed=relaxed)}
    pair = {"memory": memory, "modulation": modulation}
    return make_unit("softsnu" if soft else "snu", n, **pair, **fire, **options)


@pytest.mark.parametrize(  # two of the resets with each member, in turn
    ("memory", "modulation", "soft", "reset"),
    [
        (
            *pair,
            soft,
            ("gate", "subtract", "none", "lateral")[(turn + turn // 4 + 2 * other + soft) % 4],
        )
        for turn, pair in enumerate(PAIRS)
        for soft in (True, False)
        for other in (0, 1)
    ],
)
def test_the_gradient_of_a_step_is_its_derivative(
    memory: str, modulation: str, soft: bool, reset: str
) -> None:
    unit = unit_of(memory, modulation, soft=soft, relaxed=True, reset=reset).double()
    names, values = zip(*unit.named_parameters(), strict=True)

    def run(drive: Tensor, y: Tensor, s: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(
            _Steps(unit), {f"unit.{k}": v for k, v in given.items()}, (drive, y, s)
        )

    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 2, unit.drives * 4), (2, 4), (2, unit.state_size)]
    given = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    leaves = [x.detach().clone().requires_grad_() for x in (*given, *values)]
    assert torch.autograd.gradcheck(run, leaves)


class _Steps(torch.nn.Module):
    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, drive: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        trace = loop(self.unit, drive, state=State(y, s))
        return trace.y, trace.state.s


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(-8, 8), st.floats(0, 5))
@settings(deadline=None, max_examples=80)
def test_an_oscillation_that_is_left_alone_dies_whatever_is_trained(
    decay: float, slow: float, angle: float, kick: float
) -> None:
    """Its map of (membrane, slow state) has the radius sqrt(decay rho) and turns by the angle."""
    unit = unit_of("oscillation", "none", 1, reset="none").double()
    with torch.no_grad():
        for name, value in (("decay_logit", decay), ("slow_logit", slow), ("angle_logit", angle)):
            getattr(unit, name).fill_(value)
        unit.kick.fill_(kick)
    params = unit.params(torch.float64)
    rows = []
    for start in ((1.0, 0.0), (0.0, 1.0)):
        state = State(torch.zeros(1, 1).double(), torch.tensor([start]).double())
        rows.append(unit.step(state, torch.zeros(1, 1).double(), params).s)
    values = torch.linalg.eigvals(torch.cat(rows).mT)
    rho = params.own[0].item()
    radius = math.sqrt(params.decay.item() * rho)
    assert radius < 1
    torch.testing.assert_close(
        values.abs(), torch.full((2,), radius).double(), rtol=1e-3, atol=1e-6
    )
    turned = math.pi / (1 + math.exp(-angle))
    assert math.cos(values[0].angle().item()) == pytest.approx(math.cos(turned), abs=1e-3)


def test_an_oscillation_is_the_neuron_of_its_source() -> None:
    """Baronig et al. 2024, algorithm of the symplectic Euler step, the reset at once."""
    n, steps = 5, 40
    unit = unit_of("oscillation", "none", n, soft=False, decay=0.9)
    drive = torch.randn(steps, 3, n, generator=torch.Generator().manual_seed(4)) * 6
    params = unit.params(torch.float32)
    (rho, pull, kick), decay = params.own, params.decay
    u = w = torch.zeros(3, n)
    for t in range(steps):
        u = decay * u + (1 - decay) * (drive[t] - w)
        z = (u > 1.0).float()
        u = u * (1 - z)
        w = rho * w + pull * u + kick * z
        expected = z if t == 0 else torch.cat([expected, z])  # noqa: F821
    y = loop(unit, drive).y
    assert 0.02 < y.mean() < 0.9
    assert torch.equal(y.reshape(-1, n), expected)


def test_a_gate_without_a_current_is_a_leak() -> None:
    gate = unit_of("gate", "none", 6, decay=0.7, reset="none")
    leak = make_unit("softsnu", 6, decay=0.7, reset="none")
    drive = torch.randn(9, 2, 6)
    both = torch.cat([drive, torch.zeros_like(drive)], -1)
    torch.testing.assert_close(loop(gate, both).y, loop(leak, 0.3 * drive).y)


def test_a_gate_that_is_shut_keeps_and_an_open_one_forgets() -> None:
    unit = unit_of("gate", "none", 1, reset="none")
    shut, wide = torch.tensor([[[5.0, 30.0]]]), torch.tensor([[[5.0, -30.0]]])
    start = State(torch.zeros(1, 1), torch.full((1, 1), 2.0))
    assert loop(unit, shut, state=start).s.item() == pytest.approx(2.0)
    assert loop(unit, wide, state=start).s.item() == pytest.approx(5.0)


@pytest.mark.parametrize(("memory", "modulation"), PAIRS)
def test_spikes_are_0_or_1_and_soft_outputs_between(memory: str, modulation: str) -> None:
    for soft in (False, True):
        unit = unit_of(memory, modulation, 30, soft)
        y = loop(unit, torch.randn(30, 2, 30 * unit.drives) * 5).y
        assert unit.spiking == (not soft)
        assert 0 < y.mean() < 1
        assert bool(((y == 0) | (y == 1)).all()) == (not soft)


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("kind", [SNU, SoftSNU])
@pytest.mark.parametrize(("memory", "modulation"), GATED)
def test_a_layer_goes_on_where_it_was(
    kind: type, memory: str, modulation: str, gates: bool
) -> None:
    layer = kind(
        3, 5, 2, recurrent=True, recurrent_gates=gates, memory=memory, modulation=modulation
    )
    rows = drives_of(memory, modulation) * 5 if gates else 5
    assert layer.layers[0].recurrent.shape == (rows, 5)
    x = torch.randn(7, 2, 3)
    whole, last = layer(x)
    first, state = layer(x[:3])
    second, state = layer(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state.s, last.s)
    again = kind(
        3, 5, 2, recurrent=True, recurrent_gates=gates, memory=memory, modulation=modulation
    )
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x)[0], whole)


def test_parameters_are_drawn_again_as_they_began() -> None:
    torch.manual_seed(3)
    layer = SNU(3, 40, memory="oscillation", modulation="output")
    before = {name: p.clone() for name, p in layer.named_parameters()}
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1)
    torch.manual_seed(3)
    layer.reset_parameters()
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name]), name
    angle = torch.pi * torch.sigmoid(layer.layers[0].unit.angle_logit)
    torch.testing.assert_close((2 * torch.pi / angle)[[0, -1]], torch.tensor([4.0, 200.0]))


def test_the_usual_memory_is_the_unit_itself() -> None:
    assert type(make_unit("snu", 3)) is SNUnit
    plain = make_unit("snu", 3, memory="leak", modulation="none")
    assert type(plain) is SNUnit
    drive = torch.randn(8, 2, 3) * 3
    assert torch.equal(loop(plain, drive).y, loop(make_unit("snu", 3), drive).y)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": "gates"}, "memory='gates' is not known"),
        ({"modulation": "soma"}, "modulation='soma' is not known"),
        ({"memory": "oscillation", "periods": (2.0, 9.0)}, "periods must be two numbers"),
        ({"memory": "oscillation", "periods": 9.0}, "periods must be two numbers"),
        ({"memory": "oscillation", "decay": 1.0}, "with a leak as memory"),
        ({"memory": "oscillation", "slow_decay": 1.0}, "slow_decay must be in"),
        ({"memory": "oscillation", "kick": math.inf}, "kick must be finite"),
        ({"modulation": "threshold", "rho": 1.0}, "rho must be in"),
        ({"memory": "gate", "memoryless": True}, "memoryless"),
        ({"rho": 0.5}, "rho=0.5 belongs to modulation='adaptation' or 'threshold'.*leave rho out"),
        ({"memory": "gate", "kick": 0.1}, "kick=0.1 belongs to memory='oscillation', but"),
        ({"modulation": "threshold", "beta": 1.0}, "beta=1.0 belongs to modulation='adaptation'"),
        ({"memory": "leak", "periods": (4, 9)}, "leave periods out"),
    ],
)
def test_settings_that_do_not_fit_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_unit("snu", 3, **wrong)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("snu", "softsnu")])
def test_other_kinds_have_neither(kind: str) -> None:
    with pytest.raises(ValueError, match="neither another memory nor a modulation"):
        make_unit(kind, 3, memory="gate")
    with pytest.raises(ConfigError, match="pass --unit snu or softsnu"):
        ModelConfig(unit=kind, memory="gate")
    usual = type(make_unit(kind, 3))
    assert type(make_unit(kind, 3, memory="leak")) is usual
    assert (usual is AdaptiveUnit) == (kind == "adaptive-snu")


@pytest.mark.parametrize(("memory", "modulation"), PAIRS)
def test_a_network_of_each_pair_trains(memory: str, modulation: str) -> None:
    gates = drives_of(memory, modulation) > 1
    model = ModelConfig(
        unit="snu", hidden=(6, 5), recurrent=True, recurrent_gates=gates,
        memory=memory, modulation=modulation,
    )  # fmt: skip
    network = build(model, 3, 2, "mean")
    output, state = network(torch.randn(5, 4, 3))
    output.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert len(state) == 2
    plain = build(ModelConfig(hidden=(6, 5)), 3, 2, "mean")
    if (memory, modulation) != ("leak", "none"):
        assert any(isinstance(m, DynamicUnit) for m in network.modules())
        assert not any(isinstance(m, DynamicUnit) for m in plain.modules())


def test_gates_without_a_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="recurrent_gates=True"):
        SNU(3, 4, memory="gate", recurrent_gates=True)
    with pytest.raises(ConfigError, match="nothing that it could feed"):
        ModelConfig(recurrent_gates=True, recurrent=True)
    with pytest.raises(ConfigError, match="convolutional layers"):
        ModelConfig(memory="gate", channels=(8,))


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_no_member_falls_out_of_the_vectors() -> None:
    """A loop over neurons that is not vectorised takes ten times as long, and equals the others."""

    def seconds(pair: tuple[str, str]) -> float:
        unit, best = unit_of(*pair, 512, soft=False), math.inf
        drive = torch.randn(50, 16, 512 * unit.drives, requires_grad=True)
        for _ in range(5):
            begin = time.thread_time()
            scan(unit, drive, backend="native")[0].sum().backward()
            best = min(best, time.thread_time() - begin)
        return best

    served = [p for p in PAIRS if unsupported(unit_of(*p), torch.zeros(1, 1, 4)) is None]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = {pair: seconds(pair) for pair in served}
    torch.set_num_threads(threads)
    assert len(served) == 7
    assert max(times.values()) < 5 * min(times.values()), times


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
@pytest.mark.parametrize(
    ("memory", "modulation", "buffers"),
    [
        ("leak", "none", 1),
        ("leak", "adaptation", 2),
        ("leak", "threshold", 2),
        ("leak", "output", 3),
        ("gate", "none", 3),
        ("gate", "output", 4),
        ("oscillation", "none", 3),
    ],
)
@pytest.mark.parametrize("recurrent", [False, True])
def test_what_is_kept(memory: str, modulation: str, buffers: int, recurrent: bool) -> None:
    """Numbers per output that the backward pass keeps, beside input and matrices."""
    layer = SoftSNU(8, 32, memory=memory, modulation=modulation, recurrent=recurrent)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 3 and tensor.shape[-1] % 32 == 0:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(50, 8, 8))
    assert sum(kept.values()) == (buffers + recurrent) * 50 * 8 * 32
