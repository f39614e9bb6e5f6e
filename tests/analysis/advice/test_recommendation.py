"""`peft recommend`: rules inside their scope, own studies before literature, and a recipe that can be trained."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.analysis.advice.advice_rules import COMPUTED, rules, rules_that_hold
from peftcli.analysis.advice.advised_recipe import advised_recipe, lines_to_paste
from peftcli.analysis.advice.computed_values import VALUES
from peftcli.analysis.advice.memory_bound import SPARE, Shapes, memory_needs
from peftcli.analysis.advice.recommendation import Advice, Recommendation, recommend
from peftcli.analysis.advice.situation import Situation, look_at
from peftcli.names import NAMES
from peftcli.protocol.rates.published_sources import sources
from peftcli.recipe.load_recipe import load_recipe
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.sweep.sweep_record import Sweep, SweepBest, SweepTrial
from tests.recipes import class_rows
from tests.tiny import LAYERS, VOCAB

LLAMA_8B = Situation("llama", "causal_lm", "decoder", 4096, False, 8_030_261_248, 2_621_440, 1024, 20_000, 4_000_000)
BERT = Situation("bert", "sequence_classification", "encoder", 768, True, 110_000_000, 200_000, 768, 5_000, 5_000)


def by_key(found: Recommendation) -> dict[str, Advice]:
    return {line.key: line for line in found.lines}


def ids(now: Situation) -> set[str]:
    return {rule.id for rule in rules_that_hold(now)}


def test_each_rule_has_a_source_a_scope_a_limit_and_a_date() -> None:
    known = set(sources())
    assert len({rule.id for rule in rules()}) == len(rules()) >= 20
    for rule in rules():
        computed = [text.removeprefix(COMPUTED) for text in (rule.source, rule.scope) if text.startswith(COMPUTED)]
        assert rule.source in known or (rule.key == "training.learning_rate" and computed), rule.id
        assert len(rule.scope.split()) >= 2 and len(rule.limit.split()) >= 2, rule.id
        if isinstance(rule.value, str) and rule.value.startswith(COMPUTED) and rule.key != "training.learning_rate":
            assert rule.value.removeprefix(COMPUTED) in VALUES, rule.id


def test_a_rule_outside_its_scope_is_not_used() -> None:
    assert {"lora-for-decoders", "all-linears-large", "alpha-fixed"} <= ids(LLAMA_8B)
    assert {"lora-for-encoders", "query-and-value", "rank-for-labels"} <= ids(BERT)
    large = dataclasses.replace(LLAMA_8B, numbers=70_000_000_000)
    assert "lora-for-large-decoders" in ids(large) and "lora-for-decoders" not in ids(large)
    assert "lora-for-small-decoders" in ids(dataclasses.replace(LLAMA_8B, numbers=135_000_000))
    vast = dataclasses.replace(BERT, numbers=3_000_000_000)
    assert "lora-elsewhere" in ids(vast)
    assert "four-bits-elsewhere" in ids(dataclasses.replace(BERT, needs=frozenset({"4bit"})))
    unknown = ids(dataclasses.replace(LLAMA_8B, rows=None, supervised_tokens=None))
    assert "rank-without-data" in unknown and not {"epochs-many-rows", "epochs-few-rows", "rank-from-tokens"} & unknown
    assert "epochs-many-rows" in ids(dataclasses.replace(LLAMA_8B, rows=200_000))
    few = dataclasses.replace(BERT, rows=300)
    assert {"epochs-few-rows", "small-batch-little-data"} <= ids(few)
    assert {"epochs-few-rows-elsewhere", "small-batch-elsewhere"} <= ids(dataclasses.replace(LLAMA_8B, rows=300))
    labelled = dataclasses.replace(LLAMA_8B, task="sequence_classification", labels=True)
    pairs, tags = (
        dataclasses.replace(LLAMA_8B, task="preference"),
        dataclasses.replace(few, task="token_classification"),
    )
    for now in (labelled, pairs, tags):
        of_evidence = {rule.id for rule in rules_that_hold(now) if rule.source != "this-project"}
        assert of_evidence == {"rate"}, "what was found on other models and tasks says nothing here"
    assert all(len({rule.key for rule in rules_that_hold(now)}) == len(ids(now)) for now in (LLAMA_8B, BERT, vast))


def test_what_was_found_on_models_is_used_on_such_models_alone() -> None:
    """A rule names kinds of models and tasks, and sizes within a factor of 6 of those in its scope."""
    found = [rule for rule in rules() if rule.source != "this-project" and rule.id != "rate"]
    assert len(found) > 15
    for rule in found:
        assert rule.when.kinds and rule.when.tasks and set(rule.when.tasks) <= set(NAMES.tasks), rule.id
        sizes = [
            float(size) * {"M": 1e6, "B": 1e9}[unit] for size, unit in re.findall(r"\b([\d.]+)([MB])\b", rule.scope)
        ]
        least, most = rule.when.numbers
        if sizes:
            assert least is not None and most is not None, rule.id
            assert min(sizes) / 6 <= least and most <= 6 * max(sizes), rule.id


def test_each_key_has_a_rule_for_every_situation() -> None:
    keys = {rule.key for rule in rules()} - {"training.gradient_checkpointing"}
    unknown = dataclasses.replace(BERT, kind="encoder_decoder", rows=None, supervised_tokens=None)
    for now in (LLAMA_8B, BERT, unknown):
        for task in NAMES.tasks:
            assert {rule.key for rule in rules_that_hold(dataclasses.replace(now, task=task))} == keys


@pytest.mark.parametrize(("tokens", "rank"), [(10_000, 8), (60_000_000, 32), (10**12, 256)])
def test_the_rank_has_room_for_the_tokens(tokens: int, rank: int) -> None:
    assert VALUES["rank_from_tokens"](dataclasses.replace(LLAMA_8B, supervised_tokens=tokens)) == rank


def test_memory_asks_for_checkpointing_then_for_four_bits() -> None:
    shapes = Shapes(8_030_000_000, 6_980_000_000, 42_000_000, 4096, 32, 1024)
    asked = {size: memory_needs(shapes, size * 10**9) for size in (80, 40, 20, 12, 4)}
    assert asked[80] == (4, frozenset())
    assert asked[20] == (1, {"checkpointing"})
    assert "4bit" in asked[12][1] and asked[12][0] is not None
    assert asked[4][0] is None
    assert "four-bits-for-memory" in ids(dataclasses.replace(LLAMA_8B, needs=asked[12][1]))


def test_a_recipe_gets_every_key_with_reason_source_scope_limit_and_command(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    lines = by_key(recommend(loaded))
    assert lines["method.name"].value == "lora"
    for line in lines.values():
        assert line.reason and line.scope and line.limit and line.source and not line.source.startswith(COMPUTED)
        assert shlex.split(line.against)[0] == "peft" and loaded.path in shlex.split(line.against)
    assert set(lines["training.learning_rate"].source.split(", ")) <= set(sources())
    low, high = lines["training.learning_rate"].window or (0, 0)
    assert low < lines["training.learning_rate"].value < high and f"log:{low:g}..{high:g}" in str(lines)
    assert lines["training.num_train_epochs"].value > 3  # 24 rows
    assert {"key", "value", "reason", "source", "scope"} <= lines["method.name"].as_dict().keys()


def test_rows_that_are_not_there_are_said_to_be_unknown(recipe) -> None:
    loaded = recipe("llama", data__path="/nowhere/rows.jsonl")
    found = recommend(loaded)
    assert found.now.rows is None and "the rows are not known" in found.notes[0]
    assert by_key(found)["method.r"].value == 16


def write_comparison(recipe: Any, **changes: Any) -> Path:
    of = recipe.recipe
    methods = [
        ComparedMethod("lora", "lora", {"r": 8, "lora_alpha": 16}, rate=2e-3, score=0.9, verdict="behind"),
        ComparedMethod("ia3", "ia3", {"target_modules": ["attn.k"]}, rate=5e-2, score=0.95, verdict="best"),
        ComparedMethod("bitfit", "bitfit", {}, rate=4e-3, score=0.94, verdict="tied with the best"),
    ]
    values: dict[str, Any] = {
        "task": of.task, "model": of.model.name_or_path, "data": of.data.path, "metric": "eval_accuracy",
        "greater_is_better": True, "rows": 400, "seeds": [0, 1, 2], "methods": methods, "date": "2026-11-29",
    }  # fmt: skip
    file = Path(of.output_dir).parent / "compared" / "comparison.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(Comparison(**(values | changes)).as_dict()), encoding="utf-8")
    return file


def test_an_own_comparison_wins_over_literature_and_is_said_to(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    file = write_comparison(loaded)
    lines = by_key(recommend(loaded))
    name, rate = lines["method.name"], lines["training.learning_rate"]
    assert (name.value, rate.value, name.source, rate.source) == ("ia3", 5e-2, str(file), str(file))
    assert "you measured it" in name.reason and "literature says lora (this-project)" in name.reason
    assert "400 rows and 3 seeds" in name.scope and "tied with it: bitfit" in name.scope
    assert name.limit == "says nothing about methods other than bitfit, ia3, lora"
    assert "method.r" not in lines  # (IA)3 has none


def test_what_an_own_comparison_chose_is_what_its_report_says(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_comparison(loaded, choice="bitfit")
    lines = by_key(recommend(loaded))
    assert (lines["method.name"].value, lines["training.learning_rate"].value) == ("bitfit", 4e-3)
    assert "ia3 was best" in lines["method.name"].scope and "bitfit trains the fewest" in lines["method.name"].scope


def test_settings_that_are_no_defaults_are_a_part_of_what_was_measured(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    params = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True, "lora_dropout": 0.0}
    write_comparison(loaded, methods=[ComparedMethod("lora", "lora", params, score=0.9, verdict="best")])
    lines = by_key(recommend(loaded))
    assert lines["method.use_dora"].value is True and lines["method.r"].value == 4
    assert "method.lora_dropout" not in lines, "it is the default"


def test_where_the_base_is_best_no_method_is_said_to_be_measured(recipe) -> None:
    loaded = recipe("llama")
    base = ComparedMethod("base", "base", score=1.0, verdict="best", trainable=0)
    lora = ComparedMethod("lora", "lora", {"r": 2}, score=1.1, verdict="tied with the best", trainable=9)
    file = write_comparison(loaded, methods=[base, lora], choice="base")
    found = recommend(loaded)
    assert by_key(found)["method.name"].source == "this-project"
    assert any(str(file) in note and "the untrained model" in note for note in found.notes)


@pytest.mark.parametrize("changes", [{"model": "another"}, {"task": "token_classification"}, {"methods": []}])
def test_a_study_of_something_else_counts_for_nothing(recipe, changes: dict[str, Any]) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_comparison(loaded, **changes)
    assert by_key(recommend(loaded))["method.name"].value == "lora"


def test_a_record_that_cannot_be_read_is_named(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    file = write_comparison(loaded)
    for text in ("{", "[]", '{"model": 3}'):
        file.write_text(text, encoding="utf-8")
        found = recommend(loaded)
        assert by_key(found)["method.name"].value == "lora"
        assert any(str(file) in note for note in found.notes)


def test_an_own_sweep_sets_its_keys(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    folder = Path(loaded.recipe.output_dir).parent / "swept"
    folder.mkdir(parents=True)
    best = SweepBest({"method.r": 2, "training.learning_rate": 7e-3}, 0.3, (0.2, 0.4), "best.yaml", seeds=[5, 6])
    (folder / "best.yaml").write_text(Path(loaded.path).read_text(encoding="utf-8"), encoding="utf-8")
    trials = [SweepTrial(0, {"method.r": 2}, 0.3, "finished")]
    record = Sweep("eval_loss", False, {"method.r": "2,4"}, trials, best=best, date="2026-11-29")
    (folder / "sweep.json").write_text(json.dumps(record.as_dict()), encoding="utf-8")
    lines = by_key(recommend(loaded))
    assert lines["method.r"].value == 2 and lines["training.learning_rate"].value == 7e-3
    assert "2 fresh seeds" in lines["method.r"].scope


def write_sweep(recipe: Any, name: str = "swept", date: str = "2026-11-28", /, **values: Any) -> None:
    """Write a sweep of a recipe whose best values these are."""
    folder = Path(recipe.recipe.output_dir).parent / name
    folder.mkdir(parents=True)
    (folder / "best.yaml").write_text(Path(recipe.path).read_text(encoding="utf-8"), encoding="utf-8")
    best = SweepBest(values, 0.3, (0.2, 0.4), "best.yaml", seeds=[5, 6])
    trials = [SweepTrial(0, values, 0.3, "finished")]
    record = Sweep("eval_loss", False, dict.fromkeys(values, "2,4"), trials, best=best, date=date)
    (folder / "sweep.json").write_text(json.dumps(record.as_dict()), encoding="utf-8")


def test_a_sweep_of_data_and_of_nested_keys_can_be_pasted(recipe, tmp_path) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_sweep(loaded, **{"data.max_length": 12, "training.lr_groups.classifier": 7e-3})
    found = recommend(loaded)
    assert by_key(found)["data.max_length"].value == 12
    pasted = yaml.safe_load(lines_to_paste(found.lines))
    assert pasted["data"] == {"max_length": 12} and pasted["training"]["lr_groups"] == {"classifier": 7e-3}
    written = tmp_path / "advised.yaml"
    written.write_text(advised_recipe(loaded, found.lines), encoding="utf-8")
    again = load_recipe(written, [], NAMES).recipe
    assert again.data.max_length == 12 and again.training.lr_groups == {"classifier": 7e-3}


def test_a_sweep_is_judged_by_the_recipe_in_its_own_directory(recipe, tmp_path, monkeypatch) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_sweep(loaded, **{"method.r": 2})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "best.yaml").write_text("model: {name_or_path: another}\ntask: causal_lm\n", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert by_key(recommend(loaded))["method.r"].value == 2


def test_what_was_found_for_another_method_is_not_mixed_with_the_best_one(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_sweep(loaded, **{"training.learning_rate": 7e-3})  # of LoRA
    file = write_comparison(loaded, methods=[ComparedMethod("ia3", "ia3", {}, score=0.95, verdict="best")])
    lines = by_key(recommend(loaded))
    assert lines["method.name"].value == "ia3" and lines["method.name"].source == str(file)
    assert lines["training.learning_rate"].value != 7e-3


def test_a_batch_of_an_own_sweep_is_not_multiplied(recipe) -> None:
    loaded = recipe("bert", "sequence_classification")
    write_sweep(loaded, **{"training.per_device_train_batch_size": 2})
    lines = by_key(recommend(loaded, 1000))
    assert lines["training.per_device_train_batch_size"].value == 2
    assert "training.gradient_accumulation_steps" not in lines


def test_where_nothing_fits_no_line_says_that_it_does(recipe) -> None:
    found = recommend(recipe("llama"), 1000)
    assert found.now.micro_rows is None and any("not even one row" in note for note in found.notes)
    assert any("upper bound" in note and "nothing was measured" in note for note in found.notes)
    lines = by_key(found)
    assert lines["method.name"].value == "qlora" and lines["training.gradient_accumulation_steps"].value == 8
    for line in found.lines:
        assert not any(said in line.reason for said in ("it does", "they do", "rows fit")), line.reason


def test_a_preference_takes_the_memory_of_two_rows(recipe) -> None:
    words, asked = "red blue " * 200, {"prompt": "which"}
    fits = []
    for task, row in (("causal_lm", {"completion": words}), ("preference", {"chosen": words, "rejected": words})):
        loaded = recipe("llama", task, [asked | row] * 24, data__max_length=32)
        now = look_at(loaded, None)
        shapes = Shapes(
            now.numbers, 0, 16 * now.rank_numbers, now.width, LAYERS, 32, number_bytes=4.0, vocabulary=VOCAB
        )
        sixteen = shapes.bytes_needed(16, four_bits=False, checkpointing=False)
        fits.append(look_at(loaded, int(sixteen / SPARE) + 1).micro_rows)
    assert fits == [16, 8]


def test_the_written_recipe_is_valid_and_keeps_what_it_had(recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET_ROWS", str(tmp_path / "rows"))
    loaded = recipe("bert", "sequence_classification", class_rows(24),
                    method={"name": "bitfit", "modules_to_save": ["classifier"]}, training__weight_decay=0.1,
                    training__gradient_accumulation_steps=4)  # fmt: skip
    file = Path(loaded.path)
    file.write_text(file.read_text().replace("seed: 0", "") + "seed: 7\n", encoding="utf-8")
    loaded = load_recipe(file, ["data.cache_dir=${SECRET_ROWS}"], NAMES)
    found = recommend(loaded, 24 * 10**9)
    written = tmp_path / "advised.yaml"
    written.write_text(advised_recipe(loaded, found.lines), encoding="utf-8")
    again = load_recipe(written, [], NAMES)
    for line in found.lines:
        block, _, key = line.key.partition(".")
        assert getattr(getattr(again.recipe, block), key) == line.value
    assert again.recipe.method.modules_to_save == ["classifier"] and again.recipe.training.weight_decay == 0.1
    assert again.recipe.seed == 7 and again.recipe.training.gradient_accumulation_steps == 1
    text = written.read_text(encoding="utf-8")
    assert "# most methods" in text or "# no evidence" in text
    assert yaml.safe_load(lines_to_paste(found.lines))["method"]["name"] == "lora"


def test_the_command_prints_json_or_text_and_refuses_a_size_that_is_none(cli, workspace, tmp_path) -> None:
    file = workspace.recipe("asked")
    done = cli("recommend", file, "--json")
    assert done.code == 0
    assert {"key", "value", "reason", "source", "scope", "limit", "against"} <= done.json[0].keys()
    shown = cli("recommend", file, "--memory", "24GB").out
    assert "to paste into the recipe" in shown and "24.0 GB" in shown
    assert all(len(line) < 80 for line in shown.splitlines() if "against" not in line and "model" not in line)
    assert cli("recommend", file, "--memory", "much").code == 2
    output = tmp_path / "new.yaml"
    assert cli("recommend", file, "-o", output).code == 0 and cli("validate", output).code == 0
    again = cli("recommend", file, "-o", output)
    assert again.code == 2 and "exists" in again.err
