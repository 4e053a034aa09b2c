"""Files of tensors: safetensors with format and checksum, whole, equal content as equal bytes.

Networks, checkpoints and the cells of a crossbar are each a `TensorFile`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spikebridge.base.storage import replace


@dataclass(frozen=True)
class TensorFile:
    """A kind of file of tensors."""

    format: str
    remedy: str
    """What helps where a file cannot be read."""
    version: str = ""
    """For formats whose name does not hold it."""
    needs: tuple[str, ...] = ()
    """Metadata without which a file is of no use; the first is under the checksum."""
    unsummed: bool = False
    """Whether files of earlier versions, which have no checksum, are read too."""

    def write(self, path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
        """Write tensors and what is said of them, whole or not at all.

        The library puts metadata in an order that changes from run to run; here it is sorted, so
        that a checksum of the file tells equal content.
        """
        version = {"version": self.version} if self.version else {}
        metadata = {"format": self.format, **version, **metadata}
        metadata["sha256"] = digest(tensors, metadata.get(self.needs[0], "") if self.needs else "")
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

    def read(self, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Metadata and tensors of a file.

        Raises FileNotFoundError where there is none, ValueError where it is damaged or of another
        format.
        """
        try:
            with path.open("rb"):  # safetensors names no reason
                pass
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{path}: there is no such file; {self.remedy}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged, not a whole safetensors file ({error}); {self.remedy}"
            ) from error
        wanted = f"{self.format} {self.version}".strip()
        there = f"{metadata.get('format')} {metadata.get('version', '')}".strip()
        if there != wanted:
            raise ValueError(
                f"{path} has format {there!r}, this version reads {wanted!r}; {self.remedy}"
            )
        if missing := sorted(set(self.needs) - metadata.keys()):
            raise ValueError(f"{path} lacks {missing}; {self.remedy}")
        under = metadata[self.needs[0]] if self.needs else ""
        if metadata.get("sha256", self.unsummed) not in (True, digest(tensors, under)):
            raise ValueError(f"{path} does not match its checksum; {self.remedy}")
        return metadata, tensors


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """The sha256 of a text and of names, types, shapes and values of tensors, as hex digits.

    A flipped bit in a weight would otherwise pass for a weight.
    """
    checksum = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        checksum.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
