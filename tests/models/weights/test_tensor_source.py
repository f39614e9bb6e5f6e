"""Our reader of safetensors agrees with the library's writer, one piece at a time, and refuses damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peftcli.errors import UserError
from peftcli.models.weights import tensor_source
from peftcli.models.weights.tensor_header import read_header
from peftcli.models.weights.tensor_source import tensors_of_file

TENSORS = {
    "matrix": torch.arange(35, dtype=torch.float32).view(5, 7),
    "half": torch.arange(9, dtype=torch.bfloat16).view(3, 3),
    "numbers": torch.tensor([1, -2, 3]),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}


def test_we_read_what_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_source, "CHUNK_BYTES", 16)  # so that small tensors have several chunks
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    stored = tensors_of_file(tmp_path / "x.safetensors")
    assert stored.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(stored[name].read_float32(), tensor.float())
        chunks = list(stored[name].chunks())
        assert torch.equal(torch.cat([*chunks, tensor.reshape(-1)[:0]]), tensor.reshape(-1))
        assert all(chunk.nbytes <= 16 for chunk in chunks)


@pytest.mark.parametrize("damage", [b"", b"not a header at all, just text", b"cut"])
def test_damaged_files_are_refused(damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:-20] if damage == b"cut" else damage)
    with pytest.raises(UserError, match="no complete safetensors file"):
        tensors_of_file(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1]", "not of the format"),
        (b'{"x": {"dtype": "F32", "shape": [1]}}', "not of the format"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "not of the format"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "x does not fit"),
        (b'{"x": {"dtype": "F32", "shape": [1e30], "data_offsets": [0, 0]}}', "not of the format"),
        (b'{"x": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}}', "not of the format"),
        (b'{"x": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 40]}}', "x does not fit"),
    ],
)
def test_a_header_that_cannot_be_is_refused(header: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=message):
        read_header(file)


def test_a_header_is_no_longer_than_the_librarys(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:  # sparse: it takes no room on the disk
        stream.write((100_000_001).to_bytes(8, "little"))
        stream.truncate(200_000_000)
    with pytest.raises(ValueError, match="longer than 100,000,000 bytes"):
        read_header(file)
