"""Turn pydantic's errors into messages such as `training.warmup_ratio = 1.5; expected 0 <= value <= 1`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftcli.recipe.aliases.all_aliases import METHOD_ALIASES, TASK_ALIASES
from peftcli.recipe.aliases.unknown_keys import UnknownKeys
from peftcli.recipe.field_descriptions import (
    block_at,
    bounds,
    choices,
    describe,
    field_at,
    members,
    of_the_machine,
    unwrap,
)
from peftcli.recipe.method_params import LARGEST
from peftcli.recipe.vocabulary import Names, spelled_out
from peftcli.recipe.yaml.scalars import kind, read_scalar, show
from peftcli.recipe.yaml.value_tree import dotted, has_part
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.suggestions import did_you_mean, nearest

_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_CUSTOM = ("value_error", "assertion_error")


@dataclass(frozen=True)
class Finding:
    """A problem of the value at `key`. Where the value was written is added later (`Tree.problem`)."""

    key: Key
    message: str
    suggestion: str | None = None


def findings(
    error: ValidationError, block: type[BaseModel], data: Any, prefix: Key, unknown: UnknownKeys, names: Names
) -> list[Finding]:
    """Return the findings of a validation, one for each key.

    Args:
        error: from `block.model_validate(data)`.
        block: the model class.
        data: what was validated.
        prefix: path of the block in the recipe.
        unknown: suggests what to write instead of unknown keys.
        names: what a recipe can name.
    """
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_key.setdefault(_real_key(detail, data), []).append(detail)
    found: list[Finding] = []
    for key, details in by_key.items():
        if _only_types(details) and any(other[: len(key)] == key and other != key for other in by_key):
            continue  # another member of the union fitted the type, and found the problem inside the value
        found.append(_finding(details, key, block, data, prefix, unknown, names))
    return found


def _real_key(detail: ErrorDetails, data: Any) -> Key:
    """Return an error's location without the names of union members, which are not keys of the recipe."""
    location = detail["loc"]
    key: Key = ()
    current = data
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if has_part(current, part):
            current = current[part]
        elif last and detail["type"] == "missing":
            current = None
        else:
            continue
        key = (*key, part)
    return key


def _only_types(details: Iterable[ErrorDetails]) -> bool:
    return all(
        detail["type"] not in _CUSTOM and detail["type"] not in ("missing", "extra_forbidden") for detail in details
    )


def _finding(
    details: Sequence[ErrorDetails],
    key: Key,
    block: type[BaseModel],
    data: Any,
    prefix: Key,
    unknown: UnknownKeys,
    names: Names,
) -> Finding:
    full = (*prefix, *key)
    name, kinds = dotted(full), {detail["type"] for detail in details}
    value = value_at(data, key)
    if "extra_forbidden" in kinds:
        parent = block_at(block, key[:-1]) or block
        return Finding(full, "there is no such key", unknown.suggest(full, value, parent))
    for detail in details:
        if detail["type"] in _CUSTOM:
            return _custom(str(detail.get("ctx", {}).get("error", detail["msg"])), key, block, data, prefix)
    annotation, metadata = field_at(block, key) or (object, [])
    annotation = spelled_out(annotation, metadata, names)
    if "missing" in kinds:
        return Finding(full, f"{name} is missing; expected {describe(annotation, metadata)}")
    if kinds & set(_RANGE):
        return Finding(full, f"{name} = {show(value)}; expected {_limits(annotation, metadata, value)}")
    expected = describe(annotation, metadata) if annotation is not object else details[0]["msg"]
    if "finite_number" in kinds:
        expected = expected.replace("a number", "a finite number")
    if "string_unicode" in kinds:
        return Finding(full, f"{name} contains characters that are not Unicode text")
    if kinds & {"too_short", "string_too_short"}:
        return Finding(full, f"{name} = {show(value)}; expected a value that is not empty")
    return Finding(full, f"{name} = {show(value)}; expected {expected}", hint(value, annotation))


def _limits(annotation: Any, metadata: Sequence[Any], value: Any) -> str:
    for member in members(annotation):
        plain, inner = unwrap(member)
        every = [*metadata, *inner]
        small = isinstance(value, int | float) and value < LARGEST
        limits = bounds([each for each in every if not (small and of_the_machine(each))])
        if plain in (int, float) and limits:
            return limits
    return describe(annotation, metadata)


