"""What a process holds before there is a model: Python, torch, transformers and their buffers, measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from peftcli import __version__
from peftcli.assembly.machine_answers import Answer, keep_answer, kept_answer, machine
from peftcli.installed_versions import installed_versions

_CHILD = """
import sys, torch
from contextlib import suppress
import peftcli.cli.app, peftcli.training.run, peftcli.console.display
from peftcli.distributed.devices import peak_memory
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
if sys.argv[1] == "bitsandbytes":
    with suppress(ImportError):
        import bitsandbytes
config = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
model = AutoModelForCausalLM.from_config(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
ids = torch.randint(0, 512, (4, 64))
for dtype in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
print(peak_memory(torch.device("cpu")))
"""


@contextmanager
def library_bytes(device: torch.device, *, quantised: bool) -> Iterator[Callable[[], int]]:
    """Measure the resident bytes of a process that has trained a model of no size, beside what is done inside.

    That is done once on a machine and with these versions, in a process of its own, and takes seconds.

    Yields:
        Waits for the measurement and returns the bytes; 0 on a GPU, which holds no code.
    """
    if device.type == "cuda" or sys.platform == "win32":
        yield lambda: 0
        return
    extra = "bitsandbytes" if quantised else "plain"
    question = {
        "asked": "resident libraries and command line",
        **machine(device),
        "peftcli": __version__,
        "with": extra,
        "versions": json.dumps(installed_versions("transformers", "accelerate", "bitsandbytes"), sort_keys=True),
    }
    if (known := kept_answer(question)) is not None:
        size = int(known.ratio)
        yield lambda: size
        return
    line = [sys.executable, "-c", _CHILD, extra]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def measured() -> int:
        printed = child.communicate()[0].split()
        if child.returncode or not printed:
            return 0
        return int(keep_answer(question, Answer(faster=True, ratio=float(printed[-1]))).ratio)

    with child:
        try:
            yield measured
        finally:
            child.kill()  # nothing where it has ended
