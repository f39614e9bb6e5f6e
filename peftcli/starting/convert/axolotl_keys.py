"""The keys of axolotl that stand for several keys here, or whose meaning depends on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.recipe.aliases.foreign_values import DATASET_TYPES
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.starting.convert import data_set_templates
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.plain_keys import translate_plain
from peftcli.starting.convert.preference_keys import Handler, pair_field, pair_type, rows_format, trains_preferences

_NO_COUNTERPART = "no format here is the same: see docs/data.md, and set format, columns or template"
_ROLE_KEYS = {("role", "content"): "messages", ("from", "value"): "sharegpt"}
_COLUMNS = {
    "field_messages": "messages",
    "field_system": "system",
    "field_tools": "tools",
    "field": "text",
    "text_column": "text",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
}


def method_of(data: Mapping[str, Any]) -> str | None:
    """Return our method for their adapter; without one the whole model is trained. None: there is no such method."""
    adapter = data.get("adapter")
    known = {None: "full", "": "full", "lora": "lora", "qlora": "qlora"}
    return known.get(adapter) if adapter is None or isinstance(adapter, str) else None


def _target_linear(work: Conversion, key: Key, value: Any) -> None:
    if value is True and work.get("method.name") != "full":
        work.put(key, "method.target_modules", "all-linear")
    elif value is True:
        work.drop(key, "the whole model is trained")
    else:
        work.drop(key, "lora_target_modules names the modules")


def _target_modules(work: Conversion, key: Key, value: Any) -> None:
    if work.document.data.get("lora_target_linear") is True:
        work.drop(key, "lora_target_linear takes all linear layers")
    elif isinstance(value, str):
        work.decide(key, "an expression here: name the modules or roles in a list", "method.target_modules")
    else:
        translate_plain(work, key, value)


def _datasets(work: Conversion, key: Key, value: Any) -> None:
    sources = _sources(work, key, value)
    if not sources:
        work.decide(key, "no data set is named: set data.path", "data.path")
    elif len(sources) == 1:
        for name, one in sources[0].items():
            work.set(f"data.{name}", one)
    else:
        work.set("data.datasets", sources)


def _validation(work: Conversion, key: Key, value: Any) -> None:
    sources = _sources(work, key, value)
    if sources:
        work.set("data.validation", sources[0] if len(sources) == 1 else sources)
        work.set("data.val_set_size", 0)


def _pretraining(work: Conversion, key: Key, value: Any) -> None:
    """Translate the data set of pretraining; of a list, axolotl reads the first alone."""
    if isinstance(value, list):
        _datasets(work, key, value[:1])
        for number in range(1, len(value)):
            work.decide((*key, number), "axolotl reads the first alone; data.datasets takes several", "data.datasets")
    elif isinstance(value, dict):
        _datasets(work, key, value)
    else:
        work.put(key, "data.path", value, "rows of text; data.streaming: true reads them while training")
    if work.get("data.format") is None:
        work.set("data.format", "text")


def _sources(work: Conversion, key: Key, value: Any) -> list[dict[str, Any]]:
    entries = value if isinstance(value, list) else [value]
    sources: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        place: Key = (*key, number) if isinstance(value, list) else key
        if isinstance(entry, dict):
            sources += _source(work, place, entry)
        elif isinstance(entry, str):
            work.say(place, "data.path")
            sources.append({"path": entry})
    return sources


def _source(work: Conversion, place: Key, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sources of one data set: one, or one for each of its files."""
    made: dict[str, Any] = {}
    columns: dict[str, str] = {}
    files = entry.get("data_files")
    many = [str(file) for file in files] if isinstance(files, list) else [str(files)] if files else []
    for name, value in entry.items():
        key = (*place, name)
        if value is None or value == "":
            work.empty(key)
        elif name == "path":
            made["path"] = str(value)
            told = f"data_files names the files; {value} is their kind" if many else None
            work.say(key, "data.path", told)
        elif name == "data_files":
            work.say(key, "data.path")
        elif name == "type" and trains_preferences(work):
            pair_type(work, key, value, columns)
        elif name == "type":
            made |= _format(work, key, value, columns)
        elif trains_preferences(work) and pair_field(work, key, value, columns):
            continue
        elif name == "name":
            made["config"] = str(value)
            work.say(key, "data.config")
        elif name == "split":
            made["split"], _, part = str(value).partition("[")
            if part:
                work.decide(key, f"a part of the split: {made['split']} is taken; data.max_rows takes fewer rows")
            else:
                work.say(key, "data.split")
        elif name in _COLUMNS:
            columns[_COLUMNS[name]] = str(value)
            work.say(key, "data.columns")
        elif name in ("ds_type", "trust_remote_code"):
            work.drop(key, "the kind of a file is known from its name; data sets run no code")
        elif name == "roles" or (name in ("roles_to_train", "train_on_eos") and value in (["assistant"], "turn")):
            work.drop(key, "what happens here: roles have all their usual names, and the assistant's turns are learnt")
        elif name == "chat_template":
            data_set_templates.of_data_set(work, key, value)
        elif name not in ("message_property_mappings", "message_field_role", "message_field_content"):
            work.decide(key, "no key of data does this")
    _roles(work, place, entry, made, columns)
    if trains_preferences(work):
        made["format"] = rows_format(work)
    if columns:
        made["columns"] = columns
    return [{**made, "path": file} for file in many] if many else [made]


