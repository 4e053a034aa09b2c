"""A trained network to a program of the chip: integers for weights, thresholds and decays.

Each neuron has a scale of its own, which its threshold takes up, so that the largest of its
weights uses all bits (the readout has one scale for all outputs, so that they compare).  Spikes
are 0 or 1 on both sides; what rounding loses is told by `losses`, and by `spikebridge export` as
spikes and accuracy.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from spikebridge.base.records import UsageError
from spikebridge.chip.bounds import bits_for, bounds, slow_bits, slow_range
from spikebridge.chip.program import (
    MEMBRANE_BITS,
    SLOW_BITS,
    ChipConfig,
    Geometry,
    Program,
    ProgramLayer,
    Reduce,
    SlowState,
)
from spikebridge.nn.dynamics import DynamicUnit
from spikebridge.nn.layers import Baseline, Plain, Readout
from spikebridge.nn.network import Network
from spikebridge.nn.norms import LayerNormalised
from spikebridge.nn.synapses import Conv2d, Dense, Embedding, Normalised
from spikebridge.nn.units import Unit

COARSEST = 1 << 22
"""Most that a constant drive or an amount becomes, fraction bits included."""
SHIFTS = (1, 2, 4)
"""Strides and pools that the chip can divide by: it has shifts, and no dividers."""


class Loss(NamedTuple):
    """What rounding took from a layer."""

    name: str
    weight: float  # root mean square error of weights, in shares of their root mean square
    decay: float  # largest error of a decay
    drive: float  # largest error of a constant drive, in shares of the layer's largest weight


def compile(network: Network, chip: ChipConfig | None = None) -> Program:
    """The program of a trained network.

    Args:
        network: SNU, binary-di or binary-ci layers, dense, recurrent or convolutional, SNUs with an
            oscillation or an adaptation, and a linear readout.
        chip: bits, lanes and so on.

    Returns:
        A program with membranes just wide enough that nothing can overflow, which `bounds` proves;
        slow states saturate where a reset lets them go further than without it.

    Raises UsageError for what the chip cannot do, with the reason and the nearest that it can.
    """
    chip = chip or ChipConfig()
    wanted = _all(network)
    decay_bits, fraction = _bits(wanted, chip)
    rounded = [_rounded(layer, chip.weight_bits, decay_bits, fraction) for layer in wanted]
    layers, ends, forever = [], [0], True
    for layer in _with_slow_bits(rounded, decay_bits, fraction, chip.max_steps):
        low, high, holds = bounds(layer, decay_bits, fraction, chip.max_steps)
        forever = forever and holds
        # Beyond what membranes can reach, all thresholds decide the same.
        adapts = layer.slow is not None and layer.slow.kind == "adaptation"
        least, most = slow_range(layer.slow, decay_bits) if layer.slow and adapts else (0, 0)
        threshold = layer.threshold.clip(low - 1 - most, high - least)
        ends += [low.min(), high.max(), -layer.amount.max(), -layer.amount.min()]
        ends += [threshold.min(), threshold.max()]
        layers.append(replace(layer, threshold=threshold))
    bits = bits_for(min(ends) - 1, max(ends))
    limit = SLOW_BITS if any(layer.slow for layer in layers) else MEMBRANE_BITS
    if bits > limit:
        raise UsageError(
            f"membranes would need {bits} bits for {chip.max_steps} steps, the chip has "
            f"{limit}; pass fewer --weight-bits, --fraction-bits or --max-steps"
        )
    steps = 0 if forever else chip.max_steps
    return Program(tuple(layers), chip.weight_bits, decay_bits, fraction, bits, steps, chip).check()


def _bits(wanted: list[ProgramLayer], chip: ChipConfig) -> tuple[int, int]:
    """Bits behind the point of factors, and of a membrane below the last of a weight."""
    decay_bits, fraction = chip.decay_bits, chip.fraction_bits
    if decay_bits < 0:
        decay_bits = 14 if any(layer.slow for layer in wanted) else 8
    if fraction < 0:
        fraction = 4 if any(layer.decay.any() for layer in wanted[:-1]) else 0
    return decay_bits, fraction


def _with_slow_bits(
    layers: list[ProgramLayer], decay_bits: int, fraction: int, max_steps: int
) -> list[ProgramLayer]:
    """The layers, their slow states all as wide as the widest needs."""
    numbers = decay_bits, fraction, max_steps
    bits = max(
        (slow_bits(layer, layer.slow, *numbers) for layer in layers if layer.slow), default=0
    )
    return [
        replace(layer, slow=replace(layer.slow, bits=bits)) if layer.slow else layer
        for layer in layers
    ]


def losses(network: Network, program: Program) -> list[Loss]:
    """What rounding took from each layer of a program of this network."""
    losses = []
    for layer, wanted in zip(program.layers, _all(network), strict=True):
        scale = layer.scale.reshape(layer.width, -1)[:, 0]
        error = layer.weight * scale - wanted.weight
        drive = layer.bias * layer.scale / (1 << program.fraction_bits) - wanted.bias
        decay = layer.decay / (1 << program.decay_bits) - wanted.decay
        largest = np.abs(wanted.weight).max() or 1.0
        size = math.sqrt(float((wanted.weight**2).mean())) or 1.0
        losses.append(
            Loss(
                wanted.name,
                math.sqrt(float((error**2).mean())) / size,
                float(np.abs(decay).max()),
                float(np.abs(drive).max() / largest),
            )
        )
    return losses


def _all(network: Network) -> list[ProgramLayer]:
    """The layers before rounding: all numbers in float64, all factors put into the weights."""
    if network.embedding is not None:
        _refuse("its embedding sends numbers", "symbols that drive the first layer, --embedding 0")
    if network.read > 1:
        _refuse("its readout reads several layers", "one that reads the last, --no-read-all")
    if network.skip:
        _refuse("its layers get sums of spikes", "one without skip connections, --no-skip")
    hidden = [_hidden(layer, f"layer{n}") for n, layer in enumerate(network.layers, start=1)]
    return [*hidden, _readout(network.readout)]


def _refuse(reason: str, nearest: str) -> NoReturn:
    raise UsageError(f"the chip cannot run this network: {reason}; the nearest it can is {nearest}")


def _check_unit(layer: Any, name: str) -> Unit:
    if isinstance(layer, Baseline):
        _refuse(f"{name} is one of torch's own", "a spiking unit such as snu")
    if isinstance(layer, Plain):
        _refuse(f"{name} sends numbers, not spikes", "a spiking unit such as binary-di")
    unit = layer.unit
    if not unit.spiking:
        _refuse(f"{name} sends numbers, not spikes", "snu, the spiking form of softsnu")
    if getattr(layer, "delays", None) is not None:
        _refuse(f"outputs of {name} come later, and it keeps none", "one without, --delays 0")
    if isinstance(unit, DynamicUnit):
        _check_memory(unit, name)
    if unit.rule.reset == "lateral":
        _refuse(f"a spike resets all of {name}", "snu, where it resets its own neuron")
    if unit.rule.g == "elu":
        _refuse(f"{name} has g=elu", "leaky_relu, relu or identity")
    return unit


def _check_memory(unit: DynamicUnit, name: str) -> None:
    if unit.memory == "gate":
        _refuse(
            f"the leak of {name} depends on its input, and the chip multiplies by constants only",
            "a slow state, --memory oscillation",
        )
    if unit.modulation in ("threshold", "output"):
        _refuse(
            f"the {unit.modulation} of {name} has a current of its own, and a neuron of the chip "
            "adds up one",
            "thresholds that rise with spikes, --modulation adaptation",
        )
    if unit.memory == "oscillation" and unit.modulation == "adaptation":
        _refuse(
            f"neurons of {name} have two slow states, and those of the chip one",
            "one of the two, --memory oscillation or --modulation adaptation",
        )


def _slow(unit: Unit) -> SlowState | None:
    """The slow state in the units of the membrane, before rounding."""
    if not isinstance(unit, DynamicUnit):
        return None
    if unit.modulation == "adaptation":
        values = (np.full(unit.size, n) for n in (unit.rho, 0.0, unit.beta * (1 - unit.rho)))
        return SlowState("adaptation", 0, *values)
    params = unit.params(torch.float64)
    rho, pull, kick = (_array(value) for value in params.own)
    # The drive and all of w reach the membrane by 1 - decay; here it is part of both.
    share = 1 - _array(params.decay)
    return SlowState("oscillation", 0, rho, pull * share, kick * share)


def _hidden(layer: Any, name: str) -> ProgramLayer:
    unit = _check_unit(layer, name)
    rule = unit.rule
    weight, drive, geometry = _synapses(layer.array, name)
    inputs = math.prod(geometry.in_shape) if geometry is not None else len(weight)
    if layer.recurrent is not None:
        weight = np.concatenate([weight, _array(layer.recurrent).T])
    params = unit.params(torch.float64)
    drive, decay = (_each(value, unit.size) for value in (drive, _array(params.decay)))
    threshold, slow = _array(unit.threshold), _slow(unit)
    if slow is not None and slow.kind == "oscillation":
        weight, drive = weight * (1 - decay), drive * (1 - decay)
    elif not decay.any():  # without a memory a constant drive is a shift of the threshold
        threshold, drive = threshold - drive, 0 * drive
    return ProgramLayer(
        name=name,
        inputs=inputs,
        weight=weight,
        bias=drive,
        threshold=threshold,
        decay=decay,
        amount=_amount(unit),
        scale=np.ones(unit.size),
        slope={"identity": 1.0, "relu": 0.0}.get(rule.g, rule.slope),  # type: ignore[arg-type]
        reset=rule.reset,  # type: ignore[arg-type]
        recurrent=layer.recurrent is not None,
        geometry=geometry,
        slow=slow,
    )


def _readout(readout: Readout) -> ProgramLayer:
    if readout.bias is not None:
        _refuse("its readout is tied to an embedding", "one of its own, --no-tied")
    weight, bias = _array(readout.linear.weight).T, _array(readout.linear.bias)
    reduce: dict[str, Reduce] = {"mean": "sum", "last": "last", "each": "each"}
    nothing = np.zeros(len(bias))
    return ProgramLayer(
        "readout", weight, bias, nothing, nothing + 1, nothing, nothing + 1, len(weight),
        reset="none", slope=1, reduce=reduce[readout.reduce],
    )  # fmt: skip


def _amount(unit: Unit) -> np.ndarray:
    """What a spike takes off, (N,): a trained threshold as it is now."""
    if unit.rule.trained:
        return _array(unit.threshold)
    fixed = unit.rule.amount or 0.0 if unit.rule.reset == "subtract" else 0.0
    return np.full(unit.size, fixed)


def _synapses(array: Any, name: str) -> tuple[np.ndarray, np.ndarray, Geometry | None]:
    """Weights as rows of the chip, constant drive (N or channels,), and the convolution's shape."""
    factor, constant = np.ones(()), None
    if isinstance(array, LayerNormalised):
        _refuse(
            f"the drive of {name} is normalised over the layer, which no weights stand for",
            "one by running sizes, --norm batch or step",
        )
    if isinstance(array, Normalised):
        factor, constant = (_array(value) for value in array.folded())
        array = array.array
    if isinstance(array, Embedding):  # a symbol is one event
        return _array(array.weight), np.zeros(array.out_features), None
    if not isinstance(array, Dense | Conv2d):
        kind = type(array).__name__
        _refuse(f"the synapses of {name} are {kind}", "Dense or Conv2d (see from_crossbar)")
    weight = _array(array.weight) * factor.reshape(-1, *[1] * (array.weight.dim() - 1))
    drive = np.zeros(len(weight)) if constant is None else constant
    if constant is None and array.bias is not None:
        drive = _array(array.bias)
    if isinstance(array, Dense):
        return weight.T, drive, None
    for what, value in (("stride", array.stride), ("pool", array.pool)):
        if value not in SHIFTS:
            _refuse(f"{name} has a {what} of {value}", "1, 2 or 4")
    sides = array.in_shape, array.out_shape
    geometry = Geometry(*sides, weight.shape[-1], array.stride, array.padding, array.pool)
    # The network averages over the squares of a pool, the chip adds up.
    return weight.transpose(1, 2, 3, 0) / array.pool**2, drive, geometry


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _each(values: np.ndarray, size: int) -> np.ndarray:
    """One number of all, one per channel or one per neuron, as (N,)."""
    return np.repeat(values, size // values.size)


def _rounded(
    wanted: ProgramLayer, weight_bits: int, decay_bits: int, fraction: int
) -> ProgramLayer:
    weight, scale = _weights(wanted, weight_bits, fraction)
    scale = _each(scale, len(wanted.threshold))
    per_unit, unity = (1 << fraction) / scale, 1 << decay_bits
    top = 1 << MEMBRANE_BITS - 1
    # A sum of whole weights is above a threshold where it is above the whole number below it.
    threshold = np.floor(wanted.threshold * per_unit).clip(-top, top - 1)
    decay, slow = _whole(wanted.decay * unity), wanted.slow
    if slow is not None:
        # A share of 1 would keep a state for ever.
        slow = replace(
            slow,
            rho=_whole(slow.rho * unity).clip(max=unity - 1),
            pull=_whole(slow.pull * unity),
            kick=_whole(slow.kick * per_unit),
        )
        decay = decay.clip(max=unity - 1)
    return replace(
        wanted,
        slow=slow,
        weight=weight,
        bias=_whole(wanted.bias * per_unit),
        threshold=threshold.astype(np.int64),
        decay=decay,
        amount=_whole(wanted.amount * per_unit),
        scale=scale,
        slope=round(wanted.slope * unity),
    )


def _whole(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int64)


def _weights(wanted: ProgramLayer, bits: int, fraction: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int32 and what 1 in them stands for, one per neuron or channel.

    As `synapses.Rounded` has them: levels symmetric about 0, the outermost at the largest weight of
    a neuron; of the readout, at the largest of all.  Weights next to nothing beside the drive or
    the amount of their neuron get coarser levels, or they would make all membranes wider.
    """
    levels = (1 << bits - 1) - 1
    largest = np.abs(wanted.weight).reshape(-1, wanted.weight.shape[-1]).max(0)
    if wanted.reduce is not None:
        largest = np.full_like(largest, largest.max())
    scale = np.where(largest > 0, largest, 1.0) / levels
    if wanted.reduce is None:
        beside = np.maximum(np.abs(wanted.bias), np.abs(wanted.amount))
        if wanted.slow is not None:
            beside = np.maximum(beside, np.abs(wanted.slow.kick))
        beside = beside.reshape(len(scale), -1).max(1)
        scale = np.maximum(scale, beside * (1 << fraction) / COARSEST)
    return np.rint(wanted.weight / scale).astype(np.int32), scale
