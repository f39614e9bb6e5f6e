"""`peft convert`: public examples' keys become a recipe that validates and trains, and every key has its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from peftcli.recipe.aliases.foreign_values import DEFAULTS, VALUES
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.convert_file import convert_file
from tests.command_line import Cli
from tests.docs.test_coming_from import exists
from tests.starting.foreign_configs import (
    CHAT_AXOLOTL,
    EVERY,
    LORA_LLAMA_FACTORY,
    QLORA_AXOLOTL,
    QLORA_LLAMA_FACTORY,
    write_config,
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def leaves(value: object, key: str = "") -> set[str]:
    """Return the dotted keys of all values that are no block, a list of plain values counting as one."""
    if isinstance(value, dict):
        return {leaf for name, inner in value.items() for leaf in leaves(inner, f"{key}.{name}" if key else str(name))}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {leaf for number, inner in enumerate(value) for leaf in leaves(inner, f"{key}.{number}")}
    return {key}


@pytest.mark.parametrize("text", EVERY.values(), ids=EVERY)
def test_the_recipe_validates_and_every_key_is_accounted_for(cli: Cli, tmp_path: Path, text: str) -> None:
    file = write_config(Path(), text)
    done = cli("convert", file, "-o", "recipe.yaml", "--json")
    assert done.code == 0, done.err
    assert cli("validate", "recipe.yaml").code == 0
    outcomes = done.json["keys"]
    lines = file.read_text().splitlines()
    for one in outcomes:
        if one["line"] is not None and not one["key"].split(".")[-1].isdigit():
            assert f"{one['key'].split('.')[-1]}:" in lines[one["line"] - 1], one
    said = {one["key"] for one in outcomes}
    silent = {
        key
        for key in leaves(yaml.safe_load(file.read_text()))
        if not any(f"{key}.".startswith(f"{one}.") for one in said)
    }
    assert silent == set()


def test_qlora_of_axolotl() -> None:
    work = convert_file(write_config(Path(), QLORA_AXOLOTL))
    recipe = work.recipe
    assert recipe["method"] == {
        "name": "qlora",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }
    assert recipe["data"] == {
        "path": "alpaca.jsonl", "format": "alpaca", "val_set_size": 0.25, "max_length": 64, "packing": True,
        "train_on": "completions", "overflow": "drop",
    }  # fmt: skip
    training = recipe["training"]
    assert (training["learning_rate"], training["optim"], training["warmup_steps"]) == (2e-4, "adamw_bnb_8bit", 1)
    assert "warmup_ratio" not in training
    assert training["train_sampling_strategy"] == "random"
    assert recipe["model"]["attn_implementation"] == "flash_attention_2"
    by_key = {one.key: one for one in work.outcomes}
    assert by_key["deepspeed"].state == by_key["liger_rms_norm"].state == "dropped"
    assert "DeepSpeed" in str(by_key["deepspeed"].note)
    assert by_key["evals_per_epoch"].state == "decide"
    assert {one.key for one in work.of("empty")} == {
        "dataset_prepared_path", "lora_model_dir", "wandb_project", "wandb_name"
    }  # fmt: skip


def test_several_data_sets_and_fsdp_of_axolotl() -> None:
    work = convert_file(write_config(Path(), CHAT_AXOLOTL))
    assert work.recipe["data"]["datasets"] == [
        {"format": "sharegpt", "columns": {"conversations": "conversations"}, "path": "talks.jsonl"},
        {"path": "alpaca.jsonl", "format": "alpaca", "columns": {"instruction": "instruction", "output": "output"}},
    ]
    assert work.recipe["data"]["chat_template"] == "chatml"
    assert work.recipe["data"]["val_set_size"] == 0  # axolotl holds nothing out by itself
    assert work.recipe["training"]["warmup_ratio"] == 0.03
    assert work.recipe["distributed"] == {"strategy": "fsdp", "cpu_offload": False}
    assert work.recipe["method"]["target_modules"] == ["q_proj", "v_proj"]
    (wording,) = [one for one in work.of("decide") if one.key.endswith("format")]
    assert (wording.ours, wording.line) == ("data.template", 16)


def with_data(text: str) -> Conversion:
    """Convert axolotl's configuration of conversations with other data sets than its own, and no chat template."""
    config = yaml.safe_load(CHAT_AXOLOTL)
    config["base_model"] = "some/model"
    del config["datasets"], config["chat_template"]
    Path("config.yaml").write_text(yaml.safe_dump(config) + text)
    return convert_file(Path("config.yaml"))


