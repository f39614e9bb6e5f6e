"""What is written beside weights: the base's files as they are, and what training learnt beyond them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from peftcli.deliverables.check_files import check_files
from peftcli.deliverables.config_file import make_readable
from peftcli.deliverables.generation_file import generation_notes, repaired, why_not_valid
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.deliverables.leaving_model import LeavingModel, leaving_model
from peftcli.deliverables.write_beside import write_beside_adapter, write_beside_weights, write_config
from peftcli.errors import VerificationFailed
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.recipe.schema import ModelSpec, TaskName
from tests.tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}<mask>{% endfor %}"


def described(base: Path, texts: LearntTexts | None = None, task: TaskName = "causal_lm", **spec: Any) -> LeavingModel:
    block = ModelSpec(name_or_path=str(base), **spec)
    return leaving_model(block, task, load_tokenizer(block), texts or LearntTexts())


def written(leaving: LeavingModel, directory: Path) -> list[str]:
    directory.mkdir()
    assert leaving.base is not None
    model = AutoModelForCausalLM.from_pretrained(leaving.base)
    notes = write_beside_weights(directory, leaving, model)
    write_config(directory, model.config, leaving)
    return notes


def test_files_of_the_base_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    tiny_tokenizer(pad=False, padding_side="left").save_pretrained(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "own": 1}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    for name in (
        "preprocessor_config.json",
        "processor_config.json",
        "LICENSE",
        "tokenizer.model",
        "chat_template.jinja",
    ):
        (base / name).write_text("{}")
    (base / "optimizer.pt").write_text("not carried")
    written(described(base), tmp_path / "out")
    same = {file.name for file in base.iterdir() if (tmp_path / "out" / file.name).exists()}
    assert same >= {"tokenizer.json", "preprocessor_config.json", "processor_config.json", "LICENSE", "tokenizer.model"}
    assert all((tmp_path / "out" / name).read_bytes() == (base / name).read_bytes() for name in same - {"config.json"})
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == "left" and tokenizer.pad_token is None


def test_the_template_of_training_replaces_every_other(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    (base / "chat_template.json").write_text('{"chat_template": "old"}')
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("old")
    written(described(base, LearntTexts(TEMPLATE)), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert not any("old" in file.read_text() for file in (tmp_path / "out").rglob("*.j*") if "chat" in file.name)


@pytest.mark.parametrize(("own", "stops", "expected"), [(2, (2, 4), [2, 4]), ([2, 3], (4,), [2, 3, 4]), (2, (2,), 2)])
def test_an_answer_ends_where_it_was_learnt_to_end(
    own: Any, stops: tuple[int, ...], expected: Any, tmp_path: Path
) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": own, "top_k": 7, "do_sample": True}))
    notes = written(described(base, LearntTexts(None, stops)), tmp_path / "out")
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert settings.eos_token_id == expected and settings.top_k == 7 and notes == []


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": 2}, ["temperature", "top_p"]),
        ({"early_stopping": True, "num_beams": 1, "eos_token_id": 2}, ["early_stopping"]),
        ({"cache_implementation": "of another age", "eos_token_id": 2}, ["cache_implementation"]),
        ({"max_new_tokens": -1, "eos_token_id": 2}, ["max_new_tokens"]),
        ({"temperature": 0.6, "do_sample": True, "eos_token_id": 2}, []),
    ],
)
def test_settings_that_transformers_does_not_save_are_repaired_and_told(
    settings: dict[str, Any], lost: list[str], tmp_path: Path
) -> None:
    kept, left_out = repaired(settings)
    assert left_out == lost and kept["eos_token_id"] == 2 and why_not_valid(kept) is None
    if set(lost) & {"cache_implementation", "max_new_tokens"}:
        return  # transformers does not load a base with these
    base = save_tiny(tmp_path / "base", "llama")
    (base / "generation_config.json").write_text(json.dumps(settings))
    leaving = described(base)
    for notes in (generation_notes(leaving), written(leaving, tmp_path / "out")):
        assert (not lost and not notes) or all(name in notes[0] for name in ("generation_config.json", *lost))
    GenerationConfig.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")


def test_added_tokens_bring_the_tokenizer_with_the_padding_of_the_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    tiny_tokenizer(pad=False, padding_side="left").save_pretrained(base)
    leaving = described(base, new_special_tokens=["<a>"])
    for name in ("adapter", "model"):
        (tmp_path / name).mkdir()
    write_beside_adapter(tmp_path / "adapter", leaving)
    write_beside_weights(tmp_path / "model", leaving, AutoModelForCausalLM.from_pretrained(base))
    for name in ("adapter", "model"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer("<a>", add_special_tokens=False)["input_ids"] == [128]
        assert tokenizer.padding_side == "left" and tokenizer.pad_token is None
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not {"is_local", "local_files_only"} & set(config)
        assert not isinstance(config.get("extra_special_tokens"), list)


def test_an_adapter_brings_the_template_alone_where_no_token_was_added(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    for name, texts in (("plain", LearntTexts()), ("chat", LearntTexts(TEMPLATE))):
        (tmp_path / name).mkdir()
        write_beside_adapter(tmp_path / name, described(base, texts))
    assert not list((tmp_path / "plain").iterdir())
    assert [file.name for file in (tmp_path / "chat").iterdir()] == ["chat_template.jinja"]


def test_a_classifier_pads_with_the_token_that_it_pools_by(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", "base")
    tiny_tokenizer(pad=False).save_pretrained(base)
    leaving = described(base, task="sequence_classification")
    (tmp_path / "out").mkdir()
    write_beside_weights(tmp_path / "out", leaving, tiny_model("llama", "sequence_classification"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == leaving.tokenizer.pad_token is not None
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_code_of_the_base_travels_where_its_config_names_some(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    for name in ("modeling_own.py", "parts/inner.py", ".git/hook.py"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("")
    written(described(base), tmp_path / "without")
    config = json.loads((base / "config.json").read_text())
    names = {"AutoModelForCausalLM": "modeling_own.Own"}
    (base / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    written(described(base), tmp_path / "with")
    assert not list((tmp_path / "without").rglob("*.py"))
    found = {file.relative_to(tmp_path / "with").as_posix() for file in (tmp_path / "with").rglob("*.py")}
    assert found == {"modeling_own.py", "parts/inner.py"}
    assert json.loads((tmp_path / "with" / "config.json").read_text())["auto_map"] == names


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("scaling", [None, {**LLAMA3, "original_max_position_embeddings": 16}])
def test_a_config_of_transformers_4_keeps_its_names(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    config = json.loads((base / "config.json").read_text())
    for name in ("rope_parameters", "dtype"):
        config.pop(name, None)
    config |= {"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    (base / "config.json").write_text(json.dumps(config))
    written(described(base), tmp_path / "out")
    result = json.loads((tmp_path / "out" / "config.json").read_text())
    assert result["rope_theta"] == 500000.0 and result["rope_scaling"] == scaling and result["torch_dtype"] == "float32"
    mine, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (base, tmp_path / "out"))
    assert mine["rope_parameters"] == theirs["rope_parameters"] and mine["rope_parameters"]["rope_theta"] == 500000.0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "modernbert", "gpt_neox", "phi3"])
def test_a_config_of_transformers_5_gets_the_names_of_4(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path / "base")
    config = AutoConfig.from_pretrained(tmp_path / "base")
    config.save_pretrained(tmp_path / "out")
    block = ModelSpec(name_or_path=str(tmp_path / "base"))
    make_readable(
        tmp_path / "out" / "config.json", config, LeavingModel(block, "causal_lm", tiny_tokenizer(), tmp_path / "base")
    )
    result = json.loads((tmp_path / "out" / "config.json").read_text())
    parameters = config.rope_parameters
    whole = parameters.get("full_attention", parameters)
    assert result["rope_theta"] == whole["rope_theta"]
    if "sliding_attention" in parameters:
        assert result["rope_local_base_freq"] == parameters["sliding_attention"]["rope_theta"]
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == parameters


def test_what_training_changed_is_not_taken_from_the_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    config = LlamaConfig.from_pretrained(base)
    config.tie_word_embeddings = True
    config.save_pretrained(base)
    changed = LlamaConfig.from_pretrained(base)
    changed.tie_word_embeddings = False
    changed.dtype = torch.bfloat16
    (tmp_path / "out").mkdir()
    write_config(tmp_path / "out", changed, described(base))
    again = AutoConfig.from_pretrained(tmp_path / "out")
    assert again.tie_word_embeddings is False and again.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("chat_template.jinja", "another", "is not the one used in training"),
        ("generation_config.json", '{"eos_token_id": 2}', "does not stop at <mask>"),
        ("tokenizer.json", None, "into other tokens"),
    ],
)
def test_files_are_read_before_they_appear(file: str, content: str | None, words: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    leaving = described(base, LearntTexts(TEMPLATE, (2, 4)))
    written(leaving, tmp_path / "out")
    config = AutoConfig.from_pretrained(base)
    check_files(tmp_path / "out", config, leaving)
    if content is None:
        tiny_tokenizer(add_bos=True).save_pretrained(tmp_path / "other")
        content = (tmp_path / "other" / file).read_text()
    (tmp_path / "out" / file).write_text(content)
    with pytest.raises(VerificationFailed, match=words):
        check_files(tmp_path / "out", config, leaving)


def test_a_base_that_vanished_while_training_loses_no_work(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    leaving = described(base, LearntTexts(TEMPLATE, (2, 4)))
    shutil.rmtree(base)
    (tmp_path / "out").mkdir()
    model = tiny_model("llama", "causal_lm")
    write_beside_weights(tmp_path / "out", leaving, model)
    write_config(tmp_path / "out", model.config, leaving)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 4]


def test_an_infinite_setting_is_read_back_as_one(tmp_path: Path) -> None:
    """Falcon-H1's and Mamba-2's `time_step_limit` ends at infinity, which transformers writes as an object."""
    config = AutoConfig.for_model("falcon_h1", num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    leaving = LeavingModel(ModelSpec(name_or_path=str(tmp_path)), "causal_lm", tiny_tokenizer(), tmp_path)
    make_readable(tmp_path / "config.json", config, leaving)
    assert AutoConfig.from_pretrained(tmp_path).time_step_limit[1] == float("inf")
