"""`peft convert` of preference stages: losses by their names, rows by their columns, and what each key becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.convert_file import convert_file
from tests.command_line import Cli
from tests.recipes import WORDS, write_jsonl
from tests.starting.test_convert import leaves

AXOLOTL = """\
base_model: {model}
rl: {rl}
datasets:
  - path: pairs.jsonl
    type: {type}
val_set_size: 0.25
output_dir: outputs/pairs
adapter: lora
lora_r: 4
lora_target_linear: true
sequence_len: 256
micro_batch_size: 2
num_epochs: 1
learning_rate: 1e-5
"""
LLAMA_FACTORY = """\
model_name_or_path: {model}
stage: {stage}
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: {dataset}
dataset_dir: .
template: chatml
cutoff_len: 256
output_dir: saves/pairs
per_device_train_batch_size: 2
learning_rate: 5.0e-6
num_train_epochs: 1.0
"""
INFO: dict[str, Any] = {
    "pairs": {"file_name": "asked.jsonl", "ranking": True,
              "columns": {"prompt": "instruction", "query": "input", "chosen": "good", "rejected": "bad"}},
    "talks": {"file_name": "talks.jsonl", "ranking": True, "formatting": "sharegpt",
              "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
    "judged": {"file_name": "judged.jsonl", "formatting": "sharegpt",
               "columns": {"messages": "messages", "kto_tag": "liked"},
               "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                        "assistant_tag": "assistant"}},
    "plain": {"file_name": "asked.jsonl"},
    "older": {"file_name": "asked.jsonl", "ranking": True, "columns": {"prompt": "instruction", "history": "h"}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the rows of every form into the current directory."""
    monkeypatch.chdir(tmp_path)
    words = WORDS[:12]
    write_jsonl(tmp_path / "pairs.jsonl", [{"input": f"is it {w}", "chosen": w, "rejected": f"no {w}"} for w in words])
    asked = [{"instruction": "say", "input": w, "good": w, "bad": f"no {w}"} for w in words]
    write_jsonl(tmp_path / "asked.jsonl", asked)
    talks = [
        {"conversations": [{"from": "human", "value": f"is it {w}"}], "chosen": {"from": "gpt", "value": w},
         "rejected": {"from": "gpt", "value": f"no {w}"}}
        for w in words
    ]  # fmt: skip
    write_jsonl(tmp_path / "talks.jsonl", talks)
    judged = [
        {"messages": [{"role": "user", "content": "is it"}, {"role": "assistant", "content": w}], "liked": i % 2 == 0}
        for i, w in enumerate(words)
    ]
    write_jsonl(tmp_path / "judged.jsonl", judged)
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))


def axolotl(more: str = "", rl: str = "dpo", kind: str = "chatml.icr", model: str = "some/model") -> Conversion:
    return converted(AXOLOTL.format(model=model, rl=rl, type=kind) + more)


def llama_factory(more: str = "", stage: str = "dpo", dataset: str = "pairs") -> Conversion:
    return converted(LLAMA_FACTORY.format(model="some/model", stage=stage, dataset=dataset) + more)


def converted(text: str) -> Conversion:
    """Convert a configuration; every key of it has an outcome."""
    Path("config.yaml").write_text(text)
    work = convert_file(Path("config.yaml"))
    said = {one.key for one in work.outcomes}
    silent = {key for key in leaves(yaml.safe_load(text)) if not any(f"{key}.".startswith(f"{one}.") for one in said)}
    assert silent == set()
    return work


def decided(work: Conversion) -> dict[str, str]:
    return {one.key: str(one.note) for one in work.of("decide")}