def test_of_several_data_sets_of_pretraining_axolotl_reads_the_first() -> None:
    for entries in ("[a.jsonl, b.jsonl]", "[{path: a.jsonl, text_column: body}, {path: b.jsonl}]"):
        work = with_data(f"pretraining_dataset: {entries}\n")
        assert (work.get("data.path"), work.get("data.format"), work.get("data.datasets")) == ("a.jsonl", "text", None)
        assert work.get("data.columns") == ({"text": "body"} if "body" in entries else None)
        assert {one.key: one.ours for one in work.of("decide")} == {"pretraining_dataset.1": "data.datasets"}
    work = with_data("pretraining_dataset: [{path: a.jsonl, type: alpaca}]\n")
    assert work.get("data.format") == "alpaca"
    assert with_data("pretraining_dataset: a.jsonl\n").get("data.path") == "a.jsonl"


@pytest.mark.parametrize(
    ("theirs", "usual", "ours", "left"),
    [
        (["chatml", "chatml"], None, "chatml", []),
        (["chatml", "chatml"], "llama3", "chatml", []),  # each data set's own wins
        (["chatml", None], "chatml", "chatml", []),
        (["chatml", "llama3"], None, None, [0, 1]),
        (["chatml", None], None, None, [0]),
        ([None, "chatml"], "llama3", "llama3", [1]),
    ],
)
def test_data_sets_with_different_chat_templates_are_left_to_the_user(
    theirs: list[str | None], usual: str | None, ours: str | None, left: list[int]
) -> None:
    own = [{"path": "talks.jsonl", "type": "chat_template"} | ({"chat_template": one} if one else {}) for one in theirs]
    others = [{"path": "alpaca.jsonl", "type": "alpaca"}]  # is written without a chat template
    config = {"datasets": own + others} | ({"chat_template": usual} if usual else {})
    for order in (False, True):
        work = with_data(yaml.safe_dump(config, sort_keys=order))
        assert work.get("data.chat_template") == ours
        said = {one.key: one.note for one in work.of("decide")}
        assert set(said) == {f"datasets.{number}.chat_template" for number in left}
        assert all("one chat template" in str(note) for note in said.values())


def test_lora_of_llama_factory_reads_dataset_info() -> None:
    work = convert_file(write_config(Path(), LORA_LLAMA_FACTORY))
    assert work.recipe["data"]["datasets"] == [
        {"path": "alpaca.jsonl", "format": "alpaca"},
        {"path": "talks.jsonl", "format": "sharegpt"},
    ]
    assert work.recipe["data"]["max_rows"] == 16  # 8 of each
    assert work.recipe["data"]["chat_template"] == "chatml"
    assert work.recipe["method"] == {"name": "lora", "r": 4, "target_modules": "all-linear", "lora_alpha": 8}
    assert work.of("decide") == []


def test_qlora_of_llama_factory() -> None:
    work = convert_file(write_config(Path(), QLORA_LLAMA_FACTORY))
    assert work.recipe["method"] == {"name": "qlora", "target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16}
    assert work.recipe["data"]["path"] == "talks.jsonl"
    assert work.recipe["training"]["eval_steps"] == 2


def test_a_template_without_thinking() -> None:
    text = LORA_LLAMA_FACTORY.replace("template: chatml", "template: qwen3_nothink")
    data = convert_file(write_config(Path(), text)).recipe["data"]
    assert "chat_template" not in data  # the tokenizer's own, which reads it
    assert data["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_data_set_that_nothing_describes_is_left_to_the_user() -> None:
    file = write_config(Path(), LORA_LLAMA_FACTORY)
    Path("dataset_info.json").unlink()
    found = convert_file(file).of("decide")
    assert [one.ours for one in found] == ["data.path", "data.path"]
    assert "no dataset_info.json in data" in str(found[0].note)


def test_what_a_recipe_refuses_is_left_to_the_user() -> None:
    text = QLORA_AXOLOTL.replace("optimizer: adamw_bnb_8bit", "optimizer: muon").replace(
        "  - path", "  - shards: 4\n    path"
    )
    work = convert_file(write_config(Path(), text + "kd_alpha: 0.5\n"))
    by_key = {one.key: one for one in work.of("decide")}
    assert set(by_key) == {"optimizer", "evals_per_epoch", "datasets.0.shards", "kd_alpha"}
    assert "muon" in str(by_key["optimizer"].note)
    assert "optim" not in work.recipe["training"]


@pytest.mark.parametrize(
    ("text", "line", "ours"),
    [
        (QLORA_AXOLOTL, "lora_target_modules: [q_proj, 5]", "method.target_modules"),
        (LORA_LLAMA_FACTORY, "report_to: swanlab", "training.report_to"),
        (LORA_LLAMA_FACTORY, "report_to: [all, wandb, none]", "training.report_to"),
        (LORA_LLAMA_FACTORY, "lora_rank: many", "method.r"),
    ],
)
def test_a_list_with_a_wrong_element_is_left_to_the_user(text: str, line: str, ours: str) -> None:
    key = line.partition(":")[0]
    others = [one for one in text.splitlines() if one.partition(":")[0] not in (key, "lora_target_linear")]
    work = convert_file(write_config(Path(), "\n".join([*others, line]) + "\n"))
    assert [one.ours for one in work.of("decide") if one.key == key] == [ours]
    assert all(one.key != "(missing)" for one in work.of("decide"))
    assert work.get(ours) is None


def test_two_trackers_are_two() -> None:
    work = convert_file(write_config(Path(), QLORA_AXOLOTL + "report_to: tensorboard\nuse_wandb: true\n"))
    assert work.recipe["training"]["report_to"] == ["tensorboard", "wandb"]


def test_an_empty_list_is_a_key_without_a_value() -> None:
    work = convert_file(write_config(Path(), QLORA_AXOLOTL + "test_datasets: []\nfsdp: []\npretraining_dataset: []\n"))
    assert {"test_datasets", "fsdp", "pretraining_dataset"} <= {one.key for one in work.of("empty")}
    assert "distributed" not in work.recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {name_or_path: m}\nmethod: {name: lora}\n", "a recipe already"),
        ("alpha: 1\n", "looked for `base_model`"),
        ("- 1\n", "no mapping of keys; looked for `base_model`"),
        ("base_model: m\nadapter: lora\nrl: grpo\n", ":3: rl: grpo is neither"),
        ("model_name_or_path: m\nstage: ppo\n", ":2: stage: ppo is neither"),
        ("base_model: m\nadapter: llama-adapter\n", ":2: adapter: 'llama-adapter' is no method"),
        ("base_model: [\n", "config.yaml"),
        ("base_model: m\nadapter: lora\nrl: [dpo]\n", ":3: rl: ['dpo'] is neither"),
        ("base_model: m\npretraining_dataset: []\n", "names no data set to train on"),
        ("base_model: m\nadapter: lora\nadapter: qlora\n", ":3: adapter: given twice (first on line 2)"),
        ("model_name_or_path: m\ntemplate: llama3\n", "names no data set to train on"),
    ],
)
def test_what_cannot_be_converted_is_refused(cli: Cli, text: str, said: str) -> None:
    Path("config.yaml").write_text(text)
    done = cli("convert", "config.yaml", "-o", "recipe.yaml")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not Path("recipe.yaml").exists()


