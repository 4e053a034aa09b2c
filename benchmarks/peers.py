"""The same layer in other libraries: Linear, then one spiking unit over time, all at their best.

Each peer is given hoisted products (one for all steps) and a loop over `unbind`, where its own
documentation does neither, and is set to the dynamics of a member of our family.  `differs` runs
both on the same drive: a peer whose spikes differ from ours is not timed.  Compiled, torch unrolls
and fuses PIECE steps at a time: all of them at once it compiles for minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebridge.nn.scan import scan
from spikebridge.nn.synapses import Dense
from spikebridge.nn.units import Unit, make_unit

DECAY = 0.9
PIECE = 10  # steps that torch compiles as one function; 25 took longer to compile and to run
Neuron = Callable[..., Tensor]  # of a drive (T, B, N), and of a matrix where it is recurrent
Cell = tuple[Callable[[], Any], Callable[[Tensor, Any], tuple[Tensor, Any]]]  # first state, step


@dataclass(frozen=True)
class Peer:
    """A library's unit, and the member of our family that equals it."""

    cell: Callable[[], Cell]
    ours: Callable[[int], Unit]
    scale: float = 1.0  # of the drive, where a library scales it inside
    whole: Callable[[], Neuron] | None = None  # the library's own way through all steps

    def neuron(self, compiled: bool = False) -> Neuron:
        """The unit over time as a function of the drive."""
        if self.whole and not compiled:
            return self.whole()
        start, step = self.cell()
        return looped(lambda current: start(), step, compiled)

    def recurrent(self, compiled: bool = False) -> Neuron:
        """The same with a matrix from the spikes to the next drive, as our layers have it."""
        start, step = self.cell()

        def both(current: Tensor, state: tuple[Tensor, Any], matrix: Tensor) -> tuple:
            y, inner = step(current + F.linear(state[0], matrix), state[1])
            return y, (y, inner)

        return looped(lambda current: (torch.zeros_like(current), start()), both, compiled)


def looped(
    start: Callable[[Tensor], Any], step: Callable[..., tuple], compiled: bool = False
) -> Neuron:
    """A unit step after step; `start` gives the first state, from the first drive."""

    def piece(drive: Tensor, state: Any, *matrix: Tensor) -> tuple[Tensor, Any]:
        out = []
        for current in drive.unbind(0):
            y, state = step(current, state, *matrix)
            out.append(y)
        return torch.stack(out), state

    def whole(drive: Tensor, *matrix: Tensor) -> Tensor:
        return piece(drive, start(drive[0]), *matrix)[0]

    if not compiled:
        return whole
    fused = torch.compile(piece, dynamic=False)

    def pieces(drive: Tensor, *matrix: Tensor) -> Tensor:
        state, out = start(drive[0]), []
        padded = F.pad(drive, (0, 0, 0, 0, 0, -len(drive) % PIECE))
        for part in padded.split(PIECE):
            y, state = fused(part, state, *matrix)
            out.append(y)
        return torch.cat(out)[: len(drive)]

    return pieces


class Arctan(torch.autograd.Function):
    """A spike with an arctangent surrogate, as short as it can be written."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad / (1 + x * x)


def plain_torch() -> Cell:
    def step(current: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple:
        s, y = state or (torch.zeros_like(current), torch.zeros_like(current))
        s = current + DECAY * (s * (1 - y))
        y = Arctan.apply(s - 1)
        return y, (s, y)

    return lambda: None, step


def snntorch() -> Cell:
    import snntorch as snn

    cell = snn.Leaky(beta=DECAY, threshold=1.0, reset_mechanism="subtract")
    return cell.init_leaky, cell


def _node(step_mode: str) -> Any:
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.LIFNode(
        tau=1 / (1 - DECAY),
        decay_input=False,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        step_mode=step_mode,
    )


def spikingjelly() -> Cell:
    from spikingjelly.activation_based import functional

    node = _node("s")  # keeps its state itself
    return lambda: functional.reset_net(node), lambda current, state: (node(current), state)


def spikingjelly_whole() -> Neuron:
    from spikingjelly.activation_based import functional

    node = _node("m")

    def run(drive: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(drive)

    return run


def norse() -> Cell:
    import norse.torch as nt

    cell = nt.LIFBoxCell(
        nt.LIFBoxParameters(tau_mem_inv=torch.tensor(1.0), v_th=torch.tensor(1.0), method="super"),
        dt=1 - DECAY,
    )
    return lambda: None, cell


def gate(n: int) -> Unit:
    return make_unit("snu", n, decay=DECAY, threshold=1.0)


def subtract(n: int) -> Unit:
    return make_unit("snu", n, decay=DECAY, threshold=1.0, reset="subtract")


PEERS = {
    "plain torch loop": Peer(plain_torch, gate),
    "snnTorch Leaky": Peer(snntorch, subtract),
    "SpikingJelly LIFNode": Peer(spikingjelly, gate, whole=spikingjelly_whole),
    "Norse LIFBoxCell": Peer(norse, gate, 1 - DECAY),
}


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that work here and show our dynamics, and why each other one does not."""
    found, reasons = {}, {}
    for name, peer in PEERS.items():
        try:
            reason = differs(peer)
        except Exception as error:  # whatever a library of this version does
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if reason is None:
            found[name] = peer
        else:
            reasons[name] = reason
    return found, reasons


def differs(peer: Peer, shape: tuple[int, int, int] = (60, 4, 128)) -> str | None:
    """None where the spikes of peer and of ours are equal, else how far they are not."""
    torch.manual_seed(1)
    drive = torch.randn(shape)
    with torch.no_grad():
        theirs = peer.neuron()(drive / peer.scale)
        ours, _ = scan(peer.ours(shape[-1]), drive)
    apart = float((theirs != ours).float().mean())
    # Sums in another order move a membrane that lies on the threshold to its other side.
    if theirs.shape != ours.shape or apart > 1e-3 or not 0.01 < float(ours.mean()) < 0.5:
        return f"its spikes differ from ours in {apart:.1%} of the places: not the same dynamics"
    return None


class PeerLayer(nn.Module):
    """Linear, then the peer's unit."""

    def __init__(self, peer: Peer, n: int, compiled: bool = False) -> None:
        super().__init__()
        self.linear, self.neuron = nn.Linear(n, n), peer.neuron(compiled)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.linear(x))


class OurLayer(nn.Module):
    """Dense synapses, then our unit: what `spikebridge.Layer` runs."""

    def __init__(self, unit: Unit, n: int, inputs: int = 0) -> None:
        super().__init__()
        self.array, self.unit = Dense(inputs or n, n, unit), unit

    def forward(self, x: Tensor) -> Tensor:
        return scan(self.unit, self.array(x), backend="native")[0]