@pytest.mark.parametrize(
    ("rl", "loss"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("orpo", "orpo"), ("simpo", "simpo"), ("kto", "kto")]
)
def test_every_loss_of_axolotl_is_one_of_ours(rl: str, loss: str) -> None:
    work = axolotl("rl_beta: 0.2\nsimpo_gamma: 0.3\nkto_desirable_weight: 1.2\n", rl)
    training = work.recipe["training"]
    assert (work.recipe["task"], training["loss_type"], training["beta"]) == ("preference", loss, 0.2)
    assert ("simpo_gamma" in training, "desirable_weight" in training) == (loss == "simpo", loss == "kto")
    assert training.get("sft_weight") == (1.0 if loss == "simpo" else None)  # TRL's CPOTrainer without a cpo_alpha
    assert work.recipe["data"]["format"] == ("unpaired" if loss == "kto" else "preference")
    assert work.recipe["data"]["columns"] == {"prompt": "input"} and work.recipe["data"]["chat_template"] == "chatml"
    assert decided(work) == {}


def test_keys_of_axolotl_that_stand_for_others() -> None:
    assert axolotl("orpo_alpha: 0.3\n", "orpo").recipe["training"]["beta"] == 0.3
    both = axolotl("orpo_alpha: 0.3\nrl_beta: 0.2\ntrl:\n  beta: 0.05\n  use_vllm: false\n")
    assert both.recipe["training"]["beta"] == 0.05
    assert axolotl("cpo_alpha: 0.5\n", "simpo").recipe["training"]["sft_weight"] == 0.5
    assert "sft_weight" not in axolotl("cpo_alpha: 0.5\n").recipe["training"]
    assert axolotl("rpo_alpha: 0.5\n").recipe["training"]["sft_weight"] == 0.5
    assert axolotl("dpo_loss_type: [hinge]\n").recipe["training"]["loss_type"] == "hinge"
    assert set(decided(axolotl("dpo_loss_type: [sigmoid, bco_pair]\n"))) == {"dpo_loss_type"}
    some = axolotl("dpo_use_weighting: true\ndpo_norm_loss: false\nprecompute_ref_log_probs: true\nmax_prompt_len: 9\n")
    assert set(decided(some)) == {"dpo_use_weighting"}
    assert {"dpo_norm_loss", "precompute_ref_log_probs", "max_prompt_len"} <= {one.key for one in some.of("dropped")}
    assert axolotl("dpo_label_smoothing: 0.1\n").recipe["training"]["label_smoothing"] == 0.1


def test_types_of_axolotls_rows() -> None:
    assert axolotl(kind="passthrough").recipe["data"]["chat_template"] == "none"
    assert axolotl(kind="llama3.argilla_chat").recipe["data"]["chat_template"] == "llama3"
    assert decided(axolotl(kind="chatml")) == {}
    assert set(decided(axolotl(kind="zephyr.nectar"))) == set(decided(axolotl(kind="my.intel"))) == {"datasets.0.type"}
    whole = axolotl(kind="chat_template.default\n    field_messages: chosen\n    roles: {user: [human]}")
    assert "columns" not in whole.recipe["data"] and decided(whole) == {}
    words = "{field_prompt: input, field_chosen: a, field_rejected: b, prompt_format: '[I] {prompt}', chosen_format: x}"
    own = axolotl(kind=words)
    assert own.recipe["data"]["columns"] == {"prompt": "input", "chosen": "a", "rejected": "b"}
    assert set(decided(own)) == {"datasets.0.type.prompt_format", "datasets.0.type.chosen_format"}
    fields = "chat_template.default\n    field_messages: talk\n    field_chosen: c\n    message_property_mappings:\n"
    talk = axolotl(kind=f"{fields}      role: from\n      content: value")
    assert talk.recipe["data"]["columns"] == {"prompt": "talk", "chosen": "c"} and decided(talk) == {}


