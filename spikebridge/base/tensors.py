"""Files of tensors: safetensors, written whole, equal content as equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from spikebridge.base.storage import replace


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and what is said of them, whole or not at all.

    The library puts metadata in an order that changes from run to run; here it is sorted, so that
    a checksum of the file tells equal content.
    """
    data = save({name: value.detach().contiguous() for name, value in tensors.items()})
    size = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(memoryview(data)[8 + size :])

    replace(path, write)
