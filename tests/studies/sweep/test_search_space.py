"""What `--grid`, `--search` and a search file mean: the values, their types, conditions, and places in messages."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftcli.errors import UserError
from peftcli.studies.sweep.space.point_overrides import overrides_of, point_name
from peftcli.studies.sweep.space.read_search import search_of_file, search_of_options
from peftcli.studies.sweep.space.search_domain import Choices, Range, WrongDomain, fitted, read_domain
from peftcli.studies.sweep.space.search_space import SearchSpace, unique_points


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("log:1e-5..1e-2", Range(1e-5, 1e-2, log=True)),
        ("4..16", Range(4, 16, whole=True)),
        ("4..16:4", Range(4, 16, step=4, whole=True)),
        ("0..0.1:0.05", Range(0, 0.1, step=0.05)),
        (".5..1.", Range(0.5, 1.0)),
        ("-1..1", Range(-1, 1, whole=True)),
        ("4,8, 16", Choices((4, 8, 16))),
        ("8", Choices((8,))),
        ("true,false,null", Choices((True, False, None))),
        ("[attn.q,attn.v],all-linear", Choices((["attn.q", "attn.v"], "all-linear"))),
        ("'a,b',c", Choices(("a,b", "c"))),
        ("../a.jsonl,../b.jsonl", Choices(("../a.jsonl", "../b.jsonl"))),
        ("{name: lora, r: 8},{name: full}", Choices(({"name": "lora", "r": 8}, {"name": "full"}))),
    ],
)
def test_values_mean_what_a_recipe_would_read(text: str, meant: Choices | Range) -> None:
    assert read_domain(text) == meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no values"),
        ("8..4", "is empty"),
        ("4..4", "is empty"),
        ("log:0..1", "above 0"),
        ("log:-1..1", "above 0"),
        ("log:1..9:2", "no step"),
        ("log:4,8", "no range"),
        ("1e-5..x", "no range"),
        ("4..", "no range"),
        ("1..2:5", "does not fit"),
        ("1..2:0", "does not fit"),
        ("1..1e999", "too large"),
        ("4,,8", "comma too many"),
        ("4,8,4", "twice"),
        ("[4,8", "["),
    ],
)
def test_what_names_no_values_is_refused(text: str, says: str) -> None:
    with pytest.raises(WrongDomain) as refused:
        read_domain(text)
    assert says in refused.value.message and refused.value.suggestion


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        domain = read_domain(text)
    except WrongDomain:
        return
    assert domain.extremes()


@given(low=st.integers(-50, 50), width=st.integers(1, 60), step=st.integers(1, 60) | st.none(), seed=st.integers(0, 9))
def test_draws_and_ends_of_a_range_are_among_its_values(low: int, width: int, step: int | None, seed: int) -> None:
    if step is not None and step > width:
        step = None
    text = f"{low}..{low + width}" + (f":{step}" if step else "")
    domain = read_domain(text)
    listed = domain.listed()
    assert listed is not None and len(listed) == domain.size()
    assert {*domain.extremes(), domain.draw(random.Random(seed))} <= set(listed)
    assert max(listed) <= low + width < max(listed) + (step or 1)


def test_a_key_of_whole_numbers_has_whole_values() -> None:
    assert fitted(read_domain("4..16"), whole=False) == Range(4.0, 16.0)
    assert fitted(read_domain("4.0..1.6e1"), whole=True) == Range(4, 16, whole=True)
    with pytest.raises(WrongDomain, match="whole number"):
        fitted(read_domain("4..16.5"), whole=True)


def test_a_grid_is_the_product_and_is_counted_without_being_made() -> None:
    space = search_of_options("--grid", ["method.r=4,8", "training.warmup_ratio=0..0.1:0.05"]).space
    points = list(space.grid())
    assert len(points) == space.grid_size() == 6 == len(unique_points(points))
    assert points[0] == {"method.r": 4, "training.warmup_ratio": 0}
    huge = search_of_options("--grid", [f"training.key{n}=0..999999" for n in range(20)]).space
    assert huge.grid_size() == 10**120


CONDITIONAL = """\
search:
  method.name:
    lora:
      method.r: [4, 8]
      method.use_rslora:
        true: {method.lora_alpha: [1, 2, 3]}
        false:
    adapter:
      method.reduction_factor: 4..8:4
    bitfit:
  training.learning_rate: [0.1, 0.2]
