"""Python code that comes with a model runs only where the person who types the command says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.errors import UserError
from peftcli.models.own_code import own_code, remember_allowed_code, with_allowed_code
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, load_recipe
from peftcli.recipe.schema import ModelSpec
from peftcli.recipe.stored_recipe import load_stored_recipe, recipe_as_written
from tests.merging.runs import make_run


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A stranger's run whose base says in `executed` that its code ran, and whose recipe allows that."""
    run = make_run(
        tmp_path / "made", "llama", "causal_lm", {"name": "lora", "target_modules": ["q_proj"]}, base_class="causal_lm"
    )
    base = tmp_path / "made" / "model"
    code = f"open({str(tmp_path / 'executed')!r}, 'w')\nfrom transformers import LlamaConfig\n"
    (base / "evil.py").write_text(f"{code}class EvilConfig(LlamaConfig): pass\n")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig"}
    (base / "config.json").write_text(json.dumps(config))
    _change(run, trust_remote_code=True)
    (run / "summary.json").write_text("{}")
    return run


def _change(run: Path, **model: Any) -> None:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["model"].update(model)
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))


COMMANDS = [
    "predict RUN --input ROWS",
    "eval RUN",
    "merge RUN -o OUT",
    "inspect-adapter RUN",
    "train RUN/recipe.yaml",
    "train RUN/recipe.yaml --num-processes 2",
    "eval RUN/recipe.yaml",
    "inspect RUN/recipe.yaml",
    "count-params RUN/recipe.yaml",
    "validate RUN/recipe.yaml",
    "predict RUN RUN --input ROWS",
    "merge RUN RUN --weights 0.5,0.5 -o OUT",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_cannot_ask_for_code(theirs: Path, tmp_path: Path, cli, command: str) -> None:
    places = {"RUN": str(theirs), "ROWS": str(theirs.parent / "rows.jsonl"), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        command = command.replace(name, place)
    done = cli(*command.split())
    assert done.code == 2 and not (tmp_path / "executed").exists()
    assert "evil.py in" in done.err and "--trust-remote-code runs it" in done.err


@pytest.mark.parametrize("command", ["export RUN -o OUT", "import RUN/adapter -o OUT --base BASE"])
def test_other_commands_run_none_either(theirs: Path, tmp_path: Path, cli, command: str) -> None:
    (theirs / "adapter" / "peftcli.json").unlink()  # as another library leaves it
    places = {"RUN": str(theirs), "BASE": str(theirs.parent / "model"), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        command = command.replace(name, place)
    assert "Traceback" not in cli(*command.split()).err
    assert not (tmp_path / "executed").exists()


def test_the_option_lets_it_run(theirs: Path, tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    cli("count-params", theirs / "recipe.yaml", "--trust-remote-code")
    assert (tmp_path / "executed").exists()


def test_a_run_that_was_trained_here_is_not_asked_again_until_something_changes(theirs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((theirs / "recipe.yaml").read_text())
    asked = load_stored_recipe(theirs / "recipe.yaml", NAMES)
    assert asked.unasked_code and not asked.recipe.model.trust_remote_code
    remember_allowed_code(load_recipe(mine, [f"output_dir={theirs}"], NAMES))
    allowed = with_allowed_code(asked)
    assert allowed.recipe.model.trust_remote_code and not allowed.unasked_code
    theirs.rename(theirs.with_name("moved"))
    with pytest.raises(UserError, match=r"evil\.py"):
        with_allowed_code(load_stored_recipe(theirs.with_name("moved") / "recipe.yaml", NAMES))
    theirs.with_name("moved").rename(theirs)
    (theirs.parent / "model" / "evil.py").write_text("print('another')")
    with pytest.raises(UserError, match=r"evil\.py"):
        with_allowed_code(asked)


def test_only_the_users_own_note_counts(theirs: Path, tmp_path: Path) -> None:
    asked = load_stored_recipe(theirs / "recipe.yaml", NAMES)
    remember_allowed_code(load_recipe(theirs / "recipe.yaml", [TRUST_REMOTE_CODE, f"output_dir={theirs}"], NAMES))
    [note] = (tmp_path / "cache" / "allowed-code").iterdir()
    note.chmod(0o666)
    with pytest.raises(UserError, match=r"evil\.py"):
        with_allowed_code(asked)


def test_a_model_without_code_needs_no_word(theirs: Path) -> None:
    (theirs.parent / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert not with_allowed_code(load_stored_recipe(theirs / "recipe.yaml", NAMES)).recipe.model.trust_remote_code
    assert recipe_as_written(theirs / "recipe.yaml", NAMES).model.trust_remote_code


def test_code_of_another_repository_is_named(tmp_path: Path) -> None:
    config = {"auto_map": {"AutoModel": "org/code--modeling.Net", "AutoTokenizer": ["tok.Slow", None]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (
        str(own_code(ModelSpec(name_or_path=str(tmp_path))))
        == f"modeling.py of the hub's org/code, tok.py in {tmp_path}"
    )
