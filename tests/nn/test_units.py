"""Laws of the unit family.  A new unit joins by a row in `CASES`."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from spikebridge.nn.gradients import FORMULAS, Surrogate
from spikebridge.nn.scan import loop, scan
from spikebridge.nn.units import KINDS, Rule, SNUnit, State, Unit, make_unit, step
from spikebridge.settings.names import BINARY, unit_class

N = 7
CASES = [
    (kind, g, reset)
    for kind, g, reset in itertools.product(
        KINDS, ("identity", "relu", "leaky_relu", "elu"), ("gate", "subtract", "trained", "none")
    )
    if not (kind == "li-snu" and reset != "gate")  # lateral inhibition is itself a reset
    and (kind not in BINARY or (g, reset) == ("identity", unit_class(kind).reset))
]
laws = pytest.mark.parametrize(("kind", "g", "reset"), CASES, ids=lambda v: v)
recurrence = pytest.mark.parametrize("recurrent", [False, True], ids=["ff", "rec"])


def made(kind: str, g: str, reset: str, **options) -> Unit:
    if kind == "softsnu":
        options.pop("surrogate", None)
    if reset == "trained":  # subtraction of the threshold in force
        reset, options["subtract"] = "subtract", reset
    return make_unit(kind, N, g=g, reset=reset, **without_own(kind, options)).double()


def without_own(kind: str, options: dict) -> dict:
    """Options without those that a unit's name settles."""
    own = ("decay", "train_decay", "per_unit") if kind in BINARY else ()
    return {name: value for name, value in options.items() if name not in own}


def drive_of(t: int, b: int = 3) -> Tensor:
    return torch.randn(t, b, N, dtype=torch.float64) * 2


def matrix(recurrent: bool) -> Tensor | None:
    return torch.randn(N, N, dtype=torch.float64) * 0.5 if recurrent else None


@laws
@recurrence
def test_a_sequence_may_be_cut_anywhere(kind: str, g: str, reset: str, recurrent: bool) -> None:
    unit, drive, weights = made(kind, g, reset), drive_of(9), matrix(recurrent)
    whole, after = scan(unit, drive, weights)
    first, state = scan(unit, drive[:4], weights)
    second, last = scan(unit, drive[4:], weights, state)
    assert torch.equal(whole, torch.cat([first, second]))
    assert all(torch.equal(a, b) for a, b in zip(after, last, strict=True) if a is not None)


@laws
@recurrence
def test_the_future_does_not_act_on_the_past(
    kind: str, g: str, reset: str, recurrent: bool
) -> None:
    unit, drive, weights = made(kind, g, reset), drive_of(8), matrix(recurrent)
    changed = torch.cat([drive[:5], drive_of(3)])
    assert torch.equal(scan(unit, drive, weights)[0][:5], scan(unit, changed, weights)[0][:5])


@laws
@recurrence
def test_samples_of_a_batch_do_not_act_on_each_other(
    kind: str, g: str, reset: str, recurrent: bool
) -> None:
    unit, drive, weights = made(kind, g, reset), drive_of(8), matrix(recurrent)
    together = scan(unit, drive, weights)[0]
    alone = torch.cat([scan(unit, drive[:, b : b + 1], weights)[0] for b in range(3)], dim=1)
    # A recurrent product may round differently for another batch size.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12 if recurrent else 0)


