"""Settings of memory cells: three records, what no call would use is refused, old files load."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from spikebridge.base.records import ConfigError, UsageError
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.network import to_crossbar
from spikebridge.crossbar.pcm import ITERATIVE
from spikebridge.settings.config import flatten, from_dict, override, preset, to_dict
from spikebridge.settings.crossbar import CellConfig, CrossbarConfig, PulseConfig

# What a file of before held; in training, `clip_rms` and `adc_range` had no use there.
BEFORE: dict[str, Any] = {
    "device": "pcm",
    "device_table": "",
    "levels": 0,
    "pairs": 2,
    "tile": 256,
    "w_max": 0.8,
    "clip_rms": 1.5,
    "adc_range": 7.0,
    "adc_bits": 0,
    "epsilon": 0.1,
    "refresh_every": 5,
    "step_s": 1.0,
}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"pairs": 2}, "pairs=2: the network is not trained on memory cells"),
        ({"adc_bits": 8}, "pass --cells pcm too, or leave --adc-bits out"),
        ({"refresh_every": 5}, "refresh_every=5: the network is not trained on memory cells"),
        ({"epsilon": 0.1}, "epsilon=0.1: the network is not trained"),
        (
            {"cells": "pcm", "clip_rms": 1.5},
            "clip_rms=1.5: the range of cells in training is --w-max",
        ),
        ({"cells": "pcm", "levels": 4}, "levels=4: only ideal cells have levels"),
        ({"cells": "pcm", "cell_table": "t.csv"}, "cell_table='t.csv': give one of them"),
    ],
    ids=str,
)
def test_a_setting_that_training_would_not_use_is_refused(settings, rule: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(rule)):
        override(preset("digits"), **settings)


def test_settings_of_a_crossbar_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"adc_range=5.0: without --adc-bits"):
        CrossbarConfig(adc_range=5)
    with pytest.raises(ConfigError, match=r"w_max=1.0, clip_rms=1.5: .* leave one of them out"):
        CrossbarConfig(w_max=1.0, clip_rms=1.5)
    assert CrossbarConfig(adc_range=5, adc_bits=6).adc_range == 5.0


def test_faults_are_not_drawn_for_cells_of_your_own() -> None:
    def mine(shape: tuple[int, ...]) -> SimulatedArray:
        return SimulatedArray(shape, ITERATIVE)

    network = nn.Linear(3, 2)
    with pytest.raises(UsageError, match=r"dead=0.1, stuck=0.0: .* leave both out"):
        to_crossbar(network, mine, CrossbarConfig(dead=0.1))
    assert type(network.weight) is nn.Parameter
    assert to_crossbar(network, mine).network(torch.ones(1, 3)).shape == (1, 2)


def test_a_config_of_before_is_read() -> None:
    config = override(preset("digits"), cells="pcm", pairs=2, w_max=0.8, epsilon=0.1)
    config = override(config, refresh_every=5)
    plain = to_dict(config)
    assert (plain["cells"]["cells"], plain["crossbar"]["pairs"]) == ("pcm", 2)
    for part in ("cells", "crossbar", "pulses"):
        del plain[part]
    assert from_dict(plain | {"memory": BEFORE}) == config
    software = {**BEFORE, "device": ""}  # it did nothing there
    assert from_dict(plain | {"memory": software}) == preset("digits")
    with pytest.raises(ConfigError, match="unknown key 'pears'"):
        from_dict(plain | {"memory": BEFORE | {"pears": 1}})


@pytest.mark.parametrize(("old", "new"), [("device", "cells"), ("device_table", "cell_table")])
def test_an_old_name_leads_to_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{old}'.*it is called {new} now"):
        override(preset("digits"), **{old: "pcm"})


def test_each_setting_belongs_to_one_record() -> None:
    names = [name for kind in (CellConfig, CrossbarConfig, PulseConfig) for name in vars(kind())]
    assert len(names) == len(set(names)) == 16
    assert set(names) <= flatten(preset("digits")).keys()