def test_rows_of_preferences_in_different_templates_are_left_to_the_user() -> None:
    other = "\n  - path: asked.jsonl\n    type: "
    same = axolotl("chat_template: llama3\n", kind=f"chatml.intel{other}chatml.icr")
    assert same.recipe["data"]["chat_template"] == "chatml" and decided(same) == {}
    for second in ("llama3.icr", "passthrough", "chat_template.default"):
        work = axolotl(kind=f"chatml.intel{other}{second}")
        assert "chat_template" not in work.recipe["data"]
        assert "one chat template" in decided(work)["datasets.0.type"]


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "orpo", "simpo"])
def test_every_loss_of_llama_factory_is_one_of_ours(loss: str) -> None:
    keys = f"pref_loss: {loss}\npref_beta: 0.2\npref_ftx: 0.5\nsimpo_gamma: 0.3\ndpo_label_smoothing: 0.0\n"
    work = llama_factory(keys)
    training = work.recipe["training"]
    assert (work.recipe["task"], training["loss_type"], training["beta"]) == ("preference", loss, 0.2)
    assert training["sft_weight"] == (1.5 if loss == "orpo" else 0.5)
    assert ("simpo_gamma" in training) == (loss == "simpo")
    assert work.recipe["data"]["path"] == "asked.jsonl" and work.recipe["data"]["format"] == "preference"
    columns = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}
    assert work.recipe["data"]["columns"] == columns and decided(work) == {}


def test_kto_of_llama_factory() -> None:
    work = llama_factory("kto_chosen_weight: 1.5\npref_ftx: 0.0\npref_loss: sigmoid\n", "kto", "judged")
    assert work.recipe["training"] | {"loss_type": "kto", "desirable_weight": 1.5} == work.recipe["training"]
    assert work.recipe["data"]["format"] == "unpaired" and decided(work) == {}
    assert work.recipe["data"]["columns"] == {"prompt": "messages", "label": "liked"}
    assert "no likelihood term" in decided(llama_factory("pref_ftx: 0.1\n", "kto", "judged"))["pref_ftx"]


def test_what_of_llama_factory_is_left_to_the_user() -> None:
    found = llama_factory("pref_loss: kto_pair\n")
    assert found.recipe["training"]["loss_type"] == "kto" and set(decided(found)) == {"pref_loss"}
    found = llama_factory("pref_loss: sppo\npref_bco_weight: 0.5\nld_alpha: 0.5\nref_model: another\n")
    assert set(decided(found)) == {"pref_loss", "pref_bco_weight", "ld_alpha", "ref_model"}
    assert decided(llama_factory("pref_bco_weight: 0.0\nref_model: some/model\n")) == {}
    assert "neither ranking nor" in decided(llama_factory(dataset="plain"))["dataset"]
    assert "training.loss_type: kto" in decided(llama_factory(dataset="judged"))["dataset"]
    assert "no column history" in decided(llama_factory(dataset="older"))["dataset"]
    assert "the base without it" in decided(llama_factory("adapter_name_or_path: saves/sft\n"))["adapter_name_or_path"]
    assert decided(llama_factory("adapter_name_or_path: saves/sft\npref_loss: orpo\n")) == {}
    assert llama_factory().get("training.beta") is None
    assert llama_factory("pref_loss: simpo\n").get("training.beta") == 0.1  # ours is 2


def test_supervised_configurations_drop_the_keys_of_preferences() -> None:
    text = LLAMA_FACTORY.format(model="m", stage="sft", dataset="plain")
    work = converted(text + "pref_beta: 0.1\npref_loss: ipo\npref_ftx: 1.0\nref_model: m\nsimpo_gamma: 0.5\n")
    assert {"pref_beta", "pref_loss", "pref_ftx", "ref_model", "simpo_gamma"} <= {o.key for o in work.of("dropped")}
    assert work.recipe["task"] == "causal_lm" and "loss_type" not in work.recipe["training"]


@pytest.mark.parametrize(
    "text",
    [
        AXOLOTL.format(model="{model}", rl="dpo", type="chatml.icr"),
        LLAMA_FACTORY.format(model="{model}", stage="dpo", dataset="pairs,talks") + "pref_loss: orpo\n",
        LLAMA_FACTORY.format(model="{model}", stage="kto", dataset="judged"),
    ],
    ids=["axolotl-dpo", "llama-factory-orpo", "llama-factory-kto"],
)
def test_a_converted_recipe_trains(cli: Cli, models: Any, text: str) -> None:
    Path("config.yaml").write_text(text.format(model=models("llama")))
    assert cli("convert", "config.yaml", "-o", "recipe.yaml").code == 0
    done = cli("train", "recipe.yaml", "training.max_steps=2", "training.device=cpu", "-q")
    assert done.code == 0, done.err
