"""The keys of LLaMA-Factory that stand for several keys here, and its data sets, which dataset_info.json describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.aliases.foreign_values import INFO_COLUMNS, VALUES
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.plain_keys import translate_plain
from peftcli.starting.convert.preference_keys import Handler, described_pairs, trains_preferences

INFO = "dataset_info.json"
_ONLINE = "ONLINE"
_A_DAY = 86_400
_TAGS = {("role", "content"): "messages", ("from", "value"): "sharegpt"}


def method_of(data: Mapping[str, Any]) -> str | None:
    """Return our method for their finetuning_type, which is lora where it is missing. None: there is no such method."""
    kind = data.get("finetuning_type") or "lora"
    quantised = data.get("quantization_bit") == 4
    known = {"lora": "qlora" if quantised else "lora", "full": "full", "freeze": "freeze", "oft": "oft"}
    return known.get(kind) if isinstance(kind, str) else None


def _lora_target(work: Conversion, key: Key, value: Any) -> None:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if names == ["all"]:
        work.put(key, "method.target_modules", "all-linear")
    else:
        work.put(key, "method.target_modules", names)


def _names(ours: str) -> Handler:
    def handle(work: Conversion, key: Key, value: Any) -> None:
        work.put(key, ours, [name.strip() for name in value.split(",")] if isinstance(value, str) else value)

    return handle


def _bits(work: Conversion, key: Key, value: Any) -> None:
    if value == 4 and work.get("method.name") == "qlora":
        work.put(key, "method.name", "qlora", "LoRA on a base of 4 bits")
    elif value in (4, 8):
        work.put(key, f"model.load_in_{value}bit", True)
    else:
        work.decide(key, "bases have 4, 8 or 16 bits here", "model.load_in_4bit")


def _report(work: Conversion, key: Key, value: Any) -> None:
    if value in ("none", "None", ["none"]):
        work.drop(key, "no tracker unless training.report_to names it")
    else:
        work.put(key, "training.report_to", value if isinstance(value, list) else [value])


def _timeout(work: Conversion, key: Key, value: Any) -> None:
    if isinstance(value, int) and value > _A_DAY:
        work.drop(key, "not needed: rows are prepared before processes wait for each other")
    else:
        translate_plain(work, key, value)


def _dropped(note: str) -> Handler:
    def handle(work: Conversion, key: Key, _value: Any) -> None:
        work.drop(key, note)

    return handle


def _thinking(work: Conversion, key: Key, value: Any) -> None:
    work.put(key, "data.chat_template_kwargs", {"enable_thinking": value})


def _template(work: Conversion, key: Key, value: Any) -> None:
    """Translate a template's name; one that ends in `_nothink` is the tokenizer's own, told not to think."""
    plain = str(value).removesuffix("_nothink")
    thinks = "instruct" not in str(work.document.data.get("model_name_or_path")).lower()
    if plain != value and VALUES["template"].get(plain) and not thinks:
        work.drop(key, "the tokenizer's own template is used; an Instruct model's has no thinking to switch off")
    elif plain != value and VALUES["template"].get(plain):
        work.put(key, "data.chat_template_kwargs", {"enable_thinking": False}, "of the tokenizer's own template")
    else:
        translate_plain(work, key, value)


def _quantiser(work: Conversion, key: Key, value: Any) -> None:
    if value in ("bitsandbytes", "bnb"):
        work.drop(key, "it is what quantises here")
    else:
        translate_plain(work, key, value)


def _max_samples(work: Conversion, key: Key, value: Any) -> None:
    names = _listed(work.document.data.get("dataset"))
    note = f"there it is of each data set: {len(names)} x {value}" if len(names) > 1 else None
    work.put(key, "data.max_rows", value * max(1, len(names)) if isinstance(value, int) else value, note)


def _dataset(work: Conversion, key: Key, value: Any) -> None:
    sources = _sources(work, key, value)
    if len(sources) == 1:
        for name, one in sources[0].items():
            if name != "format" or work.document.data.get("stage") != "pt":
                work.set(f"data.{name}", one)
    else:
        work.set("data.datasets", sources)


def _eval_dataset(work: Conversion, key: Key, value: Any) -> None:
    sources = _sources(work, key, value)
    work.set("data.validation", sources[0] if len(sources) == 1 else sources)
    work.set("data.val_set_size", 0)


def _listed(value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(name).strip() for name in names]


def _sources(work: Conversion, key: Key, value: Any) -> list[dict[str, Any]]:
    """Return a source for each name."""
    info, folder, looked = _info(work)
    sources = []
    for name in _listed(value):
        entry = info.get(name)
        if isinstance(entry, dict):
            work.say(key, "data.path", f"{name}: {folder / INFO}")
            sources.append(_described(work, key, name, entry, folder))
        else:
            why = f"{name}: not in {folder / INFO}" if info else f"{name}: no {INFO} in {looked}"
            if work.document.data.get("dataset_dir") == _ONLINE:
                work.say(key, "data.path", f"{name}: a data set on the hub")
            else:
                work.decide(key, f"{why}; set the path of its file, and its format", "data.path")
            sources.append({"path": name})
    return sources


def _info(work: Conversion) -> tuple[dict[str, Any], Path, str]:
    """Return what describes the data sets, the folder that it lies in, and the folders that were looked into.

    Raises:
        UserError: the file is there and is no JSON object.
    """
    named = work.document.data.get("dataset_dir") or "data"
    beside = Path(work.file).parent
    folders = list(dict.fromkeys([Path(str(named)), beside / str(named), beside, beside / "data"]))
    for folder in folders:
        file = folder / INFO
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, OSError) as error:
                raise UserError(Problem(f"cannot be read as JSON: {error}", file=str(file))) from error
            if not isinstance(found, dict):
                raise UserError(Problem("holds no object with the names of data sets", file=str(file)))
            return found, folder, ""
    return {}, folders[0], ", ".join(str(folder) for folder in folders)


def _described(work: Conversion, key: Key, name: str, entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the source that an entry of dataset_info.json describes."""
    made: dict[str, Any] = {}
    if entry.get("hf_hub_url"):
        made["path"] = str(entry["hf_hub_url"])
    elif entry.get("file_name"):
        made["path"] = (folder / str(entry["file_name"])).as_posix()
    else:
        work.decide(key, f"{name}: neither file_name nor hf_hub_url; set its path", "data.path")
        made["path"] = name
    for theirs, ours in (("subset", "config"), ("split", "split")):
        if entry.get(theirs) and (ours != "split" or entry.get("hf_hub_url")):
            made[ours] = str(entry[theirs])
    pairs = trains_preferences(work)
    for other in ("num_samples", "folder") if pairs else ("ranking", "num_samples", "folder"):
        if entry.get(other):
            work.decide(key, f"{name}: {other} of {INFO} has no counterpart in a source", "data")
    kind = _formatting(work, key, name, entry)
    if pairs:
        described_pairs(work, key, name, entry, made)
        return made
    columns = {INFO_COLUMNS[theirs]: str(file) for theirs, file in (entry.get("columns") or {}).items()
               if theirs in INFO_COLUMNS and file}  # fmt: skip
    if kind == "sharegpt" and "messages" in columns:
        columns["conversations"] = columns.pop("messages")
    elif kind == "messages":
        columns.setdefault("messages", "conversations")
    made["format"] = kind
    if columns := {ours: theirs for ours, theirs in columns.items() if ours != theirs}:
        made["columns"] = columns
    return made


