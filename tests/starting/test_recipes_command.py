"""`peft recipes`: the table in any width, one recipe as it is, a copy that validates; and the recipes in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from setuptools import Distribution

from peftcli.console.starting_views.recipe_list import print_recipes
from peftcli.starting.shipped_recipes import read_header, read_shipped, shipped_recipes
from tests.command_line import Cli

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_list_names_every_recipe_with_its_facts(cli: Cli) -> None:
    listed = {one["name"]: one for one in cli("recipes", "list", "--json").json}
    assert set(listed) == {file.stem for file in FILES}
    one = listed["qlora-llama-3.1-8b"]
    assert (one["task"], one["model"], one["method"]) == ("causal_lm", "meta-llama/Llama-3.1-8B", "qlora")
    assert one["memory"] == "16 GB" and "MMLU" in one["paper"]
    assert all(fact["paper"] and fact["measured"] for name, fact in listed.items() if "-paper-" in name)
    assert all(fact[key] for fact in listed.values() for key in ("purpose", "memory_how", "time", "source"))
    text = cli("recipes", "list").out
    assert all(one["name"] in text and one["purpose"][:30] in text for one in listed.values())


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_table_fits_its_width(width: int) -> None:
    console = Console(width=width, record=True, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_recipes(console, shipped_recipes())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("qlora-llama-3.1-8b") for line in lines) == 1
    assert any(line.startswith("recipe ") and line.endswith("memory") for line in lines) == (width >= 80)


def test_show_prints_the_file(cli: Cli) -> None:
    done = cli("recipes", "show", "lora-smollm2-chat.yaml")
    assert (done.code, done.out) == (0, (ROOT / "recipes" / "lora-smollm2-chat.yaml").read_text())


def test_copy_writes_what_validates_and_never_overwrites(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("recipes", "copy", "lora-smollm2-chat").code == 0
    assert cli("recipes", "copy", "lora-smollm2-chat", "-o", "mine/chat.yaml").code == 0
    assert cli("validate", "mine/chat.yaml").code == 0
    Path("lora-smollm2-chat.yaml").write_text("mine")
    again = cli("recipes", "copy", "lora-smollm2-chat")
    assert again.code == 2
    assert "lora-smollm2-chat.yaml exists" in again.err
    assert Path("lora-smollm2-chat.yaml").read_text() == "mine"


def test_a_misspelt_name_is_answered_with_the_nearest(cli: Cli) -> None:
    done = cli("recipes", "show", "lora-smolm2-chat")
    assert done.code == 2
    assert "lora-smollm2-chat" in done.err


def test_the_first_lines_are_of_the_fixed_form(tmp_path: Path) -> None:
    assert read_header(["# Purpose: one", "#   more", "# a remark", "# Time: 3 s", "model:"]) == {
        "Purpose": "one more",
        "Time": "3 s",
    }
    file = tmp_path / "r.yaml"
    file.write_text(FILES[0].read_text().replace("# Time:", "# Tim:"))
    with pytest.raises(ValueError, match="lack Time"):
        read_shipped(file)


def test_a_wheel_carries_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What setup.py adds to the built package; without a wheel, which needs the network to be built alone."""
    import importlib.util

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("setup_of_peftcli", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = module.BuildWithRecipes(
        Distribution({"packages": ["peftcli"], "script_name": "setup.py", "include_package_data": False})
    )
    build.build_lib, build.editable_mode = str(tmp_path), False
    build.finalize_options()
    build.run()
    carried = sorted((tmp_path / "peftcli" / "starting" / "recipes").glob("*.yaml"))
    assert [file.name for file in carried] == [file.name for file in FILES]
