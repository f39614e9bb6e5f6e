"""A recipe file to a checked recipe: files that are none, every problem at once, overrides, places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftcli.errors import Problem, UserError
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.recipe.yaml.yaml_lines import Key, parse_yaml
from tests.recipe.conftest import GOOD, SMALL, Load, LowRank, Several

Problems = Callable[..., list[Problem]]


def test_defaults_and_places(load: Load) -> None:
    loaded = load(GOOD)
    assert loaded.recipe.training.learning_rate == 1e-4
    assert isinstance(loaded.recipe.method, LowRank)
    assert loaded.recipe.output_dir == "runs/r"
    assert loaded.where("method.r") == ("r.yaml", 8)
    assert loaded.where("training.max_steps") == ("r.yaml", 9)
    assert loaded.where("nowhere") == ("r.yaml", None)
    assert loaded.lines["data.path"] == 5
    assert str(loaded.problem("method.r", "too high", "lower it")) == "r.yaml:8: method.r: too high\n    lower it"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"just text\n", "expected a mapping"),
        (bytes(range(256)), "binary"),
        ("model: é\n".encode("latin-1"), "not UTF-8"),
        (GOOD.encode("utf-16"), "UTF-16"),
        (b"a: " + b"x" * (1 << 20), "larger than 1 MiB"),
    ],
    ids=["empty", "comment", "list", "scalar", "binary", "latin-1", "utf-16", "huge"],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_recipe(file, [], SMALL)
    assert caught.value.problems[0].file == str(file)


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(file, [], SMALL).where("seed") == (str(file), 11)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"no such file[\s\S]*lora\.yaml"):
        load_recipe(tmp_path / "lroa.yml", [], SMALL)


def test_directory_names_what_is_inside(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"directory[\s\S]*recipe\.yaml"):
        load_recipe(tmp_path, [], SMALL)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_file_names(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read|no such file"):
        load_recipe(name, [], SMALL)


def test_data_may_be_left_out_where_it_is_not_needed(load: Load, problems: Problems) -> None:
    text = GOOD.replace("data:\n  path: train.jsonl\n", "")
    assert load(text, need_data=False).recipe.data is None
    (problem,) = problems(text)
    assert problem.message == "data is missing"


def test_all_problems_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = (
        GOOD.replace("name_or_path: org/model", "name_or_path: org/model\n  dtype: float23")
        .replace("  r: 8", "  r: 0\n  lora_dropout: 1.5\n  lora_dropot: 0.1")
        .replace("1e-4", "fast")
        .replace("seed: 7", "sed: 7")
        .replace("train.jsonl", "${GONE}")
    )
    found = problems(text, "training.max_steps=0")
    assert [(problem.line, problem.key) for problem in found] == [
        (3, "model.dtype"),
        (6, "data.path"),
        (9, "method.r"),
        (10, "method.lora_dropout"),
        (11, "method.lora_dropot"),
        (13, "training.learning_rate"),
        (14, "sed"),
        (None, "training.max_steps"),
    ]
    assert str(found[3]) == "r.yaml:10: method.lora_dropout = 1.5; expected 0 <= value < 1"
    assert found[-1].file == "override training.max_steps=0"


def test_what_stands_in_for_a_wrong_block_is_not_looked_for(problems: Problems) -> None:
    seen: list[LoadedRecipe] = []

    def no_such_model(loaded: LoadedRecipe, _names: object) -> list[Problem]:
        seen.append(loaded)
        return [loaded.problem("model.name_or_path", f"there is no {loaded.recipe.model.name_or_path}")]

    (problem,) = problems(GOOD, "model.new_special_tokens={tokens: []}", surroundings=no_such_model)
    assert problem.key == "model.new_special_tokens.tokens" and seen


def test_duplicate_key_is_named_at_its_second_line(problems: Problems) -> None:
    (problem,) = problems(GOOD.replace("  r: 8\n", "  r: 8\n  r: 9\n"))
    assert (problem.line, problem.key) == (9, "method.r")
    assert "first on line 8" in problem.message


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("method.r=16", "r", 16),
            ("method.lora_dropout=1e-1", "lora_dropout", 0.1),
            ("method.target_modules=[attn.q, attn.o]", "target_modules", ["attn.q", "attn.o"]),
            ("method.target_modules=all-linear", "target_modules", "all-linear"),
            ("method.rank_pattern={a.b: 4}", "rank_pattern", {"a.b": 4}),
            ("method.modules_to_save=", "modules_to_save", None),
            ("method.init_from=*x", "init_from", "*x"),
            ("method.init_from=runs/try #2", "init_from", "runs/try #2"),
            ("method.init_from=#2", "init_from", "#2"),
            ("method.init_from='runs/try'  # that one", "init_from", "runs/try"),
        ],
    )
    def test_values_are_yaml(self, load: Load, override: str, key: str, value: object) -> None:
        assert load(GOOD, override).recipe.method.model_dump()[key] == value

    def test_the_last_one_wins_and_is_where_the_value_is(self, load: Load) -> None:
        loaded = load(GOOD, "method.r=2", "method.r=3")
        assert loaded.recipe.method.model_dump()["r"] == 3
        assert loaded.where("method.r") == ("override method.r=3", None)

    def test_value_may_hold_an_equals_sign(self, load: Load) -> None:
        assert load(GOOD, "data.template='{a} = '").recipe.data.template == "{a} = "  # type: ignore[union-attr]  # data is there

    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            (r"training.lr_groups.layers\.0\..*lora=1e-3", ("training", "lr_groups", r"layers\.0\..*lora"), 1e-3),
            ("training.lr_groups..*head=1e-3", ("training", "lr_groups", ".*head"), 1e-3),
            ("method.rank_pattern.attn.q=4", ("method", "rank_pattern", "attn.q"), 4),
            ("model.anatomy.attn.q=self.q", ("model", "anatomy", "attn.q"), "self.q"),
            ("data.columns.text=body.inner", ("data", "columns", "text"), "body.inner"),
            ("data.chat_template_kwargs.a.b=1", ("data", "chat_template_kwargs", "a", "b"), 1),
        ],
    )
    def test_keys_of_ones_own_may_hold_dots(self, load: Load, override: str, key: Key, value: object) -> None:
        loaded = load(GOOD, override)
        assert loaded.tree.value(key) == value
        assert loaded.where(".".join(map(str, key))) == (f"override {override}", None)

    def test_such_keys_in_the_file_are_replaced_and_found(self, load: Load) -> None:
        parts = "  parts:\n    - name: low_rank\n      rank_pattern:\n        attn.q: 2\n        attn.v: 3"
        text = GOOD.replace("name: low_rank\n  r: 8", f"name: several\n{parts}")
        loaded = load(text, "method.parts.0.rank_pattern.attn.q=4")
        assert loaded.tree.value(("method", "parts", 0, "rank_pattern")) == {"attn.q": 4, "attn.v": 3}
        assert loaded.where("method.parts.0.rank_pattern.attn.v") == ("r.yaml", 12)

    def test_written_as_in_the_file_it_is_answered_with_the_override(self, problems: Problems) -> None:
        (problem,) = problems(GOOD, "method.r: 4")
        assert problem.suggestion == "write it as method.r=4, without spaces"

    def test_makes_missing_blocks(self, load: Load, problems: Problems) -> None:
        text = GOOD.replace("training:\n  learning_rate: 1e-4\n", "")
        assert load(text, "training.max_steps=5").recipe.training.max_steps == 5
        (problem,) = problems(GOOD, "trainng.max_steps=5")
        assert problem.file == "override trainng.max_steps=5"

    def test_reaches_into_lists(self, load: Load, problems: Problems) -> None:
        text = GOOD.replace("name: low_rank\n  r: 8", "name: several\n  parts: [{name: low_rank, r: 8}]")
        method = load(text, "method.parts.0.r=4").recipe.method
        assert isinstance(method, Several) and method.parts[0].model_dump()["r"] == 4
        (problem,) = problems(text, "method.parts.1.r=4")
        assert "elements 0 to 0" in problem.message

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("method.r", "key=value"),
            ("=3", "key=value"),
            ("method..r=3", "key=value"),
            ("method.r.x=3", "which has no keys"),
            ("method.r=[3", "not YAML"),
            ("method.r=${GONE}", "GONE"),
            ("method.rr=3", "no such key"),
            ("method=low_rank", "expected a mapping"),
            ("data.validation.0=3", "expected a mapping|no such key"),
        ],
    )
    def test_what_cannot_be_applied_names_the_override(self, problems: Problems, override: str, words: str) -> None:
        import re

        found = problems(GOOD, override)
        assert all(problem.file == f"override {override}" for problem in found)
        assert any(re.search(words, problem.message) for problem in found)


class TestNestedMethods:
    TEXT = GOOD.replace(
        "name: low_rank\n  r: 8",
        "name: several\n  parts:\n    - name: low_rank\n      r: 2\n    - name: budget\n  main: {name: low_rank, r: 3}",
    ).replace("causal_lm", "sequence_classification")

    def test_each_part_gets_its_own_parameters(self, load: Load) -> None:
        method = load(self.TEXT).recipe.method
        assert isinstance(method, Several)
        assert [part.name for part in method.parts] == ["low_rank", "budget"]
        assert method.main is not None and method.main.model_dump()["r"] == 3

    def test_lines_and_suggestions_work_inside(self, problems: Problems) -> None:
        text = self.TEXT.replace("      r: 2", "      rank: 2\n      lora_dropot: 0").replace(
            "r: 3", "r: 0, target_r: 1"
        )
        found = {problem.key: problem for problem in problems(text)}
        assert {key: problem.line for key, problem in found.items()} == {
            "method.parts.0.rank": 10,
            "method.parts.0.lora_dropot": 11,
            "method.main.r": 13,
            "method.main.target_r": 13,
        }
        assert "`method.parts.0.r`" in str(found["method.parts.0.rank"].suggestion)
        assert "lora_dropout" in str(found["method.parts.0.lora_dropot"].suggestion)
        assert "budget" in str(found["method.main.target_r"].suggestion)

    def test_unknown_and_missing_names(self, problems: Problems) -> None:
        text = self.TEXT.replace("- name: low_rank\n      r: 2", "- name: lowrank").replace("name: low_rank, ", "")
        found = {problem.key: problem for problem in problems(text)}
        assert set(found) == {"method.parts.0.name", "method.main.name"}
        assert "low_rank" in str(found["method.parts.0.name"].suggestion)

    def test_a_field_of_one_method_is_checked_in_place(self, problems: Problems) -> None:
        (problem,) = problems(self.TEXT.replace("main: {", "low_rank: {").replace("r: 3", "r: -3"))
        assert (problem.key, problem.line) == ("method.low_rank.r", 12)


def test_condition_over_two_keys_is_placed_at_the_key_it_names(problems: Problems) -> None:
    text = GOOD.replace("name: low_rank\n  r: 8", "name: budget\n  target_r: 99").replace(
        "causal_lm", "sequence_classification"
    )
    (problem,) = problems(text)
    assert (problem.key, problem.line) == ("method.target_r", 8)
    assert "above init_r = 12" in problem.message


def test_parsing_is_quick_for_a_hostile_text() -> None:
    deep = "{a: " * 30 + "1" + "}" * 30
    assert parse_yaml(deep, {}).data


def test_the_home_directory_in_output_dir(load, problems, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert load(GOOD, "output_dir=~/runs/a").recipe.output_dir == "/somewhere/runs/a"
    assert load(GOOD, "output_dir=a~b").recipe.output_dir == "a~b"
    (problem,) = problems(GOOD, "output_dir=~nobody-of-this-name/a")
    assert "no home directory ~nobody-of-this-name" in problem.message
