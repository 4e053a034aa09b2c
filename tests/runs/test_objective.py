"""What training minimises: the task's loss or a squared hinge, and a price on activity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import left, tiny
from helpers.toy_music import toy_songs, write_mat

from spikebridge import data as tasks
from spikebridge.base.records import UsageError
from spikebridge.data.task import Batch
from spikebridge.nn.network import LayerTrace, build
from spikebridge.runs import rundir, training
from spikebridge.runs.objective import Objective, activity, squared_hinge
from spikebridge.settings.config import Config, TrainConfig, override, preset
from spikebridge.settings.model import ModelConfig
from spikebridge.settings.tasks import DigitsConfig, MusicConfig


def test_a_squared_hinge_is_torchs_of_the_same_name() -> None:
    output, target = torch.randn(20, 5) * 2, torch.randint(5, (20,))
    sign = 2.0 * torch.nn.functional.one_hot(target, 5) - 1
    wanted = torch.nn.functional.relu(1 - sign * output).pow(2).mean()
    torch.testing.assert_close(squared_hinge(output, target), wanted)
    assert squared_hinge(2 * sign, target) == 0  # beyond the margin nothing is to be gained
    by_two = torch.nn.functional.multi_margin_loss(output, target, p=2)
    assert (by_two == 0) <= (squared_hinge(output, target) < 4)
    output = output.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: squared_hinge(y, target), (output,))


def trace(y: torch.Tensor) -> LayerTrace:
    return LayerTrace("layer", y, None, True)


def test_activity_of_spikes_is_how_often_neurons_fire() -> None:
    one, two = (torch.rand(6, 3, 8) < 0.3).float(), torch.rand(6, 3, 5)
    wanted = one.mean() + two.square().mean()
    torch.testing.assert_close(activity((trace(one), trace(two))), wanted)


def test_padding_has_no_price() -> None:
    y = torch.rand(4, 2, 3)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    real = torch.cat([y[:3, 0], y[:2, 1]])
    torch.testing.assert_close(activity((trace(y),), mask), real.square().mean())
    y[~mask] = float("nan")  # nor does what stands there
    torch.testing.assert_close(activity((trace(y),), mask), real.square().mean())


def objective_of(network: torch.nn.Module, **settings: object) -> tuple[torch.Tensor, Batch]:
    task = tasks.load(DigitsConfig(steps=3))
    batch = next(task.batches("valid", 16, torch.Generator().manual_seed(0)))
    objective = Objective(TrainConfig(**settings), task)  # type: ignore[arg-type]
    return objective(network, batch, None, torch.Generator())[0], batch


def test_the_parts_of_a_loss_add_up() -> None:
    network = build(ModelConfig(hidden=(8, 6)), 64, 10, "mean")
    plain, batch = objective_of(network)
    seen = network.observe(batch.x)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(seen.output, batch.target))
    hinge, _ = objective_of(network, loss="squared_hinge")
    torch.testing.assert_close(hinge, squared_hinge(seen.output, batch.target))
    priced, _ = objective_of(network, loss="squared_hinge", activity=0.3)
    torch.testing.assert_close(priced, hinge + 0.3 * activity(seen.layers))


@pytest.mark.parametrize("unit", ["binary-di", "recurrent-binary-ci"])
def test_runs_on_a_squared_hinge(unit: str, tmp_path: Path) -> None:
    config = tiny(unit, loss="squared_hinge", activity=0.01, norm=True, centre=True)
    result = training.run(config, tmp_path / "one")
    assert result.test_loss > 0
    training.run(config, tmp_path / "two")
    assert left(tmp_path / "one") == left(tmp_path / "two")
    assert rundir.read_config(tmp_path / "one") == config


def test_a_price_on_activity_makes_networks_quieter(tmp_path: Path) -> None:
    settings = {"hidden": (32,), "epochs": 8, "lr": 5e-3, "dropout": 0.0}
    rates = []
    for price in (0.0, 0.5):
        config = tiny("binary-di", activity=price, **settings)
        result = training.run(config, tmp_path / f"{price}")
        assert result.test > 0.5
        rates.append(result.firing_rates["layer1"])
    assert rates[1] < 0.75 * rates[0]


def test_a_hinge_needs_classes(tmp_path: Path) -> None:
    write_mat(tmp_path / "toy.mat", toy_songs())
    task = MusicConfig(data="mat", data_dir=str(tmp_path))
    config = override(Config(task=task), loss="squared_hinge", hidden=(4,))
    with pytest.raises(UsageError, match=r"targets of music are no classes; pass --loss task"):
        training.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert preset("music").train.loss == "task"
