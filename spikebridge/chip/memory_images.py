"""How a program lies in the memories of the Verilog core: sizes, addresses, codes.  No torch.

Neurons of a convolution are laid out pixel by pixel, channels side by side in the lanes: row
(y * W' + x) * chunks + chunk.  A spike is sent as the code that its listener decodes without a
division: to a dense layer the number (y * W' + x) * C' + channel, to a convolution the fields
{y, x, channel}.  Weights of a dense layer lie chunk by chunk, of a convolution tap by tap, chunk by
chunk, so that a row is found by adding the event.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from spikebridge.base.records import UsageError
from spikebridge.chip.program import Program, ProgramLayer

SHIFTS = (1, 2, 4)


@dataclass(frozen=True)
class ImageSizes:
    """Parameters of the core; bits, words or plain numbers."""

    layers: int
    lanes: int
    lanebits: int
    weight: int  # bits
    membrane: int  # bits
    fraction: int
    factor: int  # bits behind the point of factors
    multiply: int  # 1 where decays need a multiplier, plus 2 where slopes do
    slow: int  # bits of a slow state, 0 = none
    slow_rows: int
    slow_index: int
    convolve: int  # 0 or 1
    max_steps: int
    code: int  # bits of an event
    address: int  # bits of addresses and numbers
    coordinate: int
    xbits: int
    ybits: int
    cbits: int
    in_image: int  # 0 or 1
    in_size: int
    in_height: int
    in_width: int
    queue_index: int
    weight_rows: int
    weight_index: int
    membrane_rows: int
    membrane_index: int
    event_words: int
    event_index: int
    layer_index: int

    def header(self) -> str:
        """program.vh."""
        lines = [f"`define SB_{name.upper()} {value}" for name, value in asdict(self).items()]
        return "// ImageSizes of the program, see rtl/sb_core.v.\n" + "\n".join(lines) + "\n"

    @property
    def descriptor_bits(self) -> int:
        """Bits of the word that says what a layer is."""
        return 17 * self.address + 4 * self.coordinate + self.factor + 14

    def memory_bits(self) -> dict[str, int]:
        """Bits of each memory of the core, rows filled up."""
        row = self.lanes * self.membrane
        slow = {"slow_states": self.slow, "slow_parameters": self.slow_parameter}
        return {
            "weights": self.weight_rows * self.lanes * self.weight,
            "membranes": self.membrane_rows * row,
            "parameters": self.membrane_rows * (3 * row + self.lanes * (self.factor + 1)),
            "events": self.event_words * self.code,
            "descriptors": self.layers * self.descriptor_bits,
            "queue": (self.code + 2) << self.queue_index,
            **{name: self.slow_rows * self.lanes * n for name, n in slow.items() if self.slow},
        }

    @property
    def slow_parameter(self) -> int:
        """Bits of a rho, a pull and a kick."""
        return 2 * self.factor + 4 + max(1, self.slow)


def index_bits(words: int) -> int:
    """Bits that number so many words, at least 1."""
    return max(1, (words - 1).bit_length())


def check(program: Program) -> None:
    """UsageError where the Verilog core cannot hold a program that the integer model can."""
    program.check()
    if program.readout.geometry is not None or program.readout.recurrent:
        raise UsageError("the readout of the Verilog core must be dense and hear no own spikes")
    for before, after in pairwise(program.layers):
        if after.geometry is not None and before.geometry is None:
            raise UsageError(
                f"{after.name} is a convolution after the dense {before.name}; the Verilog core "
                "runs convolutions first and dense layers after them"
            )
        shapes = [
            after.geometry.in_shape if after.geometry else None,
            before.geometry.out_shape if before.geometry else None,
        ]
        if None not in shapes and shapes[0] != shapes[1]:
            raise UsageError(f"{after.name} sees another image than {before.name} sends")
    for layer in program.layers:
        g = layer.geometry
        if g is not None and (g.stride not in SHIFTS or g.pool not in SHIFTS):
            raise UsageError(
                f"{layer.name} has stride {g.stride} and pool {g.pool}; the Verilog core has "
                "shifts in place of dividers: 1, 2 or 4"
            )


def sizes(program: Program) -> ImageSizes:
    """What the core must be built for.  Raises UsageError for what it cannot hold."""
    check(program)
    decays, slopes = program.multipliers
    fields = _fields_of_images(program)
    most = max(max(layer.inputs, layer.neurons) for layer in program.layers)
    packed = fields["cbits"] + fields["ybits"] + fields["xbits"]
    lanes, lanebits = program.chip.lanes, index_bits(program.chip.lanes)
    code = max(index_bits(most), packed, lanebits)
    weight_rows = max(2, sum(p.weight_rows * program.chunks(p) for p in program.layers))
    membrane_rows = sum(program.rows(layer) for layer in program.layers)
    event_words = lists(program)[-1][0]
    slow_rows = sum(program.slow_rows(layer) for layer in program.layers)
    counted = max(weight_rows, membrane_rows, event_words, lanes)
    return ImageSizes(
        layers=len(program.layers),
        lanes=lanes,
        lanebits=lanebits,
        weight=program.weight_bits,
        membrane=max(program.membrane_bits, program.weight_bits + program.fraction_bits + 1),
        fraction=program.fraction_bits,
        factor=program.decay_bits,
        multiply=decays + 2 * slopes,
        slow=program.slow_bits,
        slow_rows=slow_rows,
        slow_index=index_bits(slow_rows),
        max_steps=program.max_steps,
        code=code,
        address=max(counted.bit_length(), code + 1, fields["coordinate"] + 1),
        queue_index=index_bits(program.chip.queue),
        weight_rows=weight_rows,
        weight_index=index_bits(weight_rows),
        membrane_rows=membrane_rows,
        membrane_index=index_bits(membrane_rows),
        event_words=event_words,
        event_index=index_bits(event_words),
        layer_index=index_bits(len(program.layers)),
        **fields,
    )


def _fields_of_images(program: Program) -> dict[str, int]:
    """ImageSizes that convolutions need, and what the host's events are."""
    images = [layer.geometry for layer in program.layers if layer.geometry]
    channels, height, width = (
        max([g.in_shape[axis] for g in images], default=1) for axis in range(3)
    )
    reach = [
        max(*g.in_shape[1:], *g.rows_columns) + g.padding + g.kernel + g.stride for g in images
    ]
    first = program.layers[0]
    shape = first.geometry.in_shape if first.geometry else (first.inputs, 1, 1)
    xbits, ybits = index_bits(width), index_bits(height)
    return {
        "convolve": int(bool(images)),
        "cbits": index_bits(channels),
        "xbits": xbits,
        "ybits": ybits,
        "coordinate": max(xbits, ybits, max(reach, default=1).bit_length()) + 1,
        "in_image": int(first.geometry is not None),
        "in_size": shape[0],
        "in_height": shape[1],
        "in_width": shape[2],
    }