def _custom(message: str, key: Key, block: type[BaseModel], data: Any, prefix: Key) -> Finding:
    """Return the message of one of our validators, as a finding of the first key that it names."""
    inner = block_at(block, key)
    if inner is not None and isinstance(value_at(data, key), dict):
        for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", message):
            if word in inner.model_fields and word != "name":
                return Finding((*prefix, *key, word), message)
    full = dotted((*prefix, *key))
    return Finding((*prefix, *key), message if full in message else f"{full}: {message}")


def value_at(data: Any, key: Key) -> Any:
    """Return the value at `key` in `data`, or None."""
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def hint(value: Any, annotation: Any) -> str | None:
    """Return how to write a value that has the wrong type, or None if that cannot be guessed."""
    kinds = [unwrap(member)[0] for member in members(annotation)]
    accepts_list = any(describe(kind_).startswith("a list") for kind_ in kinds)
    if value is None:
        return "leave the key out to take its default"
    if isinstance(value, str):
        return _text_hint(value, annotation, kinds, accepts_list)
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return f"write {int(value)}"
    if isinstance(value, bool) and any(word in ("no", "yes", "on", "off") for word in choices(annotation)):
        return "write no, not false" if not value else None
    if accepts_list and not isinstance(value, (list, dict)):
        return f"write [{show(value)}]"
    if str in kinds and not isinstance(value, (list, dict)):
        return f"this is {kind(value)}; write text in quotes: '{show(value)}'"
    return None


def _text_hint(value: str, annotation: Any, kinds: Sequence[Any], accepts_list: bool) -> str | None:
    text = value.strip()
    if accepts_list and text.lower() in ("none", "null", "no", ""):
        return "leave the key out, or write []"
    if bool in kinds and text.lower() in ("yes", "on", "y", "true", "no", "off", "n", "false"):
        return f"write {'true' if text.lower() in ('yes', 'on', 'y', 'true') else 'false'}, without quotes"
    if int in kinds or float in kinds:
        number = _number_hint(text, fractions=float in kinds)
        if number is not None:
            return number
    words = choices(annotation)
    if words:
        return choice_hint(text, words)
    return f"write [{text}]" if accepts_list and text else None


def _number_hint(text: str, *, fractions: bool) -> str | None:
    """Return how to write a number that was quoted, or written as people write it; None for other text."""
    share = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", text)
    if share and fractions:
        return f"write {float(share[1]) / 100:g}"
    decimal = fractions and re.fullmatch(r"[-+]?[0-9]*,(?![0-9]{3}$)[0-9]+", text)  # 1,5 is 1.5, and 1,500 is 1500
    bare = text.replace(",", ".") if decimal else text.replace("_", "").replace(",", "")
    try:
        number = read_scalar(bare)
    except ValueError:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    return f"write {bare}, without quotes, underscores or commas"


_OTHER_WORDS = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32",
    "dpo": "sigmoid", "rpo": "sigmoid", "cdpo": "sigmoid", "slic": "hinge", "kto_pair": "kto",
    "adam": "adamw_torch", "adamw": "adamw_torch", "adamw_hf": "adamw_torch", "adamw_torch_8bit": "adamw_8bit",
    "adam8bit": "adamw_8bit", "adamw8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit", "lion": "lion_32bit",
    "gpu": "cuda",
}  # fmt: skip
"""What people write for a value, and the letters of no value are nearer to."""


def choice_hint(text: str, words: Sequence[str]) -> str | None:
    """Return the nearest of `words`, or None."""
    lowered = {word.lower(): word for word in words}
    plain = text.lower()
    for other in (TASK_ALIASES.get(text), TASK_ALIASES.get(plain), _OTHER_WORDS.get(plain)):
        if other in words:
            return did_you_mean([other])
    close = nearest(text.lower().replace("-", "_"), lowered)
    return did_you_mean(lowered[word] for word in close) or None


def method_hint(name: str, names: Sequence[str]) -> str:
    """Return the method that is probably meant, and the list of all methods."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    every = f"the methods are: {', '.join(names)}"
    if plain in names:
        return did_you_mean([plain], every)
    ours, how = METHOD_ALIASES.get(plain, (None, None))
    if ours in names:
        return did_you_mean([f"{ours} {how}" if how else ours], every)
    return did_you_mean(nearest(plain, names), every)
