"""The chat template of axolotl's data sets: there each may have its own, here all of a recipe have one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.plain_keys import translate_plain

_DATA_SETS = ("datasets", "test_datasets", "pretraining_dataset")
_TOKENIZERS = "tokenizer_default"
_WORDED = {"chatml": "chatml", "llama3": "llama3", "zephyr": "zephyr", "passthrough": "none"}


def worded(kind: Any) -> str | None:
    """Return our template for the wording that a `type` of preferences has; None where it takes the chat template."""
    return _WORDED.get(str(kind).partition(".")[0])


def _own(work: Conversion) -> Iterator[str | None]:
    """Yield the template that each data set names itself; None for one that takes the configuration's."""
    for name in _DATA_SETS:
        entries = work.document.data.get(name)
        for entry in entries if isinstance(entries, list) else [entries]:
            kind = str(entry.get("type")) if isinstance(entry, dict) else ""
            if own := worded(kind) or (kind and entry.get("chat_template")):
                yield str(own)
            elif kind.startswith(("chat_template", "sharegpt")):
                yield None


def differing(work: Conversion) -> str | None:
    """Return what is wrong where data sets have different chat templates; None where one serves all."""
    usual = str(work.document.data.get("chat_template") or _TOKENIZERS)
    found = sorted({usual if own is None else own for own in _own(work)})
    if len(found) < 2:
        return None
    return f"here all data sets have one chat template; these have {', '.join(found)}: choose"


def of_data_set(work: Conversion, key: Key, value: Any) -> None:
    """Translate the chat template of one data set, if all have the same."""
    wrong = differing(work)
    if wrong is None:
        translate_plain(work, key, value)
    else:
        work.decide(key, wrong, "data.chat_template")


def of_all(work: Conversion, key: Key, value: Any) -> None:
    """Translate the configuration's chat template, unless each data set names its own."""
    own = list(_own(work))
    if own and None not in own:
        work.drop(key, "each data set names its own")
    else:
        translate_plain(work, key, value)
