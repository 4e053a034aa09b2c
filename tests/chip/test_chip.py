"""Programs of the chip: compiled exactly, bounded, kept in files, refused where they cannot be."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import chip_programs as make
from helpers.chip_programs import answers, programs, spikes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spikebridge.base.records import ConfigError, UsageError
from spikebridge.chip.bounds import bits_for, bounds, slow_bits
from spikebridge.chip.compiler import compile, losses
from spikebridge.chip.files import load_program, save_program
from spikebridge.chip.golden import Golden
from spikebridge.chip.program import ChipConfig, Program, ProgramLayer, SlowState, with_chip
from spikebridge.nn.layers import Layer, Readout
from spikebridge.nn.network import Network, build
from spikebridge.nn.synapses import Conv2d, Dense
from spikebridge.nn.units import make_unit
from spikebridge.settings.model import ModelConfig

SEEDS = st.integers(0, 2**32 - 1)


def test_bits_hold_what_they_are_counted_for() -> None:
    for bits in range(2, 12):
        top = 1 << bits - 1
        assert bits_for(-top, top - 1) == bits
        assert bits_for(-top - 1, 0) == bits_for(0, top) == bits + 1
    assert bits_for(0, 0) == 1


@settings(max_examples=25, deadline=None)
@given(programs(), SEEDS, st.sampled_from([0.1, 0.5, 1.0]))
def test_no_membrane_leaves_its_bounds(program: Program, seed: int, density: float) -> None:
    ends = [
        bounds(one, program.decay_bits, program.fraction_bits, program.max_steps or 8)[:2]
        for one in program.layers
    ]
    samples = spikes(np.random.default_rng(seed), program, density=density)
    for step in (step for sample in answers(program, samples) for step in sample):
        for done, (low, high) in zip(step.layers, ends, strict=True):
            assert (low <= done.membrane).all()
            assert (done.membrane <= high).all()


@settings(max_examples=20, deadline=None)
@given(programs(convolutions=False, slow=False), SEEDS)
def test_bounds_of_one_step_are_reached(program: Program, seed: int) -> None:
    """They are no guess: the inputs with positive weights drive a neuron to its highest."""
    layer = program.layers[0]
    neuron = int(np.random.default_rng(seed).integers(layer.neurons))
    top = bounds(layer, program.decay_bits, program.fraction_bits, 1)[1][neuron]
    # Bounds for any number of steps need more than one to be reached, and so do own spikes.
    assume(not bounds(layer, program.decay_bits, program.fraction_bits, 1)[2])
    assume(not layer.recurrent or not (layer.weight[layer.inputs :, neuron] > 0).any())
    weight = layer.weight[: layer.inputs, neuron]
    done = Golden(program).step(np.flatnonzero(weight > 0))
    assert done.layers[0].membrane[neuron] == top


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([0, 0, 40, -90]),
    st.floats(0.1, 0.98),
    st.floats(0.5, 0.995),
    st.floats(0.01, 3.1),
)
def test_an_oscillation_that_nothing_resets_stays_in_bounds_that_it_nearly_reaches(
    kick: int, decay: float, rho: float, angle: float
) -> None:
    """Inputs that push in time with the turn find the worst case, and nothing saturates."""
    rng, one, fraction = np.random.default_rng(0), 1 << 14, 4
    pull = decay + rho - 2 * math.sqrt(decay * rho) * math.cos(angle)
    factors = [np.array([round(n * one)]) for n in (decay, rho, pull)]
    slow = SlowState("oscillation", 2, *factors[1:], np.array([kick << fraction]))
    nothing = np.zeros(1, np.int64)
    layer = ProgramLayer(
        "one", np.array([[100], [-100]], np.int32), nothing, nothing + 40, factors[0], nothing,
        nothing + 1.0, 2, reset="none", slope=one, slow=slow,
    )  # fmt: skip
    layer = replace(layer, slow=replace(slow, bits=slow_bits(layer, slow, 14, fraction, 200)))
    low, high, _ = bounds(layer, 14, fraction, 200)
    readout = make.dense(rng, 1, 1, reduce="last")
    readout = replace(readout, **dict.fromkeys(("bias", "threshold", "decay", "amount"), nothing))
    bits = bits_for(int(low[0]), int(high[0]))
    program = Program(
        (layer, replace(readout, scale=nothing + 1.0)), 8, 14, fraction, bits, 200, ChipConfig()
    )
    turn = np.array([[decay - pull, -rho], [pull, rho]])
    pushes = [np.linalg.matrix_power(turn, 199 - t)[0, 0] > 0 for t in range(200)]
    golden, reached = Golden(program), 0
    for push in pushes:
        done = golden.step(np.array([0 if push else 1]))
        reached = int(done.layers[0].membrane[0])
        assert low[0] <= reached <= high[0]
        assert abs(int(golden.w[0][0])) < layer.slow.ends[1]
    assert kick or reached > 0.6 * high[0]


@settings(max_examples=20, deadline=None)
@given(programs(), SEEDS)
def test_work_is_proportional_to_spikes(program: Program, seed: int) -> None:
    silence = Golden(program).step(np.zeros(0, np.int64))
    events = spikes(np.random.default_rng(seed), program, samples=1, density=0.5)[0][0]
    busy = Golden(program).step(events)
    first = program.layers[0]
    added = busy.layers[0].counts.additions - silence.layers[0].counts.additions
    if first.geometry is None:
        assert added == len(events) * first.width
        assert busy.layers[0].counts.weight_reads == len(events) * program.chunks(first)
    else:
        assert added <= len(events) * first.geometry.kernel**2 * first.width
    assert busy.counts.updates == silence.counts.updates
    assert busy.counts.spikes == sum(len(layer.spikes) for layer in busy.layers)


@settings(max_examples=20, deadline=None)
@given(programs(), st.sampled_from([1, 4, 64]))
def test_files_give_the_program_back(program: Program, lanes: int) -> None:
    program = with_chip(program, lanes=lanes)
    with tempfile.TemporaryDirectory() as folder:
        save_program(program, Path(folder) / "program.npz")
        again = load_program(Path(folder) / "program.npz")
    samples = spikes(np.random.default_rng(0), program)
    first, second = answers(program, samples), answers(again, samples)
    for one, other in zip(chain(*first), chain(*second), strict=True):
        assert one.counts == other.counts
        assert (one.outputs == other.outputs).all()
    assert again.chip == program.chip


def exact(unit: str, reset: str = "gate", **more: object) -> Network:
    """A network whose numbers all are exact in 5 bits of weight: levels of 1/16."""
    torch.manual_seed(3)
    resets = {"reset": reset} if reset != "trained" else {"reset": "subtract", "subtract": reset}
    kind = {"decay": 0.5, "g": "identity", **resets, **more} if unit == "snu" else {}
    first = make_unit(unit, 12, **kind)
    second = make_unit(unit, 6, **kind)
    network = Network(
        [Layer(Dense(20, 12, first), first), Layer(Dense(12, 6, second), second)],
        Readout(6, 3, "mean"),
    )
    with torch.no_grad():
        for layer in network.layers:
            levels = torch.randint(-15, 16, layer.array.weight.shape).float()
            levels[:, 0] = 15
            layer.array.weight.copy_(levels / 16)
            if reset == "trained":  # what training has made of them, one below 0
                layer.unit.threshold.copy_(torch.arange(-1, len(levels) - 1) / 8)
        network.readout.linear.weight.copy_(torch.randint(-15, 16, (3, 6)) / 16)
        network.readout.linear.weight[0, 0] = 15 / 16
        network.readout.linear.bias.copy_(torch.randint(-15, 16, (3,)) / 16)
    return network.eval()


@pytest.mark.parametrize(
    ("unit", "reset"),
    [
        ("snu", "gate"),
        ("snu", "subtract"),
        ("snu", "trained"),
        ("snu", "none"),
        ("binary-di", "gate"),
        ("binary-ci", "gate"),
    ],
)
def test_what_fits_is_compiled_without_loss(unit: str, reset: str) -> None:
    network = exact(unit, reset)
    program = compile(
        network, ChipConfig(weight_bits=5, decay_bits=1, fraction_bits=8, max_steps=6)
    )
    assert all(lost.weight < 1e-12 and lost.decay == 0 for lost in losses(network, program))
    x = (torch.rand(6, 8, 20) < 0.4).float()
    with torch.no_grad():
        seen = network.observe(x, membranes=True)
    for sample in range(8):
        golden = Golden(program)
        for t in range(6):
            done = golden.step(np.flatnonzero(x[t, sample].numpy()), last=t == 5)
            for layer, own, spec in zip(done.layers, seen.layers, program.layers, strict=False):
                assert layer.spikes.tolist() == own.y[t, sample].nonzero().flatten().tolist()
                s = layer.membrane * spec.scale / (1 << program.fraction_bits)
                assert np.allclose(s, own.s[t, sample].numpy(), atol=1e-6)
        value = done.outputs * program.readout.scale / (1 << program.fraction_bits) / 6
        assert np.allclose(value, seen.output[sample].numpy(), atol=1e-5)


@pytest.mark.parametrize("unit", ["snu", "binary-di", "binary-ci"])
@pytest.mark.parametrize(
    "form",
    ["dense", "recurrent", "conv", "pooled", "normalised", "oscillation", "adaptation"],
)
def test_sixteen_bits_do_what_the_network_does(unit: str, form: str) -> None:
    torch.manual_seed(1)
    if form in ("oscillation", "adaptation") and unit != "snu":
        pytest.skip("a unit without a slow state")
    shape = {"hidden": (30, 20), "recurrent": form in ("recurrent", "oscillation")}
    if form in ("oscillation", "adaptation"):
        shape |= {"memory" if form == "oscillation" else "modulation": form, "g": "identity"}
    if form in ("conv", "pooled"):
        pool = 2 if form == "pooled" else 1
        shape = {"channels": (4, 6), "hidden": (20,), "kernel_size": 3, "pool": pool}
        shape["stride"] = 3 - pool
    model = ModelConfig(unit=unit, norm=form == "normalised", **shape)
    network = build(model, 64, 5, "mean", image=(1, 8, 8)).eval()
    with torch.no_grad():
        for layer in network.layers:
            if getattr(layer.array, "bias", None) is not None:
                layer.array.bias.uniform_(-0.2, 0.2)
    bits = (10, 6) if form == "oscillation" else (12, 8)  # its membranes go further
    chip = ChipConfig(weight_bits=bits[0], decay_bits=14, fraction_bits=bits[1], max_steps=10)
    program = compile(network, chip)
    x = (torch.rand(10, 6, 64) < 0.3).float()
    with torch.no_grad():
        seen = network.observe(x)
    same = total = 0
    for sample in range(6):
        golden = Golden(program)
        for t in range(10):
            done = golden.step(np.flatnonzero(x[t, sample].numpy()))
            for layer, own in zip(done.layers, seen.layers, strict=False):
                fired = np.zeros(own.y.shape[-1])
                fired[layer.spikes] = 1
                same += int((fired == own.y[t, sample].numpy()).sum())
                total += own.y.shape[-1]
    assert float(seen.layers[-1].y.mean()) > 0.01, "a silent network shows nothing"
    assert same / total > 0.995


def test_rounded_weights_stay_what_they_were() -> None:
    model = ModelConfig(unit="binary-di", hidden=(30,), weight_bits=3)
    network = build(model, 20, 4, "mean").eval()
    program = compile(network, ChipConfig(weight_bits=3))
    assert all(lost.weight < 1e-6 for lost in losses(network, program))
    assert program.fraction_bits == 0
    assert not program.multiplies


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"unit": "softsnu"}, "sends numbers, not spikes.*snu"),
        ({"unit": "lstm"}, "one of torch's own.*snu"),
        ({"unit": "relu"}, "layer1 sends numbers, not spikes.*binary-di"),
        ({"unit": "li-snu"}, "a spike resets all of layer1"),
        ({"unit": "snu", "memory": "gate"}, "leak of layer1 depends on its input.*oscillation"),
        ({"unit": "snu", "modulation": "output"}, "a current of its own.*adaptation"),
        (
            {"unit": "snu", "memory": "oscillation", "modulation": "adaptation"},
            "two slow states",
        ),
        ({"unit": "snu", "g": "elu"}, "g=elu.*leaky_relu"),
        ({"unit": "snu", "read_all": True, "hidden": (5, 5)}, "reads several layers"),
    ],
)
def test_what_it_cannot_run_is_refused_with_what_it_can(model: dict, words: str) -> None:
    network = build(ModelConfig(**{"hidden": (5,), **model}), 8, 3, "mean")
    with pytest.raises(UsageError, match=words):
        compile(network)


def test_a_stride_of_three_is_refused() -> None:
    unit = make_unit("snu", 4)
    network = Network([Layer(Conv2d((1, 6, 6), 1, 1, stride=3), unit)], Readout(4, 2, "mean"))
    with pytest.raises(UsageError, match=r"stride of 3.*1, 2 or 4"):
        compile(network)


@pytest.mark.parametrize("unit", ["snu", "binary-ci"])
@pytest.mark.parametrize("weak", [1e-3, 1e-6, 1e-20, 0.0])
def test_a_weak_neuron_does_not_widen_all_membranes(unit: str, weak: float) -> None:
    network = build(ModelConfig(unit=unit, hidden=(30,), drive_bias=True), 20, 3, "mean")
    with torch.no_grad():
        network.layers[0].array.bias.fill_(0.1)
        plain = compile(network, ChipConfig(max_steps=8)).membrane_bits
        network.layers[0].array.weight[4] *= weak
    assert compile(network, ChipConfig(max_steps=8)).membrane_bits <= max(plain, 26)


def test_membranes_that_would_be_too_wide_are_refused() -> None:
    network = build(ModelConfig(unit="snu", hidden=(9,)), 600, 3, "mean")
    with pytest.raises(UsageError, match=r"would need .* bits.*--weight-bits"):
        compile(network, ChipConfig(weight_bits=16, fraction_bits=8, max_steps=1024))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_bits": 1},
        {"decay_bits": 0},
        {"lanes": 48},
        {"lanes": 2048},
        {"queue": 3},
        {"clock_MHz": 0.0},
        {"clock_MHz": 1000.0},
        {"max_steps": 0},
    ],
)
def test_a_chip_that_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ChipConfig(**wrong)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    program = compile(exact("snu"))
    path = tmp_path / "program.npz"
    save_program(program, path)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="spikebridge export"):
        load_program(tmp_path / "none.npz")
    for cut in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a whole program"):
            load_program(path)
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 0xFF
    path.write_bytes(bytes(changed))
    with pytest.raises(ValueError, match="not a whole program"):
        load_program(path)


def retold(path: Path, change: Callable[[dict, dict], object]) -> None:
    """A program's file with another head or other arrays."""
    with np.load(path) as archive:
        arrays = dict(archive)
    head = json.loads(arrays.pop("head").tobytes())
    text = change(head, arrays)
    text = text if isinstance(text, str) else json.dumps(head)
    arrays["head"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(path, **arrays)


WRONG = {
    "lanes 0": lambda head, _: head["chip"].update(lanes=0),
    "unknown key": lambda head, _: head["chip"].update(glow=1),
    "layers [5]": lambda head, _: head.update(layers=[5]),
    "layers none": lambda head, _: head.update(layers=None),
    "weight_bits inf": lambda head, _: head.update(weight_bits=math.inf),
    "weight_bits text": lambda head, _: head.update(weight_bits="8"),
    "weight_bits half": lambda head, _: head.update(weight_bits=8.5),
    "weight_bits bool": lambda head, _: head.update(decay_bits=True),
    "inputs text": lambda head, _: head["layers"][0].update(inputs="6"),
    "inputs huge": lambda head, _: head["layers"][0].update(inputs=10**30),
    "slope none": lambda head, _: head["layers"][0].update(slope=None),
    "reset": lambda head, _: head["layers"][0].update(reset="sometimes"),
    "reduce": lambda head, _: head["layers"][-1].update(reduce="first"),
    "recurrent": lambda head, _: head["layers"][0].update(recurrent="no"),
    "name": lambda head, _: head["layers"][0].update(name=7),
    "geometry": lambda head, _: head["layers"][0].update(geometry=[1]),
    "0-d": lambda _, arrays: arrays.update({"0.weight": np.int32(3)}),
    "1-d": lambda _, arrays: arrays.update({"0.weight": np.arange(3, dtype=np.int32)}),
    "0-d bias": lambda _, arrays: arrays.update({"0.bias": np.int64(3)}),
    "no neurons": lambda _, arrays: arrays.update({"0.weight": np.zeros((6, 0), np.int32)}),
    "floats": lambda _, arrays: arrays.update({"0.weight": arrays["0.weight"] * 1.0}),
    "text": lambda _, arrays: arrays.update({"0.bias": arrays["0.bias"].astype(str)}),
    "nan": lambda _, arrays: arrays.update({"0.scale": arrays["0.scale"] * math.nan}),
    "missing": lambda _, arrays: arrays.pop("0.scale"),
    "deep": lambda _, __: "[" * 100_000,
    "no json": lambda _, __: "{",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_holds_no_program_is_a_value_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "program.npz"
    save_program(compile(exact("snu")), path)
    load_program(path)
    retold(path, WRONG[name])
    with pytest.raises(ValueError, match="program") as caught:
        load_program(path)
    assert str(path) in str(caught.value)


def test_a_convolution_of_absurd_sides_is_refused_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [make.conv(rng, (1, 8, 8), 2)]
    layers.append(make.dense(rng, layers[0].neurons, 2, reduce="sum"))
    path = tmp_path / "program.npz"
    for key, value in (
        ("in_shape", [1, 10**9, 10**9]),
        ("in_shape", [1, 8]),
        ("out_shape", [2, "6", 6]),
        ("kernel", 0),
        ("stride", 2.0),
        ("padding", -1),
        ("pool", 10**30),
    ):
        save_program(make.finish(rng, layers), path)
        retold(path, lambda head, _, k=key, v=value: head["layers"][0]["geometry"].update({k: v}))
        with pytest.raises(ValueError, match="not a whole program"):
            load_program(path)


def test_any_damage_to_a_program_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "program.npz"
    save_program(compile(exact("snu")), path)
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for at in draw.integers(0, len(whole), draw.integers(1, 4)):
            changed[at] = draw.integers(256)
        path.write_bytes(bytes(changed))
        with suppress(ValueError):
            load_program(path)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "program.npz"
    monkeypatch.setattr("spikebridge.chip.files.FORMAT", "spikebridge-program-0")
    save_program(compile(exact("snu")), path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 'spikebridge-program-0'"):
        load_program(path)


def test_a_program_that_could_overflow_is_refused(tmp_path: Path) -> None:
    program = compile(exact("binary-ci"), ChipConfig(max_steps=20))
    for wrong in ({"membrane_bits": program.membrane_bits - 1}, {"max_steps": 4000}):
        save_program(replace(program, **wrong), tmp_path / "program.npz")
        with pytest.raises(ValueError, match="may overflow"):
            load_program(tmp_path / "program.npz")


def test_parts_that_do_not_fit_together_are_refused() -> None:
    program = compile(exact("snu"))
    first, second, readout = program.layers
    for layers, words in (
        ((first, second), "must be the readout"),
        ((readout,), "a hidden layer and a readout"),
        ((first, readout), "6 inputs, layer1 12 neurons"),
        ((replace(first, weight=first.weight * 300), second, readout), "into 8 bits"),
        ((replace(first, decay=first.decay + 999), second, readout), "lie in 0 to 256"),
        ((replace(first, bias=first.bias[:3]), second, readout), "one per neuron"),
        ((replace(first, threshold=first.threshold + (1 << 40)), second, readout), "threshold"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(program, layers=layers).check()


def test_bits_cannot_be_changed_after_compilation() -> None:
    with pytest.raises(ValueError, match="compile the network again"):
        with_chip(compile(exact("snu")), weight_bits=4)
