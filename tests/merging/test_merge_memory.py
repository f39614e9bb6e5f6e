"""A merge needs the memory of a few tensors, whatever the size of the model; a killed one leaves nothing that loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from peftcli.adapters.format import describe
from peftcli.adapters.saving import save_adapter
from peftcli.merging.merge_run import merge_run
from peftcli.merging.tensor_writer import Planned, shard_names, shards, write_file, write_index
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.load.meta_model import build_meta
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.weights.tensor_source import CHUNK_BYTES
from peftcli.protocol.apply_method import apply_method
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.merging.runs import make_recipe
from tests.moments import peft_with_signal
from tests.tiny import tiny_config, tiny_tokenizer

MEBIBYTE = 2**20

MERGE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from peftcli.merging.merge_run import merge_run
from peftcli.models.load.tokenizers import load_tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM
torch.randn(64, 64) @ torch.randn(64, 64)


def peak():  # of this program alone: getrusage would count what the process was before it became Python
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


before = peak() if sys.platform == "linux" else 0
report = merge_run(Path(sys.argv[1]), Path(sys.argv[2]), verify=False, max_shard_size=sys.argv[3])
print(json.dumps({"peak": peak() - before if sys.platform == "linux" else 0, "size": report.size}))
"""


def synthetic_run(folder: Path, *, hidden: int, inner: int, layers: int, vocabulary: int, shard: int) -> Path:
    """Return a run on a sharded bfloat16 Llama whose files are written in pieces; no model is ever in memory."""
    base = folder / "model"
    base.mkdir(parents=True)
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config = tiny_config("llama", num_attention_heads=8, num_key_value_heads=8, **sizes)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = build_meta(config, "causal_lm")
    planned = [Planned(name, torch.bfloat16, tuple(value.shape)) for name, value in model.state_dict().items()]
    groups = shards(planned, shard)
    for file, group in zip(shard_names(len(groups)), groups, strict=True):
        write_file(base / file, group, {tensor.name: _values(tensor) for tensor in group})
    files = zip(shard_names(len(groups)), groups, strict=True)
    write_index(base, {t.name: file for file, group in files for t in group}, sum(t.nbytes for t in planned))

    recipe = make_recipe(folder, "causal_lm", {"name": "lora", "r": 8, "target_modules": "all-linear"}, base)
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, recipe.method)
    state = {name: 0.01 * torch.randn(value.shape) for name, value in attachment.state_dict().items()}
    identity = BaseIdentity(str(base), None, "", None, "bfloat16", "llama", {})
    meta = describe(attachment, anatomy, task="causal_lm", base=identity)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    save_adapter(run / "adapter", attachment_state=state, params=recipe.method, meta=meta)
    return run


def _values(tensor: Planned) -> Iterator[Tensor]:
    piece = (0.02 * torch.randn(min(tensor.nbytes, CHUNK_BYTES) // 2)).to(torch.bfloat16)
    left = tensor.nbytes // 2
    while left:
        yield piece[:left]
        left -= len(piece[:left])


def peak_of(run: Path, shard: str) -> tuple[int, int]:
    """Return the peak memory of a merge above that of the process before it, and the model's size."""
    command = [sys.executable, "-c", MERGE, str(run), str(run.parent / "merged"), shard]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"], found["size"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path, hidden=1024, inner=4096, layers=5, vocabulary=8192, shard=100 * MEBIBYTE)
    peak, size = peak_of(run, "100MB")
    assert size > 180 * MEBIBYTE
    largest = 2 * 8192 * 1024
    # 12 MiB: modules, tokenizer and meta model that a merge imports and builds
    assert peak < 4 * largest + 12 * MEBIBYTE, f"{peak / MEBIBYTE:.0f} MiB"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_gigabytes_within_one(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path, hidden=4096, inner=11008, layers=7, vocabulary=16384, shard=10**9)
    peak, size = peak_of(run, "1GB")
    assert size > 3 * 10**9
    assert peak < 10**9, f"{peak / MEBIBYTE:.0f} MiB"


def loads(directory: Path) -> bool:
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(directory)
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(
    ("event", "moment", "files"),
    [
        ("open", ".partial-merged/model-00003", 2),  # between two weight files
        ("os.rename", ".partial-merged", 5),  # all is written, but not in its place
    ],
)
def test_a_killed_merge_leaves_nothing_that_looks_done(tmp_path: Path, event: str, moment: str, files: int) -> None:
    run = synthetic_run(tmp_path, hidden=256, inner=512, layers=2, vocabulary=2048, shard=2 * MEBIBYTE)
    output = tmp_path / "merged"
    options = ("--no-verify", "--max-shard-size", "1MB")
    done = peft_with_signal(signal.SIGKILL, event, moment, "merge", run, "-o", output, *options)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    (partial,) = (path for path in tmp_path.iterdir() if path.name.startswith(".partial"))
    assert len(list(partial.glob("*.safetensors"))) == files
    assert (partial / "config.json").exists() == (event == "os.rename")  # without it nothing loads, and it comes last
    merge_run(run, output, verify=False)  # the same merge again
    assert loads(output) and not partial.exists()
