"""Whatever a recipe holds, loading it gives a recipe or a `UserError` with a problem, never another exception."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.recipe.pieces import KEYS, ODD_TEXTS, TEXTS, TREES, WELL_TYPED, places

EXAMPLES = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(ODD_TEXTS),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("name"), inner, max_size=4)
    ),
    max_leaves=8,
)
# well formed and of a plausible type, so that many pass the types and are wrong in meaning
plausible = st.one_of(
    st.sampled_from(
        ["no", "steps", "epoch", "auto", "eval_f1", "sequence_classification", "seq2seq_lm", "split", "messages", "("]
    ),
    st.integers(-1, 600),
    st.floats(-1, 2),
    st.booleans(),
    st.none(),
    st.lists(st.sampled_from(["attn.q", "ffn", "f1", "wandb"]), max_size=2),
)


def check(text: str, overrides: list[str] | None = None) -> str:
    """Load a recipe's text; return `fine`, or `refused` by a UserError that says something and prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        try:
            recipe = load_recipe(path, overrides or [], NAMES, environ={"HOME": "/home/x"}).recipe
        except UserError as error:
            assert error.problems
            assert all(problem.message and str(problem) for problem in error.problems)
            return "refused"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path, [], NAMES, environ={}).recipe == recipe
        return "fine"


@EXAMPLES
@given(st.data())
def test_mutated_trees(data: st.DataObject) -> None:
    tree = copy.deepcopy(data.draw(st.sampled_from(TREES)))
    for _ in range(data.draw(st.integers(1, 3))):
        node = tree
        for part in data.draw(st.sampled_from(list(places(tree)))):
            node = node[part]
        value = data.draw(plausible | values)
        if isinstance(node, dict):
            name = data.draw(st.sampled_from([*node, *KEYS]) | st.text(max_size=10))
            if data.draw(st.booleans()) or name not in node:
                node[name] = value
            else:
                del node[name]
        else:
            node.append(value)
    check(yaml.safe_dump(tree, allow_unicode=True))


@EXAMPLES
@given(st.data())
def test_mutated_texts(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(TEXTS)).split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["indent", "insert", "repeat", "drop", "tab", "anchor", "alias", "noise"]))
        line = lines[at]
        lines[at] = {
            "indent": f" {line}",
            "insert": f"{line}{data.draw(st.text(max_size=6))}",
            "repeat": f"{line}\n{line}",
            "drop": "",
            "tab": f"\t{line}",
            "anchor": line.replace(": ", ": &a ", 1),
            "alias": f"{line.split(':')[0]}: *a",
            "noise": data.draw(st.text(max_size=30)),
        }[how]
    check("\n".join(lines))


@EXAMPLES
@given(st.lists(st.sampled_from(WELL_TYPED), min_size=2, max_size=5), st.sampled_from(TEXTS))
def test_overrides_of_the_right_type(changes: list[str], text: str) -> None:
    check(text, changes)


def test_overrides_of_the_right_type_one_by_one() -> None:
    """Most are fine; those that are wrong in meaning are refused."""
    results = [check(TEXTS[0], [change]) for change in WELL_TYPED]
    assert results.count("fine") > len(results) / 2
    assert results.count("refused") > 20


@EXAMPLES
@given(st.text(max_size=60), st.lists(st.text(max_size=30), max_size=2))
def test_any_text_and_any_override(text: str, overrides: list[str]) -> None:
    check(text, overrides)
    check(TEXTS[0], overrides)


@pytest.mark.parametrize(
    "text", ["", "\0", "\ufeff", "---", "...", "%YAML 9.9\n---\n", "? ", "&a", "*a", "!", "{", "- -"]
)
def test_odd_texts(text: str) -> None:
    assert check(text) == "refused"
