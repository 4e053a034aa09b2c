"""Files of tensors: what was written comes back, equal content as equal bytes, damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spikebridge.base.tensors import TensorFile

KIND = TensorFile("a-format", "write it again", version="2", needs=("about",))
TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([True, False])}


def test_what_was_written_comes_back_as_equal_bytes(tmp_path: Path) -> None:
    path, other = tmp_path / "one", tmp_path / "other"
    KIND.write(path, TENSORS, more="x", about="y")
    KIND.write(other, dict(reversed(TENSORS.items())), about="y", more="x")
    assert path.read_bytes() == other.read_bytes()
    metadata, tensors = KIND.read(path)
    assert (metadata["format"], metadata["version"], metadata["more"]) == ("a-format", "2", "x")
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its checksum"),
        (lambda data: data.replace(b'"y"', b'"z"'), "does not match its checksum"),
        (
            lambda data: data.replace(b'"2"', b'"3"'),
            "'a-format 3', this version reads 'a-format 2'",
        ),
        (lambda data: data.replace(b'"about"', b'"abouT"'), r"lacks \['about'\]"),
        (lambda data: data.replace(b'"sha256"', b'"sha255"'), "does not match its checksum"),
    ],
)
def test_damage_is_named_with_the_remedy(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "file"
    KIND.write(path, TENSORS, about="y")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{message}.*; write it again"):
        KIND.read(path)


def test_a_file_that_is_not_there_and_one_of_before(tmp_path: Path) -> None:
    kind = TensorFile("a-format", "write it again", unsummed=True)
    with pytest.raises(FileNotFoundError, match="write it again"):
        kind.read(tmp_path / "file")
    save_file(TENSORS, tmp_path / "file", {"format": "a-format"})
    assert kind.read(tmp_path / "file")[1].keys() == TENSORS.keys()
