"""A merged model gives what base + adapter gives, whatever the method, the family and the layout of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.errors import UserError, VerificationFailed
from peftcli.merging import merge_run as merging
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merge_run import merge_run
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.record.shown_numbers import bytes_of
from tests.merging.runs import leave_out_a_rule, make_run

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4},
    "all-linear": {"name": "lora", "r": 4, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"name": "lora", "r": 4, "use_dora": True},
    "pissa": {"name": "lora", "r": 4, "init_lora_weights": "pissa"},
    "olora": {"name": "lora", "r": 4, "init_lora_weights": "olora", "freeze_a": True},
    "bias": {"name": "lora", "r": 4, "bias": "all"},
    "embedding": {"name": "lora", "r": 4, "target_modules": ["attn.q", "embeddings"]},
    "modules_to_save": {"name": "lora", "r": 4, "modules_to_save": ["FIRST_NORM"]},
    "adalora": {"name": "adalora", "init_r": 4, "target_r": 2},
    "vera": {"name": "vera", "r": 16},
    "ia3": {"name": "ia3"},
    "oft": {"name": "oft", "target_modules": ["attn.q", "attn.v", "ffn.down", "embeddings"], "oft_block_size": 8},
    "miss": {"name": "miss", "r": 7, "target_modules": "all-linear"},
    "miss, bat": {"name": "miss", "r": 8, "init_weights": "bat"},
    "miss, mini": {"name": "miss", "r": 8, "init_weights": "mini", "mini_r": 4},
    "hira": {"name": "hira", "r": 4, "target_modules": ["attn.q", "ffn.down", "embeddings"]},
    "lokr": {"name": "lokr", "r": 2, "alpha": 4, "target_modules": "all-linear"},
    "shira": {"name": "shira", "r": 4, "target_modules": "all-linear"},
    "bitfit": {"name": "bitfit"},
    "ln_tuning": {"name": "ln_tuning"},
    # whatever the order of the parts, trained biases are the base's, and what IA3 scales comes after them
    "composed": {"name": "compose", "parts": [{"name": "ia3"}, {"name": "lora", "r": 4}, {"name": "bitfit"}]},
}
NORMS = {"bert": "bert.encoder.layer.0.output.LayerNorm", "gpt2": "transformer.h.0.ln_1"}
CASES = [(name, family) for name in METHODS for family in ("bert", "gpt2")]
CASES += [(name, "llama") for name in ("all-linear", "dora", "adalora", "vera", "ia3", "oft", "hira", "shira")]
CASES += [("lora", "t5"), ("ia3", "t5"), ("all-linear", "gpt_neox"), ("lora", "mixtral")]
TASKS = {"bert": "sequence_classification", "t5": "seq2seq_lm"}


def method_for(name: str, family: str) -> dict[str, Any]:
    method = dict(METHODS[name])
    if "modules_to_save" in method:
        method["modules_to_save"] = [NORMS[family]]
    return method


def run_and_merge(folder: Path, family: str, method: dict[str, Any], **options: Any) -> tuple[Path, MergeReport]:
    task = TASKS.get(family, "causal_lm")
    base = options.pop("base_class", "base" if family == "bert" else task)
    making = {key: options.pop(key) for key in ("size", "dtype_of_base", "config") if key in options}
    if "dtype_of_base" in making:
        making["dtype"] = making.pop("dtype_of_base")
    run = make_run(folder, family, task, method, base_class=base, **making)
    return run, merge_run(run, folder / "merged", **{"use_alone": False, **options})


@pytest.mark.parametrize(("name", "family"), CASES, ids=lambda value: value)
def test_outputs_are_those_of_base_and_adapter(name: str, family: str, tmp_path: Path) -> None:
    _, report = run_and_merge(tmp_path, family, method_for(name, family))
    assert report.verified and report.agreement == 1.0
    assert report.max_abs_diff is not None and report.max_abs_diff < 2e-5
    assert report.changed > 0
    assert report.adapter_effect is None or report.adapter_effect > 10 * report.max_abs_diff


TWICE: dict[str, tuple[str, dict[str, Any]]] = {
    "within a module": ("llama", {"name": "lora", "target_modules": ["ffn.up"], "modules_to_save": ["mlp"]}),
    "dora": (
        "llama",
        {"name": "lora", "target_modules": ["lm_head"], "modules_to_save": ["lm_head"], "use_dora": True},
    ),
    "one of two tied tables": (
        "gpt2",
        {"name": "lora", "target_modules": ["embeddings"], "modules_to_save": ["lm_head"]},
    ),
    "experts": ("mixtral", {"name": "lora", "target_modules": ["experts"], "modules_to_save": ["mlp.experts"]}),
    "a task head": ("bert", {"name": "lora", "r": 2, "target_modules": ["attn.q", "classifier"]}),
    "a task head's bias": ("bert", {"name": "ia3", "target_modules": ["attn.k", "classifier"]}),
}


@pytest.mark.parametrize(("family", "method"), TWICE.values(), ids=TWICE)
def test_a_change_of_what_was_trained_whole_is_on_the_trained_values(
    family: str, method: dict[str, Any], tmp_path: Path
) -> None:
    _, report = run_and_merge(tmp_path, family, method)
    assert report.verified and report.max_abs_diff is not None and report.max_abs_diff < 2e-5
    assert report.adapter_effect is not None and report.adapter_effect > 1e-3


def test_the_output_loads_with_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run_and_merge(tmp_path, "bert", METHODS["lora"])
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert model.config.architectures == ["BertForSequenceClassification"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert saved("the cat")["input_ids"] == AutoTokenizer.from_pretrained(tmp_path / "model")("the cat")["input_ids"]
    assert all(name.startswith(("bert.", "classifier.")) for name in load_file(tmp_path / "merged/model.safetensors"))


def test_tensors_without_a_rule_are_copied_byte_for_byte(tmp_path: Path) -> None:
    run_and_merge(tmp_path, "llama", METHODS["lora"], dtype_of_base=torch.bfloat16)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qv"}
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_accumulates_in_float32_and_rounds_once(tmp_path: Path) -> None:
    run, _ = run_and_merge(tmp_path, "llama", METHODS["lora"], dtype_of_base=torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    base = load_file(tmp_path / "model/model.safetensors")[f"{name}.weight"]
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    expected = (base.float() + 16 / 4 * b @ a).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "merged/model.safetensors")[f"{name}.weight"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_the_result(dtype: str, tmp_path: Path) -> None:
    _, report = run_and_merge(tmp_path, "llama", METHODS["all-linear"], dtype=dtype)
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "merged/model.safetensors").values()}
    assert kinds == {getattr(torch, dtype)} and report.dtype == dtype and report.verified
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == dtype


def test_shards_and_their_index(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, report = run_and_merge(tmp_path, "gpt2", METHODS["lora"], max_shard_size="40KB")
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.size
    assert {name for file in files for name in load_file(file)} == set(index["weight_map"])
    # and back: a sharded base merges too
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_embeddings_that_change_alone_are_untied(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, report = run_and_merge(tmp_path, "gpt2", METHODS["embedding"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert merged.config.tie_word_embeddings is False
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert not torch.equal(merged.transformer.wte.weight, base.transformer.wte.weight)
    assert any("no longer tied" in note for note in report.notes)


def test_tied_tables_trained_as_one_stay_tied(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run_and_merge(tmp_path, "gpt2", {"name": "lora", "r": 4, "modules_to_save": ["wte"]})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings and merged.lm_head.weight is merged.transformer.wte.weight


def test_base_and_run_are_left_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path, "bert", "sequence_classification", METHODS["lora"])

    def contents() -> dict[str, bytes]:
        files = (path for folder in (run, tmp_path / "model") for path in folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = contents()
    merge_run(run, tmp_path / "merged")
    assert contents() == before


def test_a_wrong_merge_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    leave_out_a_rule(monkeypatch)
    with pytest.raises(VerificationFailed, match="differs from base"):
        merge_run(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".partial*"))


def test_one_number_that_the_disk_changed_is_found_also_where_no_row_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    real = merging.write_beside_weights

    def and_another_number(directory: Path, *words: Any) -> list[str]:
        tensors = load_file(directory / "model.safetensors")
        tensors["model.embed_tokens.weight"][4, 0] += 1  # <mask>, which is in no row
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return real(directory, *words)

    monkeypatch.setattr(merging, "write_beside_weights", and_another_number)
    with pytest.raises(VerificationFailed, match=r"model\.safetensors does not hold what was written to it"):
        merge_run(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".partial*"))


def test_files_that_others_read_differently_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    real = merging.write_config

    def another_norm(directory: Path, config: Any, leaving: Any) -> None:
        real(directory, config, leaving)
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))

    monkeypatch.setattr(merging, "write_config", another_norm)
    with pytest.raises(VerificationFailed, match="with transformers alone the merged model gives another result"):
        merge_run(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_a_complete_model_is_copied(method: str, tmp_path: Path) -> None:
    from tests.merging.runs import LABELS, make_recipe
    from tests.tiny import save_tiny

    base = save_tiny(tmp_path / "model", "bert", "base")
    recipe = make_recipe(tmp_path, "sequence_classification", {"name": method}, base)
    run = tmp_path / "run"
    save_tiny(run / "model", "bert", "sequence_classification", seed=3, id2label=dict(enumerate(LABELS.names)))
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    report = merge_run(run, tmp_path / "merged", dtype="bfloat16")
    assert report.verified and report.changed == 0 and report.method == method
    before, after = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / "merged"))
    assert {name: tensor.to(torch.bfloat16).tolist() for name, tensor in before.items()} == {
        name: tensor.tolist() for name, tensor in after.items()
    }


def test_refusals(tmp_path: Path) -> None:
    run = make_run(tmp_path, "bert", "sequence_classification", METHODS["lora"])
    with pytest.raises(UserError, match="exists already"):
        merge_run(run, tmp_path / "model")
    with pytest.raises(UserError, match="is no run directory"):
        merge_run(tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(UserError, match="none of: auto, float32"):
        merge_run(run, tmp_path / "merged", dtype="int8")
    (run / "adapter").rename(run / "gone")
    with pytest.raises(UserError, match="holds no adapter"):
        merge_run(run, tmp_path / "merged")


def test_a_method_that_does_not_merge_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "bert", "sequence_classification", {"name": "adapter"})
    with pytest.raises(UserError, match=r"adapter cannot be merged: .+"):
        merge_run(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    from tests.tiny import save_tiny

    run = make_run(tmp_path, "bert", "sequence_classification", METHODS["lora"])
    wide = save_tiny(tmp_path / "wide", "bert", "base", hidden_size=64)
    (wide / "model.safetensors").write_bytes(b"")  # would fail if it were read
    with pytest.raises(UserError, match="hidden_size 64 instead of 32"):
        merge_run(run, tmp_path / "merged", base=str(wide))
    with pytest.raises(UserError, match="architecture roberta instead of bert"):
        merge_run(run, tmp_path / "merged", base=str(save_tiny(tmp_path / "other", "roberta", "base")))


def test_a_base_that_moved_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the run's base model is gone(.|\n)*--base MODEL"):
        merge_run(run, tmp_path / "merged")
    report = merge_run(run, tmp_path / "merged", base=str(tmp_path / "moved"))
    assert report.verified and [note.split(" instead")[0] for note in report.notes] == [
        f"merged into {tmp_path / 'moved'}"
    ]


def test_a_base_that_changed_is_told(tmp_path: Path) -> None:
    from tests.tiny import save_tiny

    run = make_run(tmp_path, "llama", "causal_lm", METHODS["lora"], base_class="causal_lm")
    save_tiny(tmp_path / "model", "llama", "causal_lm", seed=5)
    report = merge_run(run, tmp_path / "merged")
    assert any("are not those that the adapter was trained on" in note for note in report.notes)


@pytest.mark.parametrize("save", [None, ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_added_tokens_are_in_the_merged_model(save: list[str] | None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    method = {**METHODS["lora"], "modules_to_save": save}
    tokens = ["<tool>", "<answer>"]
    run = make_run(tmp_path, "llama", "causal_lm", method, base_class="causal_lm", new_special_tokens=tokens)
    report = merge_run(run, tmp_path / "merged")
    assert report.verified
    model, tokenizer = (auto.from_pretrained(tmp_path / "merged") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == model.config.vocab_size == 130
    assert tokenizer.convert_tokens_to_ids("<answer>") == 129


def test_added_tokens_have_no_bias_in_a_head_that_has_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    run = make_run(tmp_path, "phi", "causal_lm", METHODS["lora"], base_class="causal_lm", new_special_tokens=["<tool>"])
    file = tmp_path / "model" / "model.safetensors"
    base = load_file(file)
    save_file({**base, "lm_head.bias": base["lm_head.bias"] + 1.0}, file, {"format": "pt"})
    assert merge_run(run, tmp_path / "merged", use_alone=False).verified
    bias = load_file(tmp_path / "merged" / "model.safetensors")["lm_head.bias"]
    assert len(bias) == len(base["lm_head.bias"]) + 1 and bias[-1] == 0.0


def test_a_small_disk_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "bert", "sequence_classification", METHODS["lora"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="GB free"):
        merge_run(run, tmp_path / "merged")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1000", 1000)])
def test_sizes(text: str, size: int) -> None:
    assert bytes_of("--max-shard-size", text) == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "5 apples", f"{'9' * 400}GB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        bytes_of("--max-shard-size", text)