def _format(work: Conversion, key: Key, value: Any, columns: dict[str, str]) -> dict[str, Any]:
    """Return the format of a data set's `type`; a type in their own words adds columns."""
    if isinstance(value, dict):
        for name, column in value.items():
            if name in _COLUMNS and column:
                columns[_COLUMNS[name]] = str(column)
                work.say((*key, name), "data.columns")
            elif column:
                work.decide((*key, name), "write the prompt's wording as data.template", "data.template")
        return {"format": "alpaca"}
    plain = str(value)
    for known in (plain, plain.partition(":")[0], plain.partition(".")[0]):
        if known in DATASET_TYPES:
            work.say(key, "data.format")
            return {"format": DATASET_TYPES[known]}
    work.decide(key, _NO_COUNTERPART, "data.format")
    return {}


def _roles(
    work: Conversion, place: Key, entry: Mapping[str, Any], made: dict[str, Any], columns: dict[str, str]
) -> None:
    """Choose between the two formats of conversations by the names that a turn's fields have."""
    mapping = entry.get("message_property_mappings")
    named = mapping if isinstance(mapping, dict) else {}
    role = str(named.get("role") or entry.get("message_field_role") or "role")
    content = str(named.get("content") or entry.get("message_field_content") or "content")
    for name in ("message_property_mappings", "message_field_role", "message_field_content"):
        if entry.get(name):
            if (role, content) in _ROLE_KEYS:
                work.say((*place, name), "data.format")
            else:
                text = f"turns have {show(role)} and {show(content)}; here role and content, or from and value"
                work.decide((*place, name), text, "data.format")
    if made.get("format") == "messages" and (role, content) in _ROLE_KEYS:
        made["format"] = _ROLE_KEYS[role, content]
        if made["format"] == "sharegpt" and "messages" in columns:
            columns["conversations"] = columns.pop("messages")


def _times_an_epoch(block: str) -> Handler:
    def handle(work: Conversion, key: Key, value: Any) -> None:
        if (
            block == "eval"
            and not work.document.data.get("val_set_size")
            and not work.document.data.get("test_datasets")
        ):
            work.drop(key, "no rows are held out to evaluate on")
        elif value == 1:
            work.put(key, f"training.{block}_strategy", "epoch")
        elif value == 0:
            work.put(key, f"training.{block}_strategy", "no")
        else:
            work.set(f"training.{block}_strategy", "epoch")
            text = f"{value} times an epoch: once here; for more, {block}_strategy: steps and {block}_steps"
            work.decide(key, text, f"training.{block}_strategy")

    return handle


def _special_tokens(work: Conversion, key: Key, value: Any) -> None:
    if not isinstance(value, dict):
        translate_plain(work, key, value)
        return
    for name, token in value.items():
        if name == "pad_token":
            work.drop((*key, name), "padding never counts here, whatever its token is")
        elif not token:
            work.empty((*key, name))
        else:
            work.decide((*key, name), "the model's own token is used; new ones go into model.new_special_tokens")


def _nested(work: Conversion, key: Key, value: Any) -> None:
    """Translate the keys of a block one by one."""
    if not isinstance(value, dict):
        translate_plain(work, key, value)
        return
    for name, inner in value.items():
        translate_plain(work, (*key, name), inner)


def _fsdp(work: Conversion, key: Key, _value: Any) -> None:
    work.put(key, "distributed.strategy", "fsdp")


def _tracker(name: str) -> Handler:
    def handle(work: Conversion, key: Key, value: Any) -> None:
        if value is False:
            work.drop(key, "no tracker unless training.report_to names it")
        else:
            known = work.get("training.report_to") or []
            names = {name, *(known if isinstance(known, list) else [known])}
            note = "its project and names come from its environment variables"
            work.put(key, "training.report_to", sorted(names, key=str), note)

    return handle


HANDLERS: Mapping[str, Handler] = {
    "chat_template": data_set_templates.of_all,
    "datasets": _datasets,
    "test_datasets": _validation,
    "pretraining_dataset": _pretraining,
    "lora_target_linear": _target_linear,
    "lora_target_modules": _target_modules,
    "evals_per_epoch": _times_an_epoch("eval"),
    "saves_per_epoch": _times_an_epoch("save"),
    "special_tokens": _special_tokens,
    "fsdp": _fsdp,
    "fsdp_config": _nested,
    "wandb_project": _tracker("wandb"),
    "use_wandb": _tracker("wandb"),
    "mlflow_tracking_uri": _tracker("mlflow"),
    "use_tensorboard": _tracker("tensorboard"),
}
