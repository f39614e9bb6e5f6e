"""`a.b=value` on the command line: changes of the recipe, checked as the file is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from peftcli.errors import Problem
from peftcli.recipe.field_descriptions import field_at, members, unwrap
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.value_tree import Tree, dotted
from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import Key, parse_yaml
from peftcli.suggestions import did_you_mean, nearest

_INDICATORS = tuple("*&!@%`")
_COMMENT = re.compile(r"(^|\s)#")


def metric_overrides(metric: str) -> tuple[str, str]:
    """Return the overrides that make a metric decide which adapter is kept and what is best, `eval_` before it or not.

    A recipe's direction is that of its own metric, so that this one's is read from its name.
    """
    name = json.dumps(f"eval_{metric.removeprefix('eval_')}")
    return f"training.metric_for_best_model={name}", "training.greater_is_better=null"


def apply_overrides(tree: Tree, overrides: Sequence[str], environ: Mapping[str, str], names: Names) -> list[Problem]:
    """Apply each `a.b=value` to `tree`, in order; return the problems of those that could not be applied."""
    problems: list[Problem] = []
    for text in overrides:
        problems += _apply(tree, text, environ, names)
    return problems


def _apply(tree: Tree, text: str, environ: Mapping[str, str], names: Names) -> list[Problem]:
    where = f"override {text}"
    path, equals, written = text.partition("=")
    parts = _parts(path.strip(), tree, names)
    if not equals or not all(parts):
        name, colon, value = path.partition(":")
        typed = f"{name.strip()}={value.strip() if colon else 'VALUE'}" if name.strip() else ""
        example = "method.r=16" if equals or not typed else typed
        return [Problem("an override is key=value", file=where, suggestion=f"write it as {example}, without spaces")]
    unquoted = written.lstrip()[:1] not in tuple("\"'[{")
    if written[:1] in _INDICATORS or (unquoted and _COMMENT.search(written)):
        written = json.dumps(written)  # no anchors, tags and comments here: `data.path=*.csv` and `a #1.csv` are text
    try:
        document = parse_yaml(written, environ)
    except YamlProblem as error:
        return [Problem(error.message, file=where, key=path, suggestion=error.suggestion)]
    if document.remarks:
        return [Problem(remark.message, where, key=path, suggestion=remark.suggestion) for remark in document.remarks]
    reason = _put(tree, parts, document.data, text, document.references)
    return [Problem(reason, file=where, key=path)] if reason else []


def _parts(path: str, tree: Tree, names: Names) -> list[str]:
    """Return the parts of a dotted path; in a mapping whose keys are the user's own, the rest is one of them."""
    parts, rest = list[str](), path.split(".")
    while rest:
        if parts and _has_own_keys(parts, tree, names):
            return [*parts, ".".join(rest)]
        parts.append(rest.pop(0))
    return parts


def _has_own_keys(parts: Sequence[str], tree: Tree, names: Names) -> bool:
    """Return whether the schema has, at a path, a mapping from texts to single values: roles, columns, expressions."""
    key: Key = tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 9 else part for part in parts)
    block: type[BaseModel] = Recipe
    for end in range(len(key), 0, -1) if key[0] == "method" else ():
        method = tree.value(key[:end])
        name = method.get("name") if isinstance(method, dict) else None
        model = names.methods.params_model(name) if isinstance(name, str) and name else None
        if model is not None:
            block, key = model, key[end:]
            break
    found = field_at(block, key) if key else None
    every = [unwrap(member)[0] for member in members(found[0])] if found is not None else []
    held = [get_args(plain)[1] for plain in every if get_origin(plain) is dict]
    return any(unwrap(value)[0] in (str, int, float) for each in held for value in members(each))


def _put(tree: Tree, parts: Sequence[str], value: Any, text: str, references: Mapping[Key, str]) -> str | None:
    """Set a value in place and make the mappings above it; return why that is impossible, or None."""
    current: Any = tree.data
    key: Key = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(current, list):
            step: str | int | None = _index(part, len(current))
            if step is None:
                return _no_element(key, part, len(current))
        elif isinstance(current, dict):
            step = part
        else:
            return f"{dotted(key)} is {show(current)}, which has no keys"
        assert step is not None  # a list without that element has returned above
        key = (*key, step)
        if last:
            current[step] = value
        elif isinstance(current, dict) and current.get(part) is None:
            current[part] = {}
            tree.overridden[key] = text
        current = current[step]
    _forget_below(tree, key)
    tree.overridden[key] = text
    tree.references.pop(key, None)
    tree.references.update({(*key, *inner): written for inner, written in references.items()})
    return None


def _index(part: str, length: int) -> int | None:
    return int(part) if part.isascii() and part.isdigit() and len(part) < 9 and int(part) < length else None


def _no_element(key: Key, part: str, length: int) -> str:
    if not length:
        return f"{dotted(key)} is an empty list"
    known = [str(index) for index in range(length)]
    near = nearest(part, known)
    return f"{dotted(key)} is a list with the elements 0 to {length - 1}; there is no {part!r}" + (
        f" ({did_you_mean(near)})" if near else ""
    )


def _forget_below(tree: Tree, key: Key) -> None:
    """Forget where replaced values were written, so that a problem names the override."""
    tables: tuple[dict[Key, Any], ...] = (tree.lines, tree.overridden, tree.references)
    for table in tables:
        for old in [old for old in table if len(old) > len(key) and old[: len(key)] == key]:
            del table[old]