def _formatting(work: Conversion, key: Key, name: str, entry: Mapping[str, Any]) -> str:
    """Return the format of an entry's rows: alpaca's, or of turns with one pair of names or the other."""
    kind = str(entry.get("formatting") or "alpaca")
    if kind != "sharegpt":
        return kind
    tags = entry.get("tags") or {}
    fields = (tags.get("role_tag", "from"), tags.get("content_tag", "value"))
    if fields not in _TAGS:
        text = f"{name}: turns have {show(fields[0])} and {show(fields[1])}; rename them to role and content"
        work.decide(key, text, "data.format")
        return kind
    return _TAGS[fields]


HANDLERS: Mapping[str, Handler] = {
    "lora_target": _lora_target,
    "additional_target": _names("method.modules_to_save"),
    "add_tokens": _names("model.new_special_tokens"),
    "add_special_tokens": _names("model.new_special_tokens"),
    "quantization_bit": _bits,
    "quantization_method": _quantiser,
    "report_to": _report,
    "ddp_timeout": _timeout,
    "dataset": _dataset,
    "eval_dataset": _eval_dataset,
    "dataset_dir": _dropped(f"its {INFO} is in the recipe now: data.path, data.format, data.columns"),
    "max_samples": _max_samples,
    "enable_thinking": _thinking,
    "template": _template,
    "cache_dir": _dropped("models are kept where HF_HOME says; data.cache_dir is for prepared rows"),
    "tokenized_path": _dropped("not needed: prepared rows are found again by themselves"),
    "run_name": _dropped("the name of a run is that of its directory, output_dir"),
}