def lists(program: Program) -> list[tuple[int, int]]:
    """Where each layer lists its spikes, in even and in odd steps; the inputs' list lies at 0.

    The readout has none; its entry is the end of all lists.
    """
    ends, end = [], program.inputs
    for layer in program.layers[:-1]:
        second = end + layer.neurons if layer.recurrent else end
        ends.append((end, second))
        end = second + layer.neurons
    return [*ends, (end, end)]


def codes(program: Program, number: int, size: ImageSizes) -> np.ndarray:
    """Codes of the inputs of layer `number`, (inputs,) int64, in the order of the integer model."""
    layer = program.layers[number]
    if layer.geometry is not None:
        c, y, x = np.indices(layer.geometry.in_shape).reshape(3, -1)
        return (y << size.xbits + size.cbits) | (x << size.cbits) | c
    before = program.layers[number - 1].geometry if number else None
    if before is None:
        return np.arange(layer.inputs)
    c, y, x = np.indices(before.out_shape).reshape(3, -1)
    return (y * before.out_shape[2] + x) * before.out_shape[0] + c


def rows(program: Program, layer: ProgramLayer, values: np.ndarray) -> np.ndarray:
    """Values of neurons, (N,), as rows of lanes, (rows, lanes); lanes without a neuron hold 0."""
    if layer.geometry is not None:
        values = values.reshape(layer.width, -1).T
    values = values.reshape(-1, layer.width)
    spare = program.chunks(layer) * program.chip.lanes - layer.width
    return np.pad(values, ((0, 0), (0, spare))).reshape(-1, program.chip.lanes)


def weight_rows(program: Program, number: int, size: ImageSizes) -> np.ndarray:
    """Weights of a layer, (rows x chunks, lanes)."""
    layer, lanes = program.layers[number], program.chip.lanes
    chunks = program.chunks(layer)
    if layer.geometry is None:
        order = np.argsort(codes(program, number, size))
        weight = np.concatenate([layer.weight[order], layer.weight[layer.inputs :]])[None, None]
    else:
        weight = layer.weight.transpose(1, 2, 0, 3)
    spare = chunks * lanes - layer.width
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, spare)))
    ky, kx, inputs, _ = padded.shape
    return padded.reshape(ky, kx, inputs, chunks, lanes).swapaxes(2, 3).reshape(-1, lanes)


def weight_image(program: Program, size: ImageSizes) -> np.ndarray:
    """Bits of the weight memory, (words, bits)."""
    rows_of = np.concatenate([weight_rows(program, n, size) for n in range(len(program.layers))])
    spare = max(0, 2 - len(rows_of))  # a memory has two words or more
    return bits(np.pad(rows_of, ((0, spare), (0, 0))), size.weight)


def parameter_image(program: Program, size: ImageSizes) -> np.ndarray:
    """Bits of the parameter memory: {decays, biases, amounts, thresholds}, lane 0 lowest."""
    images = []
    for layer in program.layers:
        values = (layer.decay, layer.bias, layer.amount, layer.threshold)
        wide = (size.factor + 1, *[size.membrane] * 3)
        parts = [
            bits(rows(program, layer, value.astype(np.int64)), width)
            for value, width in zip(values, wide, strict=True)
        ]
        images.append(np.concatenate(parts, 1))
    return np.concatenate(images)