trials: 7
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "search.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_below_a_value_apply_under_it_only(tmp_path: Path) -> None:
    search = search_of_file(_file(tmp_path, CONDITIONAL))
    points = list(search.space.grid())
    # lora: 2 ranks x (3 alphas with rslora + 1 without); adapter: 2; bitfit: 1; each at 2 rates
    assert len(points) == search.space.grid_size() == 2 * (2 * 4 + 2 + 1) == len(unique_points(points))
    assert {"method.name": "bitfit", "training.learning_rate": 0.1} in points
    alpha = [one for one in points if "method.lora_alpha" in one]
    assert alpha and all(one["method.name"] == "lora" and one["method.use_rslora"] is True for one in alpha)
    assert search.settings == {"trials": 7} and search.lines == {"trials": 12}
    for point in search.space.sample(50, random.Random(0)):
        assert point in points
    seen = [value for point in search.space.corners(3) for value in point.values()]
    assert {4, 8, "adapter", "bitfit", 1, 2, 3, 0.1, 0.2} <= {one for one in seen if not isinstance(one, bool)}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("method.r: [4]\n", 1, "search:"),
        ("search:\n  method.r: [4, 4]\n", 2, "twice"),
        ("search:\n  method.r: []\n", 2, "empty list"),
        ("search:\n  method.r: 8..4\n", 2, "empty"),
        ("search:\n  method.r: [4]\n  method.r: [8]\n", 3, "given twice"),
        ("search:\n  method.r:\n", 2, "names no values"),
        ("search:\n  method.name: {lora: 3}\n", 2, "no mapping of keys"),
        ("search:\n  method.name:\n    lora: {method.r: [1]}\n  method.r: [2]\n", 4, "searched twice"),
        ("search:\n  method..r: [4]\n", 2, "no key of a recipe"),
        ("search: {}\n", 1, "is empty"),
        ("search: {method.r: [4]}\ntrails: 3\n", 2, "did you mean trials?"),
        ("search: [\n", 2, ""),
    ],
)
def test_a_wrong_search_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(UserError) as refused:
        search_of_file(_file(tmp_path, text))
    (problem,) = refused.value.problems
    assert problem.line == line and says in str(problem)


def test_a_key_may_have_other_values_under_another_condition(tmp_path: Path) -> None:
    text = "search:\n  method.name:\n    lora: {method.dropout: [1]}\n    adapter: {method.dropout: [2, 3]}\n"
    space = search_of_file(_file(tmp_path, text)).space
    assert [point["method.dropout"] for point in space.grid()] == [1, 2, 3]
    assert len({one.name for one in space.dimensions}) == 3


def test_another_method_replaces_the_whole_block() -> None:
    point = {"method.name": "adapter", "training.learning_rate": 1e-5, "method.reduction_factor": 4}
    assert overrides_of(point, "lora") == (
        'method={"name": "adapter"}',
        "training.learning_rate=1e-05",
        "method.reduction_factor=4",
    )
    assert overrides_of({"method.name": "lora", "method.r": 4}, "lora") == ("method.r=4",)


def test_names_of_points_tell_them_apart_and_are_fit_for_files() -> None:
    points = [{"method.r": 4}, {"method.r": 4.0}, {"method.r": "4"}, {"a.b": ["x" * 300, "../.."]}, {"a.b": "ü"}]
    names = [point_name(point) for point in points]
    assert len(set(names)) == len(names)
    assert all(len(name) < 80 and "/" not in name and name.isascii() for name in names)


def test_options_are_refused_all_at_once() -> None:
    with pytest.raises(UserError) as refused:
        search_of_options("--grid", ["method.r", "a=8..4", "b=1,2", "b=3", "..=1"])
    text = str(refused.value)
    assert len(refused.value.problems) == 4, text
    assert "--grid method.r" in text and "--grid a=8..4" in text
    with pytest.raises(UserError, match="searched twice"):
        search_of_options("--grid", ["b=1,2", "b=3"])


def test_an_empty_space_has_one_point() -> None:
    assert list(SearchSpace(()).grid()) == [{}] and SearchSpace(()).grid_size() == 1