@laws
@recurrence
def test_nothing_that_was_passed_in_is_changed(
    kind: str, g: str, reset: str, recurrent: bool
) -> None:
    unit, drive, weights = made(kind, g, reset), drive_of(5), matrix(recurrent)
    state = scan(unit, drive_of(2))[1]
    kept = [x.clone() for x in (drive, *state)]
    before = {name: value.clone() for name, value in unit.state_dict().items()}
    scan(unit, drive, weights, state)
    assert all(torch.equal(a, b) for a, b in zip(kept, (drive, *state), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in unit.state_dict().items())


@laws
def test_outputs_are_spikes_or_lie_between(kind: str, g: str, reset: str) -> None:
    unit = made(kind, g, reset)
    y = scan(unit, drive_of(40))[0]
    if unit.spiking:
        assert set(y.unique().tolist()) == {0.0, 1.0}
    else:
        assert bool(((y > 0) & (y < 1)).all())


@laws
def test_without_input_the_membrane_decays_in_closed_form(kind: str, g: str, reset: str) -> None:
    unit = made(kind, g, "none" if kind == "softsnu" else reset, decay=0.9, threshold=5.0)
    start = unit.initial_state(2, torch.float64)
    unit.membrane(start).copy_(torch.rand(2, N))  # positive and below threshold
    trace = loop(unit, torch.zeros(6, 2, N, dtype=torch.float64), None, start)
    assert float(unit.decay) == pytest.approx({"binary-di": 0, "binary-ci": 1}.get(kind, 0.9))
    expected = torch.stack([unit.membrane(start) * unit.decay**k for k in range(1, 7)])
    torch.testing.assert_close(trace.s, expected)


@laws
@recurrence
def test_gradients_agree_with_finite_differences(
    kind: str, g: str, reset: str, recurrent: bool
) -> None:
    """With the step replaced by its smooth function, the gradients are exact: so is the wiring."""
    unit = made(
        kind,
        g,
        reset,
        surrogate=Surrogate("arctan", 0.7, 0.9).relax(),
        train_decay=True,
        per_unit=True,
    )
    start = unit.initial_state(2, torch.float64)
    names = [name for name, _ in unit.named_parameters()]

    def run(drive: Tensor, s: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights, rest = (rest[0], rest[1:]) if recurrent else (None, rest)
        state = start._replace(s=s, y=y)
        call = lambda *a: loop(unit, *a)  # noqa: E731
        parameters = dict(zip(names, rest, strict=True))
        trace = torch.func.functional_call(
            _Call(unit, call),
            {f"unit.{k}": v for k, v in parameters.items()},
            (drive, weights, state),
        )
        return trace.y, trace.state.s

    # Away from the kinks of g at 0 and from ties of the maximum.
    leaves = [drive_of(3, 2), *(torch.rand_like(part) for part in (start.s, start.y))]
    leaves += [matrix(True)] if recurrent else []
    leaves += [p.detach().clone() for p in unit.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(run, leaves, atol=1e-6)


class _Call(torch.nn.Module):
    def __init__(self, unit: Unit, call) -> None:
        super().__init__()
        self.unit, self.call = unit, call

    def forward(self, *args):
        return self.call(*args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_goes_in_and_comes_out(kind: str, dtype: torch.dtype) -> None:
    unit = make_unit(kind, N, **without_own(kind, {"train_decay": True})).to(dtype)
    drive = (torch.randn(5, 2, N) * 2).to(dtype).requires_grad_()
    y, state = scan(unit, drive)
    y2, _ = scan(unit, drive, None, state)
    (y.sum() + y2.sum()).backward()
    assert y.dtype == drive.grad.dtype == dtype
    assert state.s.dtype == torch.promote_types(dtype, torch.float32)
    assert all(bool(p.grad.isfinite().all()) for p in unit.parameters() if p.requires_grad)


@pytest.mark.parametrize("per_unit", [False, True])
def test_a_trained_decay_stays_inside_its_bounds_whatever_the_optimiser_does(
    per_unit: bool,
) -> None:
    unit = make_unit("snu", N, train_decay=True, per_unit=per_unit)
    assert unit.decay.shape == ((N,) if per_unit else ())
    torch.testing.assert_close(unit.decay, torch.full_like(unit.decay, 0.8))
    for value in (-1e4, -200.0, 0.0, 200.0, 1e4):
        with torch.no_grad():
            unit.decay_logit.fill_(value)
        assert bool(((unit.decay > 0) & (unit.decay <= 1)).all())


def test_decays_may_be_spread_over_the_units() -> None:
    spread = torch.linspace(0.3, 0.95, N)
    torch.testing.assert_close(make_unit("snu", N, decay=spread, train_decay=True).decay, spread)
    assert make_unit("snu", N, decay=1.0).decay.item() == 1.0


def test_a_threshold_that_is_not_trained_gets_no_gradient() -> None:
    unit = make_unit("snu", N, bias=False, threshold=0.3)
    assert not unit.threshold.requires_grad
    assert not list(unit.parameters())
    assert torch.equal(unit.threshold, torch.full((N,), 0.3))
    assert unit.requires_grad_(True).threshold.requires_grad is False


def test_lateral_inhibition_lets_one_spike_reset_its_sample_and_no_other() -> None:
    unit = make_unit("li-snu", 3, decay=1.0)
    s = torch.full((2, 3), 0.5)
    y = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    state = unit.step(State(y, s), torch.zeros(2, 3), unit.params(torch.float32))
    assert state.s.tolist() == [[0.0] * 3, [0.5] * 3]


@pytest.mark.parametrize("backend", ["loop", "native"])
def test_binary_units_are_the_equations_of_the_paper(backend: str) -> None:
    """Yin et al. 2017: V = I + b, s = 1[V > 1]; and V(t) = V(t-1) - s(t-1) + I(t) from V(0) = 0."""
    drive = torch.randint(-8, 12, (40, 3, N)) / 4  # quarters, so that 1 itself is met: no spike
    y, _ = scan(make_unit("binary-di", N), drive, backend=backend)
    assert torch.equal(y, (drive > 1).float())
    assert bool((drive == 1).any())
    y, state = scan(make_unit("binary-ci", N), drive, backend=backend)
    v, s = torch.zeros(3, N), torch.zeros(3, N)
    for now, spikes in zip(drive, y, strict=True):
        v = v - s + now
        s = (v > 1).float()
        assert torch.equal(spikes, s)
    assert torch.equal(state.s, v)


def test_continuous_integration_takes_its_threshold_off_and_leaves_it_fixed() -> None:
    unit = make_unit("binary-ci", N, threshold=0.25)
    assert unit.rule.amount == 0.25
    assert not unit.threshold.requires_grad
    drive = torch.full((4 * 40, 1, N), 0.0625)
    assert scan(unit, drive)[0].sum(0).unique().item() == 39.0  # what was put in, in thresholds
    assert make_unit("binary-di", N).threshold.requires_grad


def rate(threshold: float, drive: float = 0.3, steps: int = 1000, **options: Any) -> float:
    unit = make_unit(
        "snu", 1, g="identity", decay=1.0, threshold=threshold, reset="subtract", **options
    )
    return scan(unit.double(), torch.full((steps, 1, 1), drive).double())[0].mean().item()


@pytest.mark.parametrize("subtract", ["initial", "trained"])
def test_what_is_put_in_comes_out_in_thresholds(subtract: str) -> None:
    """Without a leak, drive / threshold spikes a step, as in other libraries of spiking neurons."""
    assert rate(0.5, subtract=subtract) == pytest.approx(0.600, abs=0.002)
    assert rate(0.75, subtract=subtract) == pytest.approx(0.400, abs=0.002)
    assert rate(1.0, subtract=subtract) == pytest.approx(0.300, abs=0.002)
    assert rate(0.5, amount=1.0) == pytest.approx(0.300, abs=0.002)  # a number of one's own


@pytest.mark.parametrize("backend", ["loop", "native"])
@pytest.mark.parametrize("subtract", ["initial", "trained"])
def test_a_trained_threshold_is_taken_off_only_where_asked_for(subtract: str, backend: str) -> None:
    options = {"g": "identity", "decay": 0.9, "threshold": 0.5}
    unit = make_unit("snu", N, reset="subtract", subtract=subtract, **options)
    with torch.no_grad():
        unit.threshold.copy_(torch.linspace(-0.2, 2.0, N))
    drive = torch.randn(30, 4, N, generator=torch.Generator().manual_seed(1)) + 0.5
    y, state = scan(unit, drive, backend=backend)
    taken = unit.threshold if subtract == "trained" else torch.full((N,), 0.5)
    s, last, wanted = torch.zeros(4, N), torch.zeros(4, N), []
    for now in drive:
        s = now + unit.decay * s - taken * last
        last = (s - unit.threshold > 0).float()
        wanted.append(last)
    assert torch.equal(y, torch.stack(wanted))
    assert torch.equal(state.s, s)


@pytest.mark.parametrize("kind", ["snu", "softsnu", "adaptive-snu"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_gradient_flows_into_the_threshold_that_is_taken_off(
    kind: str, recurrent: bool
) -> None:
    """Of the threshold in both places, by numbers."""
    surrogate = None if kind == "softsnu" else Surrogate("sigmoid_prime", 0.5, relaxed=True)
    options: dict[str, Any] = {"reset": "subtract", "subtract": "trained", "g": "elu"}
    unit = make_unit(kind, 3, surrogate=surrogate, train_decay=True, **options).double()
    drive = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(3, 3, dtype=torch.float64, requires_grad=True) if recurrent else None

    def run(drive: Tensor, threshold: Tensor, logit: Tensor) -> Tensor:
        lent = {"threshold": threshold, "decay_logit": logit}
        return torch.func.functional_call(_Scanned(unit, matrix), {
            f"unit.{name}": value for name, value in lent.items()}, (drive,))  # fmt: skip

    leaves = (drive, *(p.detach().clone().requires_grad_() for p in (unit.threshold,
                                                                   unit.decay_logit)))  # fmt: skip
    assert torch.autograd.gradcheck(run, leaves)


class _Scanned(torch.nn.Module):
    def __init__(self, unit: Any, matrix: Tensor | None) -> None:
        super().__init__()
        self.unit, self.matrix = unit, matrix

    def forward(self, drive: Tensor) -> Tensor:
        return scan(self.unit, drive, self.matrix, backend="loop")[0]


def test_rules_and_units_say_what_they_take_off() -> None:
    assert make_unit("snu", N, threshold=0.25, reset="subtract").rule.amount == 0.25
    assert make_unit("snu", N, threshold=0.25, reset="subtract", amount=2.0).rule.amount == 2.0
    assert make_unit("snu", N, threshold=-0.25).rule.amount is None  # nothing is taken off
    trained = make_unit("snu", N, reset="subtract", subtract="trained")
    assert "reset=subtract the threshold" in repr(trained)
    assert "reset=subtract 0.25" in repr(make_unit("snu", N, threshold=0.25, reset="subtract"))
    old = Rule(reset="subtract", amount=1.0)  # as in pickles of before, which have no `subtract`
    del old.__dict__["subtract"]
    assert not pickle.loads(pickle.dumps(old)).trained
    with pytest.raises(ValueError, match=r"needs an amount; take the rule of a unit"):
        step(Rule(reset="subtract"), trained.initial_state(1, torch.float32), torch.zeros(1, N),
             trained.params(torch.float32)._replace(amount=None))  # fmt: skip


def test_discontinuous_integration_forgets() -> None:
    """Steps do not act on one another, so one step in training stands for any number in use."""
    unit, drive = make_unit("binary-di", N), torch.randn(5, 3, N).requires_grad_()
    start = State(torch.ones(3, N), torch.randn(3, N))
    steps = [scan(unit, one[None], None, start)[0] for one in drive]
    assert torch.equal(scan(unit, drive)[0], torch.cat(steps))
    (grad,) = torch.autograd.grad(scan(unit, drive)[0][3].sum(), drive)
    assert torch.equal(grad[3], 0.5 * ((drive[3] > 0) & (drive[3] < 2)))
    assert not grad[[0, 1, 2, 4]].any()


def test_activity_raises_an_adaptive_threshold() -> None:
    drive = torch.full((60, 1, 1), 1.5)
    plain = scan(make_unit("snu", 1), drive)[0].mean()
    adaptive = scan(make_unit("adaptive-snu", 1), drive)[0].mean()
    assert 0 < adaptive < plain


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_surrogate_decides_the_gradient_and_not_the_spikes(formula: str) -> None:
    drive = drive_of(6).requires_grad_()
    plain = scan(made("snu", "identity", "gate"), drive)[0]
    other = scan(made("snu", "identity", "gate", surrogate=Surrogate(formula, 0.4)), drive)[0]
    assert torch.equal(plain, other)
    grad_a = torch.autograd.grad(plain.sum(), drive)[0]
    grad_b = torch.autograd.grad(other.sum(), drive)[0]
    assert not torch.equal(grad_a, grad_b)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "lif"}, ValueError, "not known; choose one of"),
        ({"size": 0}, ValueError, "at least one unit"),
        ({"decay": 0.0}, ValueError, r"decay must be in \(0, 1\]"),
        ({"decay": 1.1}, ValueError, r"decay must be in \(0, 1\]"),
        ({"decay": float("nan")}, ValueError, r"decay must be in \(0, 1\]"),
        ({"decay": 1.0, "train_decay": True}, ValueError, "use 0.999"),
        ({"decay": torch.ones(3)}, ValueError, r"one per unit \(7,\)"),
        ({"threshold": float("inf")}, ValueError, "threshold must be finite"),
        ({"g": "tanh"}, ValueError, "not known; choose one of"),
        ({"reset": "hard"}, ValueError, "not known; choose one of"),
        ({"surrogate": 0.5}, TypeError, r"Surrogate, got 0.5; give, for example"),
        ({"kind": "softsnu", "surrogate": Surrogate()}, ValueError, "has no surrogate"),
        ({"kind": "li-snu", "reset": "subtract"}, ValueError, "by lateral inhibition"),
        ({"kind": "binary-di", "g": "relu"}, ValueError, "binary-di has g=identity, got g=relu"),
        ({"kind": "binary-di", "reset": "subtract"}, ValueError, "has reset=none, got reset=sub"),
        ({"kind": "binary-ci", "reset": "none"}, ValueError, "has reset=subtract"),
        ({"kind": "binary-ci", "decay": 0.9}, ValueError, "binary-ci has decay=1.0, got decay=0.9"),
        ({"kind": "binary-di", "decay": torch.zeros(N)}, ValueError, "has decay=0.0"),
        ({"kind": "binary-di", "train_decay": True}, ValueError, "has train_decay=False"),
        ({"kind": "binary-di", "memoryless": False}, ValueError, "has memoryless=True"),
        ({"kind": "binary-ci", "slope": 0.3}, ValueError, "binary-ci has slope=0.1, got slope=0.3"),
        ({"kind": "binary-ci", "amount": 3.0}, ValueError, "has amount=1.0, got amount=3.0"),
        ({"kind": "binary-ci", "threshold": -1.0}, ValueError, "amount must be finite and not neg"),
        ({"reset": "subtract", "threshold": -0.5}, ValueError, "threshold=-0.5: reset=.*takes it"),
        ({"reset": "subtract", "subtract": "last"}, ValueError, r"subtract='last' is not known"),
        ({"subtract": "trained"}, ValueError, "got reset='gate'.*use reset=\"subtract\""),
        ({"reset": "subtract", "subtract": "trained", "amount": 1.0}, ValueError, "leave amount"),
        ({"kind": "binary-ci", "subtract": "trained"}, ValueError, "binary-ci has subtract=init"),
        ({"slope": -0.1}, ValueError, "slope must be finite and not negative"),
        ({"kind": "adaptive-snu", "rho": 1.0}, ValueError, r"rho must be in \[0, 1\)"),
        ({"kind": "adaptive-snu", "beta": -1.0}, ValueError, "beta must be finite"),
    ],
)
def test_bad_units_are_refused(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_unit(**{"kind": "snu", "size": N, **options})


@pytest.mark.parametrize("backend", ["auto", "loop", "native"])
@pytest.mark.parametrize(
    ("drive", "state", "error", "message"),
    [
        (torch.zeros(4, N), None, ValueError, r"drive must be \(T, B, 7\)"),
        (torch.zeros(4, 2, N + 1), None, ValueError, r"drive must be \(T, B, 7\)"),
        (torch.zeros(4, 2, N, dtype=torch.int64), None, TypeError, "must be floating point"),
        (
            torch.zeros(4, 2, N),
            State(torch.zeros(3, N), torch.zeros(3, N)),
            ValueError,
            r"state.y must be \(2, 7\)",
        ),
        (
            torch.zeros(4, 2, N),
            State(torch.zeros(2, N), torch.zeros(2, N).double()),
            ValueError,
            "state.s must be",
        ),
    ],
)
def test_bad_operands_are_refused(
    backend: str, drive: Tensor, state: State | None, error: type, message: str
) -> None:
    if backend == "native" and drive.dtype == torch.int64:
        error, message = RuntimeError, "cannot serve"
    with pytest.raises(error, match=message):
        scan(make_unit("snu", N), drive, None, state, backend=backend)


def test_bad_matrices_and_adaptations_are_refused() -> None:
    unit, drive = make_unit("snu", N), torch.zeros(4, 2, N)
    with pytest.raises(ValueError, match=r"recurrent must be \(7, 7\)"):
        scan(unit, drive, torch.zeros(N, N + 1))
    with pytest.raises(ValueError, match="on meta"):
        scan(unit, drive, torch.zeros(N, N, device="meta"))
    with pytest.raises(TypeError, match="must be floating point"):
        scan(unit, drive, torch.zeros(N, N, dtype=torch.int64))
    adaptive = make_unit("adaptive-snu", N)
    state = adaptive.initial_state(2, torch.float32)
    with pytest.raises(ValueError, match=r"state.s must be \(2, 14\) torch.float32"):
        scan(adaptive, drive, None, state._replace(s=torch.zeros(2, N)))
    with pytest.raises(ValueError, match=r"state.s must be \(2, 7\)"):
        scan(unit, drive, None, state)


def test_a_slow_leak_survives_low_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        unit = make_unit("snu", N, decay=0.999).to(dtype)
        assert unit.threshold.dtype == dtype
        assert unit.decay.item() == pytest.approx(0.999)
    assert make_unit("snu", N).double().decay.dtype == torch.float64


def test_only_memoryless_units_have_no_decay() -> None:
    assert SNUnit(N, Rule(), memoryless=True).decay.item() == 0.0
    with pytest.raises(ValueError, match="a memoryless unit has no decay to train"):
        SNUnit(N, Rule(), memoryless=True, train_decay=True)


def test_rules_are_frozen_and_backends_known() -> None:
    with pytest.raises(AttributeError):
        Rule().g = "relu"  # type: ignore[misc]
    with pytest.raises(ValueError, match="backend='cuda' is not known"):
        scan(make_unit("snu", N), torch.zeros(1, 1, N), backend="cuda")