def slow_image(program: Program, size: ImageSizes) -> np.ndarray:
    """Bits of the memory of slow parameters: of each lane {kick, pull, rho}, lane 0 lowest."""
    images = [np.zeros((0, size.lanes * size.slow_parameter), np.uint8)]
    wide = (size.slow, size.factor + 3, size.factor + 1)
    for layer in program.layers:
        if layer.slow is not None:
            values = (layer.slow.kick, layer.slow.pull, layer.slow.rho)
            parts = [
                bits(rows(program, layer, value), width).reshape(-1, size.lanes, width)
                for value, width in zip(values, wide, strict=True)
            ]
            images.append(np.concatenate(parts, 2).reshape(len(parts[0]), -1))
    return np.concatenate(images)


def descriptor_image(program: Program, size: ImageSizes) -> np.ndarray:
    """Bits of the descriptor memory, a word per layer."""
    weight_at = row_at = slow_at = 0
    words = []
    for number, layer in enumerate(program.layers):
        places = {"weight": weight_at, "row": row_at, "first_slow": slow_at}
        if layer.slow is not None:
            places[layer.slow.kind] = 1
        words.append(_word(_fields(program, number, size) | places, size))
        slow_at += program.slow_rows(layer)
        weight_at += layer.weight_rows * program.chunks(layer)
        row_at += program.rows(layer)
    return np.stack(words)


def _fields(program: Program, number: int, size: ImageSizes) -> dict[str, int]:
    layer, chunks = program.layers[number], program.chunks(program.layers[number])
    g, following = layer.geometry, program.layers[number + 1 : number + 2]
    if following and following[0].geometry is not None:
        code_x, code_y = 1 << size.cbits, 1 << size.cbits + size.xbits
    else:
        code_x = layer.width
        code_y = code_x * (g.out_shape[2] if g else 1)
    unity = 1 << program.decay_bits
    fields = {
        "last_row": program.rows(layer) - 1,
        "last_chunk": chunks - 1,
        "lanes_used": layer.width - (chunks - 1) * program.chip.lanes,
        "chunk_weights": g.in_shape[0] if g else len(layer.weight),
        "own_weights": layer.inputs,
        "list_a": lists(program)[number][0],
        "list_b": lists(program)[number][1],
        "last_x": g.out_shape[2] - 1 if g else 0,
        "code_x": code_x,
        "code_y": code_y,
        "slope": unity if layer.reduce else layer.slope,
        "conv": int(g is not None),
        "recurrent": int(layer.recurrent),
        "readout": int(layer.reduce is not None),
        "sum": int(layer.reduce == "sum"),
        "each": int(layer.reduce == "each"),
        "gate": int(layer.reset == "gate"),
        "subtract": int(layer.reset == "subtract"),
    }
    if g is not None:
        within = zip(g.rows_columns, g.out_shape[1:], strict=True)
        height, width = (min(before, after * g.pool) for before, after in within)
        fields |= {
            "height": height,
            "width": width,
            "padding": g.padding,
            "kernel": g.kernel,
            "pool": index_bits(g.pool) if g.pool > 1 else 0,
            "stride": index_bits(g.stride) if g.stride > 1 else 0,
            "weight_x": chunks * g.in_shape[0],
            "weight_y": chunks * g.in_shape[0] * g.kernel,
            "row_x": chunks,
            "row_y": chunks * g.out_shape[2],
        }
    return fields


def _word(fields: dict[str, int], size: ImageSizes) -> np.ndarray:
    """The fields as `sb_core` takes them apart, highest bit first."""
    widths = {
        "first_slow row_y row_x weight_y weight_x code_y code_x last_x list_b list_a": size.address,
        "own_weights chunk_weights weight row lanes_used last_chunk last_row": size.address,
        "height width padding kernel": size.coordinate,
        "slope": size.factor + 1,
        "pool stride": 2,
        "adaptation oscillation subtract gate each sum readout recurrent conv": 1,
    }
    order = [(name, width) for names, width in widths.items() for name in names.split()]
    parts = [bits(np.array([[fields.get(name, 0)]]), width)[0] for name, width in order]
    return np.concatenate(parts)


def bits(values: np.ndarray, width: int) -> np.ndarray:
    """Bits of rows of integers, (R, L) to (R, L x width): highest bit of the last lane first."""
    shifts = np.arange(width - 1, -1, -1)
    bits_of = (values[:, ::-1, None].astype(np.int64) >> shifts) & 1
    return bits_of.astype(np.uint8).reshape(len(values), -1)


def hexadecimal(words: np.ndarray) -> list[str]:
    """Words of bits, (R, bits), as digits for $readmemh and $fscanf."""
    count = words.shape[1]
    padded = np.pad(words, ((0, 0), (-count % 8, 0)))
    digits = np.packbits(padded, axis=1)
    return [row.tobytes().hex()[-((count + 3) // 4) :] for row in digits]
