"""GGUF files have the names, shapes, types and values that llama.cpp's own converters write for the same models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from peftcli.errors import UserError
from peftcli.progress import Stage, watched_by
from peftcli.serving.asked_export import Asked
from peftcli.serving.export_to_server import export_to_server
from peftcli.serving.gguf_pretokenizers import pretokenizer_name
from tests.serving.gguf_facts import GOLDEN, KINDS, facts, vocabulary
from tests.serving.served_models import CASES, LORA, Case, byte_tokenizer, served_run
from tests.tiny import tiny_tokenizer

STORED = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_that_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    run = served_run(tmp_path / name, CASES[name])
    for to in ("gguf", "gguf-lora"):
        for kind in KINDS:
            file = tmp_path / f"{to}-{kind}.gguf"
            export_to_server(to, Asked(run, file, kind=kind))
            theirs = STORED[name][f"{to}-{kind}"]
            if to == "gguf-lora" and CASES[name].method.get("use_rslora"):
                theirs["keys"]["adapter.lora.alpha"] = 16.0  # 8 * sqrt(4): their converter does not read use_rslora
            assert facts(file) == theirs, (to, kind)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_vocabulary_is_that_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    run = served_run(tmp_path / name, CASES[name])
    export_to_server("gguf", Asked(run, tmp_path / "model.gguf", kind="q8_0"))
    ours, theirs = vocabulary(tmp_path / "model.gguf"), STORED[name]["vocabulary"]
    assert ours.items() >= theirs.items()
    more = {f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token", "eot_token_id")}
    assert ours.keys() - theirs.keys() == more
    end = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert ours["tokenizer.ggml.eot_token_id"] == end, "the end of a turn of the template that was trained with"


def scales(file: Path) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield the name, the scale that llama.cpp computes, and the change of each matrix of an adapter."""
    reader = gguf.GGUFReader(file)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[name.removesuffix("lora_a") + "lora_b"]
            yield name.removesuffix(".lora_a"), alpha / b.shape[1], b @ a


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"q_proj": 2}}]
)
def test_the_scale_of_each_matrix_is_that_of_training(more: dict, tmp_path: Path) -> None:
    """q_proj of a model whose rows are not reordered: the change is the one that a merge adds."""
    from safetensors.numpy import load_file

    from peftcli.merging.merge_run import merge_run

    run = served_run(tmp_path / "case", Case("qwen2", LORA | {"target_modules": ["q_proj", "v_proj"]} | more))
    export_to_server("gguf-lora", Asked(run, tmp_path / "adapter.gguf", kind="f32"))
    merge_run(run, tmp_path / "merged", dtype="float32", verify=False, use_alone=False)
    base, merged = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "case/model", tmp_path / "merged")
    )
    found = list(scales(tmp_path / "adapter.gguf"))
    assert len(found) == 4
    for name, scale, change in found:
        block, module = name.split(".")[1], {"attn_q": "q_proj", "attn_v": "v_proj"}[name.split(".")[2]]
        key = f"model.layers.{block}.self_attn.{module}.weight"
        np.testing.assert_allclose(scale * change, merged[key] - base[key], atol=1e-5)


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    """Metaspace without all bytes; and a division of texts that no name stands for."""
    run = served_run(tmp_path / "meta", Case("llama", LORA, tiny_tokenizer))
    with pytest.raises(UserError, match="no tokenizer like this model's"):
        export_to_server("gguf", Asked(run, tmp_path / "out", kind="f16"))
    assert not (tmp_path / "out").exists()
    known = json.loads(byte_tokenizer("qwen").backend_tokenizer.to_str())
    assert pretokenizer_name(known) == "qwen2"
    known["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[a-z]+"}
    with pytest.raises(UserError, match="no name for this tokenizer's pattern"):
        pretokenizer_name(known)


def test_a_model_that_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    for changes, reason in (
        ({"hidden_act": "relu"}, "its activation is relu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "no rope_type dynamic"),
    ):
        run = served_run(tmp_path / reason[-7:].strip(), Case("llama", LORA, changes=changes))
        for to in ("gguf", "gguf-lora"):
            with pytest.raises(UserError, match=reason):
                export_to_server(to, Asked(run, tmp_path / "out", kind="f32"))


def test_what_is_written_is_shown_tensor_by_tensor(tmp_path: Path) -> None:
    class Seen:
        def __init__(self) -> None:
            self.done: list[tuple[int, int | None]] = []

        def show(self, stage: Stage | None) -> None:
            if stage is not None and stage.text == "writing":
                self.done.append((stage.done, stage.total))

        def close(self) -> None: ...

    run, seen = served_run(tmp_path / "case", CASES["llama"]), Seen()
    with watched_by(seen):
        done = export_to_server("gguf", Asked(run, tmp_path / "model.gguf", kind="f16"))
    assert seen.done == [(number, done.tensors) for number in range(done.tensors + 1)]


@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_of_tokens_are_in_the_file(tied: bool, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    indices = {"embeddings": [40, 41]} if tied else {"embeddings": [40, 41], "head": [40]}
    method = LORA | {"trainable_token_indices": indices}
    run = served_run(tmp_path / "case", Case("qwen2", method, changes={"tie_word_embeddings": tied}))
    export_to_server("gguf", Asked(run, tmp_path / "model.gguf", kind="f32"))
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    base, adapter = (
        load_file(tmp_path / "case" / name)
        for name in ("model/model.safetensors", "run/adapter/adapter_model.safetensors")
    )
    places = {"model.embed_tokens": "token_embd.weight"} | ({} if tied else {"lm_head": "output.weight"})
    for path, name in places.items():
        numbers = indices["embeddings" if path.endswith("tokens") else "head"]
        rows = adapter[f"base_model.model.{path}.token_adapter.trainable_tokens_delta"]
        np.testing.assert_array_equal(found[name][numbers], rows)
        others = np.setdiff1d(np.arange(len(found[name])), numbers)
        np.testing.assert_array_equal(found[name][others], base[f"{path}.weight"][others])
    assert ("output.weight" in found) is not tied
    with pytest.raises(UserError, match="trainable_token_indices"):
        export_to_server("gguf-lora", Asked(run, tmp_path / "adapter.gguf", kind="f32"))