def test_an_instruct_model_has_no_thinking_to_switch_off() -> None:
    text = LORA_LLAMA_FACTORY.replace("template: chatml", "template: qwen3_nothink")
    work = convert_file(write_config(Path(), text, "Qwen/Qwen3-4B-Instruct-2507"))
    assert "chat_template_kwargs" not in work.recipe["data"]
    assert "template" in {one.key for one in work.of("dropped")}


def test_what_would_train_something_else_is_left_to_the_user() -> None:
    def left(text: str) -> dict[str, str | None]:
        return {one.key: one.note for one in convert_file(write_config(Path(), text)).of("decide")}

    more = "unfrozen_parameters: [lm_head]\ndataset_shards: 4\n"
    assert {"unfrozen_parameters", "dataset_shards"} <= set(left(QLORA_AXOLOTL + more))
    other = QLORA_LLAMA_FACTORY.replace("method: bnb", "method: hqq").replace("template: qwen3", "template: gemma3")
    notes = left(other)
    assert notes["quantization_method"] == "bitsandbytes only"
    assert str(notes["template"]).endswith("the tokenizer's own template is used")
    assert "quantization_method" not in left(QLORA_LLAMA_FACTORY)


@pytest.mark.parametrize("text", [QLORA_AXOLOTL, QLORA_LLAMA_FACTORY], ids=["axolotl", "llama-factory"])
def test_flash_attention_says_what_it_needs(text: str) -> None:
    work = convert_file(write_config(Path(), text))
    note = next(one.note for one in work.of("translated") if one.ours == "model.attn_implementation")
    assert note is not None and "needs a GPU and the package flash-attn" in note


def test_without_output_the_recipe_is_all_of_standard_output(cli: Cli) -> None:
    file = write_config(Path(), LORA_LLAMA_FACTORY)
    line = file.read_text().splitlines().index("learning_rate: 1.0e-4") + 1
    done = cli("convert", file)
    assert yaml.safe_load(done.out)["method"]["r"] == 4
    assert f"  line {line}: learning_rate -> training.learning_rate\n" in done.err
    assert all(len(line) <= 80 for line in done.err.splitlines())


def test_the_tables_name_keys_that_exist() -> None:
    assert all(exists(ours) for defaults in DEFAULTS.values() for ours in defaults)
    assert all(len(values) for values in VALUES.values())


@pytest.mark.parametrize("text", [CHAT_AXOLOTL, LORA_LLAMA_FACTORY], ids=["axolotl", "llama-factory"])
def test_a_converted_recipe_trains(cli: Cli, models, text: str) -> None:
    write_config(Path(), text, str(models("llama")))
    assert cli("convert", "config.yaml", "-o", "recipe.yaml").code == 0
    done = cli("train", "recipe.yaml", "training.max_steps=2", "training.device=cpu", "distributed.strategy=auto", "-q")
    assert done.code == 0, done.err
