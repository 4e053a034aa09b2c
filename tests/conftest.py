"""What every test stands on: fixed seeds and memory that shows when nobody wrote to it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import pytest
import torch
from hypothesis import settings

from spikebridge.nn.kernels import native
from spikebridge.runs import callbacks

# How long an example takes says how busy the machine is, not whether the law holds.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Shells let Ctrl-C be ignored in what they start in the background, such as these tests; what the
# tests start shall hear it.  Set here and not in each child before it starts: code between fork
# and exec can end a child whose parent has threads.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# torch lists once which functions obey a default device; later it would list the ones below.
with torch.device("meta"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def without_tensorboard() -> Iterator[None]:
    """Runs write the same files wherever the tests run; a test of TensorBoard brings its own."""
    installed = callbacks.find_spec

    def find(name: str, *package: str) -> ModuleSpec | None:
        return None if name == "tensorboard" else installed(name, *package)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "find_spec", find)
        yield


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh floating-point memory is NaN, so that a value which a kernel forgets to write shows."""

    def poisoned(make):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return wrapped

    monkeypatch.setattr(native, "POISON", True)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
