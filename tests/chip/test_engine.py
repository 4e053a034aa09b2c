"""The engine in C++ equals the definition in numpy, in every number and every count."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.chip_programs import answers, conv, dense, finish, programs, spikes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikebridge.chip import engine as module
from spikebridge.chip.engine import Engine
from spikebridge.chip.program import ChipCounts, Program

BUILT = module.missing is None
BACKENDS = ["numpy", *(["native"] if BUILT else [])]
SETS = module._native.instruction_sets() if BUILT else []
needs_native = pytest.mark.skipif(not BUILT, reason=f"no kernel to compare: {module.missing}")
quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Any:
    before = module._native.instruction_set()
    module._native.choose_instruction_set(request.param)
    yield request.param
    module._native.choose_instruction_set(before)


def small(reduce: str = "last", **kinds: Any) -> Program:
    rng = np.random.default_rng(3)
    layers = [dense(rng, 6, 5, **kinds), dense(rng, 5, 3, reduce=reduce)]
    return finish(rng, layers, max_steps=4)


def state(engine: Engine) -> list[Any]:
    """All that can be seen of an engine."""
    arrays = [a.tolist() for a in (*engine.spikes, *engine.membranes)]
    return [arrays, engine.counts]


def same_steps(program: Program, samples: list[list[np.ndarray]]) -> None:
    engine, total = Engine(program, "native"), ChipCounts()
    for events, wanted in zip(samples, answers(program, samples), strict=True):
        for at, step in enumerate(wanted):
            found = engine.step(events[at], last=at == len(wanted) - 1)
            total += step.counts
            assert found.dtype == np.int64
            assert found.tolist() == step.outputs.tolist()
            for layer, s, y in zip(step.layers, engine.membranes, engine.spikes, strict=False):
                assert s.tolist() == layer.membrane.tolist()
                assert y.tolist() == layer.spikes.tolist()
            assert engine.counts == total


@needs_native
@quick
@given(program=programs(), seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.05, 0.3, 1]))
def test_steps_equal_the_definition(
    instruction_set: str, program: Program, seed: int, density: float
) -> None:
    same_steps(program, spikes(np.random.default_rng(seed), program, density=density))


@needs_native
@pytest.mark.parametrize("bits", [2, 7, 8, 9, 12, 16])
@pytest.mark.parametrize("recurrent", [False, True])
def test_wide_layers_and_wide_weights_equal_the_definition(
    instruction_set: str, bits: int, recurrent: bool
) -> None:
    """Every size of block, tails, and more events than the 255 that 16 bits can sum."""
    rng, kinds = np.random.default_rng(bits), {"weight_bits": bits}
    layers = [
        dense(rng, 700, 611, **kinds, reset="subtract", slope=3, recurrent=recurrent),
        dense(rng, 611, 289, **kinds, reset="gate", recurrent=recurrent),
        dense(rng, 289, 33, **kinds, reduce="sum"),
    ]
    program = finish(rng, layers, weight_bits=bits, fraction_bits=2, max_steps=3, lanes=64)
    for density in (0.02, 0.3, 1):
        same_steps(program, spikes(rng, program, samples=1, density=density))


@needs_native
def test_sums_of_the_same_sign_do_not_overflow(instruction_set: str) -> None:
    rng = np.random.default_rng(0)
    for value in (-128, 127):
        layers = [dense(rng, 1000, 40, weight_bits=8), dense(rng, 40, 2, reduce="last")]
        layers[0].weight[:] = value
        program = finish(rng, layers, weight_bits=8, fraction_bits=8, max_steps=2)
        same_steps(program, [[np.arange(1000)] * 2])


@needs_native
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 40])
@pytest.mark.parametrize(
    ("stride", "padding", "pool"), [(1, 1, 1), (2, 0, 2), (3, 3, 1), (1, 2, 3)]
)
def test_convolutions_equal_the_definition(
    instruction_set: str, channels: int, stride: int, padding: int, pool: int
) -> None:
    rng = np.random.default_rng(channels)
    first = conv(rng, (2, 13, 11), channels, kernel=3, stride=stride, padding=padding, pool=pool)
    assert first.geometry is not None
    second = conv(rng, first.geometry.out_shape, 7, kernel=2, padding=1, weight_bits=12)
    layers = [first, second, dense(rng, second.neurons, 5, reduce="each")]
    program = finish(rng, layers, weight_bits=12, fraction_bits=1, max_steps=3, lanes=8)
    same_steps(program, spikes(rng, program))


def stacked(program: Program, rng: np.random.Generator, samples: int = 7) -> np.ndarray:
    steps = program.max_steps or 5
    return rng.random((steps, samples, program.inputs)) < 0.3


@needs_native
@quick
@given(program=programs(), seed=st.integers(0, 2**32 - 1))
def test_a_batch_equals_its_samples_on_any_number_of_threads(program: Program, seed: int) -> None:
    x = stacked(program, np.random.default_rng(seed))
    native, wanted = Engine(program, "native"), Engine(program, "numpy").run(x, counts=True)
    for dtype in (bool, np.uint8, np.float32, np.float64, np.int64):
        found = native.run(x.astype(dtype), counts=True, threads=1)
        assert np.array_equal(found.outputs, wanted.outputs)
        assert found.counts == wanted.counts
    found = native.run(x, threads=2)
    assert np.array_equal(found.outputs, wanted.outputs)
    assert found.counts is None
    for sample in range(x.shape[1]):
        for step in range(len(x)):
            out = native.step(np.flatnonzero(x[step, sample]), last=step == len(x) - 1)
            if program.readout.reduce == "each":
                assert out.tolist() == wanted.outputs[step, sample].tolist()
        assert (
            out.tolist()
            == wanted.outputs.reshape(-1, x.shape[1], program.outputs)[-1, sample].tolist()
        )
    assert native.counts == wanted.counts


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_does_not_disturb_the_sample_under_way(backend: Any) -> None:
    program, events = small("sum", recurrent=True, reset="subtract"), np.array([0, 2, 5])
    alone, disturbed = Engine(program, backend), Engine(program, backend)
    for _ in range(3):
        assert alone.step(events).tolist() == disturbed.step(events).tolist()
        before = state(disturbed)
        disturbed.run(np.ones((2, 3, 6), np.uint8))
        assert state(disturbed) == before == state(alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_belong_to_the_caller_and_reset_is_silence(backend: Any) -> None:
    engine = Engine(small("each"), backend)
    silence = engine.spikes, engine.membranes
    first = engine.step(np.array([0, 1]))
    kept = first.copy()
    second = engine.step([2, 3])
    assert first.tolist() == kept.tolist()
    engine.reset()
    for now, before in zip((engine.spikes, engine.membranes), silence, strict=True):
        assert [a.tolist() for a in now] == [a.tolist() for a in before]
    assert engine.counts.steps == 2
    assert engine.step(np.array([0, 1])).tolist() == kept.tolist()
    assert engine.step(np.array([9, 2, 9, 3])[1::2]).tolist() == second.tolist()  # with gaps


REFUSED = [
    ([6], r"events\[0\]=6: .*from 0 to 5; leave out"),
    ([-1, 2], r"events\[0\]=-1"),
    ([0, 1 << 40], r"events\[1\]=1099511627776"),
    (np.array([2**64 - 1], np.uint64), r"events\[0\]=9223372036854775807"),
    ([3, 1], r"events\[1\]=1 after 3: numbers must rise.*np.unique"),
    ([2, 2], r"events\[1\]=2 after 2"),
    ([0, 1, 2, 3, 4, 5, 5], r"events\[6\]=5 after 5"),
    ([0.0, 1.0], "float64: they must be whole numbers.*flatnonzero"),
    (np.zeros(0), "float64"),
    (np.ones(6, bool), "bool: they must be whole numbers.*flatnonzero"),
    ([[0, 1]], r"shape \(1, 2\): .*flatnonzero"),
    (3, r"shape \(\)"),
    (["a"], "must be whole numbers"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("events", "message"), REFUSED)
def test_refused_events_change_nothing(backend: Any, events: Any, message: str) -> None:
    program = small("sum", recurrent=True)
    engine, other = Engine(program, backend), Engine(program, backend)
    assert engine.step([1, 4]).tolist() == other.step([1, 4]).tolist()
    before = state(engine)
    for last in (False, True):
        with pytest.raises(ValueError, match=message):
            engine.step(events, last)
    assert state(engine) == before
    assert engine.step([0, 5]).tolist() == other.step([0, 5]).tolist()
    assert state(engine) == state(other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_steps_than_the_membranes_bear_are_refused(backend: Any) -> None:
    program = replace(small("sum"), max_steps=2)
    engine = Engine(program, backend)
    engine.step([1])
    engine.step([1])
    before = state(engine)
    with pytest.raises(ValueError, match=r"step 3 of a sample.*max_steps=2; end the sample"):
        engine.step([1])
    assert state(engine) == before
    engine.reset()
    engine.step([1])
    engine.step([1], last=True)
    engine.step([1])
    with pytest.raises(ValueError, match="step 3 of a sample"):
        engine.run(np.zeros((3, 1, 6), bool))
    assert Engine(replace(program, max_steps=0), backend).run(np.zeros((300, 1, 6), bool))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, np.float32, "=nan: spikes are 0 or 1; make it finite"),
        (np.inf, np.float64, "=inf"),
        (0.5, np.float16, "=0.5: .*compare it with a threshold"),
        (1 + 2**-52, np.float64, "=1.0000000000000002"),
        (2, np.uint8, "=2"),
        (-1, np.int8, "=-1"),
        (1 << 60, np.int64, "=1.15"),
        (1j, np.complex128, "complex128: spikes are numbers 0 or 1"),
    ],
)
def test_what_is_no_spike_is_refused(backend: Any, value: Any, dtype: Any, message: str) -> None:
    engine = Engine(small(), backend)
    x = np.zeros((2, 3, 6), dtype)
    x[1, 2, 4] = value
    before = state(engine)
    with pytest.raises(ValueError, match=message) as told:
        engine.run(x)
    assert dtype is np.complex128 or str(told.value).startswith("x[1, 2, 4]=")
    assert state(engine) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 5), (0, 3, 6), (1, 2, 3, 6)])
def test_batches_of_another_shape_are_refused(backend: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"it must be \(T, B, 6\)"):
        Engine(small(), backend).run(np.zeros(shape, bool))


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_batches_run(backend: Any) -> None:
    engine = Engine(small(), backend)
    assert engine.run(np.zeros((2, 0, 6), bool), counts=True)[1] == ChipCounts()
    x = np.random.default_rng(0).random((6, 5, 4)) < 0.5
    turned = x.transpose(2, 1, 0)  # (4, 5, 6), not contiguous
    wanted = engine.run(np.ascontiguousarray(turned)).outputs
    assert np.array_equal(engine.run(turned).outputs, wanted)
    read_only = np.ascontiguousarray(turned, np.float32)
    read_only.flags.writeable = False
    assert np.array_equal(engine.run(read_only).outputs, wanted)
    events = np.array([1, 2])
    events.flags.writeable = False
    engine.step(events, last=np.True_)
    with pytest.raises(ValueError, match=r"threads=-1: .*pass 0"):
        engine.run(turned, threads=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_and_spikes_may_lie_anywhere_in_memory(backend: Any) -> None:
    engine, wanted = Engine(small(), backend), np.array([0, 2, 5])
    packed = np.zeros(3, [("name", "i1"), ("number", "i8"), ("x", "f4", (2, 6))])
    packed["number"] = wanted
    shifted = np.frombuffer(b"?" + wanted.tobytes(), np.int64, 3, 1)
    first = engine.step(wanted, last=True).tolist()
    for events in (packed["number"], shifted, wanted[::-1][::-1], wanted.astype(">i8"), (0, 2, 5)):
        assert engine.step(events, last=True).tolist() == first
    packed["x"][:, :, wanted] = 1
    for x in (packed["x"], packed["x"].astype(">f4")):
        assert engine.run(x[:1]).outputs.tolist() == [first, first]


@needs_native
def test_a_program_is_copied() -> None:
    program = small()
    engine, x = Engine(program, "native"), np.ones((2, 1, 6), bool)
    before = engine.run(x).outputs
    for layer in program.layers:
        layer.weight[:] = 0
        layer.bias[:] = 0
    assert np.array_equal(engine.run(x).outputs, before)


@needs_native
def test_work_grows_with_spikes_not_with_size() -> None:
    rng = np.random.default_rng(0)
    program = finish(
        rng, [dense(rng, 512, 256), dense(rng, 256, 10, reduce="last")], lanes=64, max_steps=4
    )
    adds = []
    for events in (0, 8, 16, 512):
        engine = Engine(program, "native")
        engine.step(np.arange(events))
        counts = engine.counts
        adds.append(counts.additions - 10 * counts.spikes)
        assert counts.input_events == events
        assert counts.updates == 266
    assert adds == [0, 8 * 256, 16 * 256, 512 * 256]


@needs_native
def test_the_chip_refuses_what_does_not_fit_together() -> None:
    def chip(**other: Any) -> None:
        given = {
            "weight": np.zeros((3, 2), np.int16),
            "parameters": np.zeros((4, 2), np.int32),
            "inputs": 3,
            "slope": 0,
            "gate": True,
            "recurrent": False,
            "reduce": 0,
            "geometry": [],
        }
        module._native.Chip(4, 0, 0).add_layer(**(given | other))

    chip()
    over, image = np.zeros((4, 2), np.int32), [3, 1, 1, 1, 1, 1, 1, 0, 1]
    over[2] = 17
    chip(geometry=image)
    for other in (
        {"weight": np.zeros((4, 2), np.int16)},
        {"recurrent": True},
        {"inputs": -1},
        {"inputs": 1 << 40},
        {"parameters": np.zeros((4, 3), np.int32)},
        {"parameters": np.zeros((3, 2), np.int32)},
        {"parameters": over},
        {"slope": 17},
        {"reduce": 4},
        {"geometry": [3, 1]},
        {"geometry": [*image[:6], 0, 0, 1]},
        {"geometry": [*image[:7], -1, 1]},
        {"geometry": [*image[:8], 0]},
    ):
        with pytest.raises(ValueError, match="not a program of the chip"):
            chip(**other)
    for bits in ((0, 0, 0), (15, 0, 0), (4, -1, 0), (4, 9, 0), (4, 0, -1)):
        with pytest.raises(ValueError, match="not a program of the chip"):
            module._native.Chip(*bits)
    bare = module._native.Chip(4, 0, 0)
    with pytest.raises(ValueError, match="the last layer must be the readout"):
        bare.start()
    with pytest.raises(RuntimeError, match="no program yet"):
        bare.step(np.zeros(1, np.int64), False)


def test_without_kernels_native_says_why_and_auto_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing", "not built here")
    monkeypatch.setattr(module, "_warned", set())
    with pytest.raises(RuntimeError, match='backend="native" cannot serve: not built here'):
        Engine(small(), "native")
    with pytest.warns(UserWarning, match="runs in numpy, slowly: not built here"):
        engine = Engine(small())
    assert engine.backend == "numpy"
    assert Engine(small()).backend == "numpy"  # said once
    with pytest.raises(ValueError, match="backend='gpu' is not known; choose one of"):
        Engine(small(), "gpu")  # type: ignore[arg-type]


@needs_native
def test_auto_is_native_where_it_is_built() -> None:
    assert Engine(small()).backend == "native"


def test_the_engine_runs_without_torch() -> None:
    code = "import sys, spikebridge.chip.engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
