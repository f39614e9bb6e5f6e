"""llama.cpp reads the files that are written for it, divides texts as we do, and answers with the same tokens."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from peftcli.merging.merge_run import merge_run
from peftcli.serving.asked_export import Asked
from peftcli.serving.export_to_server import export_to_server
from tests.serving.greedy_tokens import NEW, expected
from tests.serving.served_models import CASES, TEXTS, served_run

llama_cpp = pytest.importorskip("xllamacpp", reason="has no wheel for this machine")


def serve(model: Path, adapter: Path | None = None) -> Any:
    """Return llama.cpp's server with a model, and an adapter on it."""
    params = llama_cpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = 1
    if adapter is not None:
        params.lora_adapters = [llama_cpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return llama_cpp.Server(params)


def ask(server: Any, path: str, question: dict[str, Any]) -> Any:
    """Return what the server answers to a request in JSON."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(question).encode(), kind)
    with urllib.request.urlopen(request, timeout=200) as found:
        return json.load(found)


def answer(server: Any, ids: list[int]) -> list[int]:
    """Return the tokens that the server goes on with, the end left out."""
    settings = {"n_predict": NEW, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    found: list[int] = ask(server, "/completion", {"prompt": ids, **settings})["tokens"]
    return found[: found.index(2)] if 2 in found else found


def base_file(folder: Path) -> Path:
    """Return a GGUF file of the base: of a run that left it as a complete model."""
    run = folder / "untrained"
    run.mkdir()
    recipe = (folder / "run/recipe.yaml").read_text(encoding="utf-8")
    head, _, _ = recipe.partition("method:")
    (run / "recipe.yaml").write_text(head + "method:\n  name: full\n", encoding="utf-8")
    shutil.copytree(folder / "model", run / "model")
    export_to_server("gguf", Asked(run, folder / "base.gguf", kind="f32"))
    return folder / "base.gguf"


@pytest.mark.parametrize(
    "name", ["llama-long", "mistral", "qwen3", "gemma2", "phi", "phi3", "granite", "olmo2", "starcoder2"]
)
def test_llama_cpp_answers_as_we_do(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    run = served_run(folder, CASES[name])
    merge_run(run, folder / "merged", dtype="float32", verify=False, use_alone=False)
    ids = AutoTokenizer.from_pretrained(folder / "model")("the cat sat on 12 mats")["input_ids"]
    wanted, base = expected(folder / "merged", ids), expected(folder / "model", ids)
    assert wanted != base

    export_to_server("gguf", Asked(run, folder / "model.gguf", kind="f32"))
    server = serve(folder / "model.gguf")
    assert answer(server, ids) == wanted
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for text in [*TEXTS, "a <|im_end|> b" if "qwen" in name else "a b"]:
        found = ask(server, "/tokenize", {"content": text, "add_special": True, "parse_special": True})
        assert found["tokens"] == tokenizer(text)["input_ids"], text

    export_to_server("gguf-lora", Asked(run, folder / "adapter.gguf", kind="f32"))
    assert answer(serve(base_file(folder), folder / "adapter.gguf"), ids) == wanted
