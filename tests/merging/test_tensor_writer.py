"""What our writer of safetensors leaves is what the library reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftcli.merging.tensor_writer import Planned, shard_names, shards, write_file

TENSORS = {
    "matrix": torch.arange(35, dtype=torch.float32).view(5, 7),
    "half": torch.arange(9, dtype=torch.bfloat16).view(3, 3),
    "numbers": torch.tensor([1, -2, 3]),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}


def write(path: Path, tensors: dict[str, Tensor], pieces: int = 1) -> None:
    def split(tensor: Tensor) -> Iterator[Tensor]:
        yield from tensor.reshape(-1).chunk(pieces)

    planned = [Planned(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_file(path, planned, {name: split(tensor) for name, tensor in tensors.items()})


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_library_reads_what_we_write(pieces: int, tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS, pieces)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_pieces_that_do_not_fill_the_tensor_are_a_bug(tmp_path: Path) -> None:
    planned = [Planned("x", torch.float32, (4,))]
    with pytest.raises(ValueError, match="8 bytes were made of 16"):
        write_file(tmp_path / "x.safetensors", planned, {"x": iter([torch.zeros(2)])})
    with pytest.raises(ValueError, match=r"made as torch\.float16"):
        write_file(tmp_path / "x.safetensors", planned, {"x": iter([torch.zeros(4).half()])})


def test_shards_keep_the_order_and_the_limit() -> None:
    planned = [Planned(str(i), torch.float32, (n,)) for i, n in enumerate([10, 10, 10, 100, 1])]
    groups = shards(planned, limit=80)
    assert [[tensor.name for tensor in group] for group in groups] == [["0", "1"], ["2"], ["3"], ["4"]]
    assert shard_names(1) == ["model.safetensors"] and shard_names(2)[1] == "model-00002-of-00002.safetensors"
