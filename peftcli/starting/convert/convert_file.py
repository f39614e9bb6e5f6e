"""Read a configuration, recognise whose it is, translate each key, and see to it that the recipe validates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.aliases.alias import AXOLOTL, LLAMA_FACTORY
from peftcli.recipe.aliases.foreign_values import DEFAULTS, LOSS_DEFAULTS, STAGE_LOSSES
from peftcli.recipe.load_recipe import recipe_from_data
from peftcli.recipe.yaml.recipe_text import read_recipe_text
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.value_tree import dotted
from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import Document, parse_yaml
from peftcli.starting.convert import axolotl_keys, llama_factory_keys, preference_keys
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.plain_keys import translate_plain

_ROUNDS = 20  # a value that is taken out can make another one idle
_NEEDED = ("model.name_or_path", "method.name", "task", "data")


@dataclass(frozen=True)
class Tool:
    """What is known of a tool.

    Args:
        name: as in the tables of names.
        needed, typical: a key that each of its configurations has, and keys of which it has at least one.
        adapter: the key that names the method, and what gives ours for it.
        stage: the key that names what is trained, and the values for which a recipe exists.
        loss_of: gives our loss of preference tuning.
        handlers: the keys that need more than the tables.
    """

    name: str
    needed: str
    typical: tuple[str, ...]
    adapter: str
    method_of: Callable[[Mapping[str, Any]], str | None]
    stage: str
    stages: Mapping[Any, str]
    loss_of: Callable[[Mapping[str, Any]], str]
    handlers: Mapping[str, Callable[[Conversion, tuple[str | int, ...], Any], None]]


TOOLS = (
    Tool(
        AXOLOTL, "base_model", ("datasets", "pretraining_dataset", "adapter", "sequence_len", "micro_batch_size"),
        "adapter", axolotl_keys.method_of, "rl",
        {None: "causal_lm", **dict.fromkeys(STAGE_LOSSES["rl"], "preference")},
        preference_keys.axolotl_loss, {**axolotl_keys.HANDLERS, **preference_keys.AXOLOTL_HANDLERS},
    ),
    Tool(
        LLAMA_FACTORY, "model_name_or_path", ("stage", "finetuning_type", "dataset", "template", "cutoff_len"),
        "finetuning_type", llama_factory_keys.method_of, "stage",
        {None: "causal_lm", "sft": "causal_lm", "pt": "causal_lm", "dpo": "preference", "kto": "preference"},
        preference_keys.llama_factory_loss,
        {**llama_factory_keys.HANDLERS, **preference_keys.LLAMA_FACTORY_HANDLERS},
    ),
)  # fmt: skip


def convert_file(path: Path) -> Conversion:
    """Return a conversion that is done: its recipe validates, and each key has an outcome.

    Raises:
        UserError: the file is of neither tool, or asks for what no recipe does.
    """
    document = _read(path)
    tool = _whose(path, document)
    work = Conversion(tool.name, str(path), document)
    data = document.data
    stage = data.get(tool.stage) or None
    task = tool.stages.get(stage) if stage is None or isinstance(stage, str) else None
    if task is None:
        text = f"{tool.stage}: {stage} is neither supervised fine-tuning nor preference tuning (DPO and its family)"
        remedy = "trl trains with rewards, and reward models"
        raise UserError(_at(work, tool.stage, text, remedy))
    method = tool.method_of(data)
    if method is None:
        remedy = (
            "`peft methods` lists what there is; write its name there as lora, and change method.name in the recipe"
        )
        text = f"{tool.adapter}: {show(data.get(tool.adapter))} is no method of a recipe"
        raise UserError(_at(work, tool.adapter, text, remedy))
    work.recipe = {"model": {}, "task": task, "data": {}, "method": {"name": method}, "training": {}}
    if task == "preference":
        work.set("training.loss_type", tool.loss_of(data))
    for name, value in work.items():
        if name == tool.adapter and value:
            work.say((name,), "method.name")
        elif value in (None, "", [], {}):
            work.empty((name,))
        elif name in tool.handlers:
            tool.handlers[name](work, (name,), value)
        else:
            translate_plain(work, (name,), value)
    if work.get("data.path") is None and not work.get("data.datasets"):
        raise UserError(Problem("names no data set to train on", file=work.file, suggestion=_NO_ROWS))
    _defaults(work)
    _settle(work)
    return work


_NO_ROWS = "only training has a recipe: `datasets` (axolotl) or `dataset` (LLaMA-Factory) is missing or empty"


def _read(path: Path) -> Document:
    """Return the parsed file; what is left of its environment variables is text."""
    try:
        document = parse_yaml(read_recipe_text(path), {})
    except YamlProblem as error:
        raise UserError(Problem(error.message, file=str(path), line=error.line, suggestion=error.suggestion)) from error
    twice = [
        Problem(one.message, file=str(path), line=one.line, key=dotted(one.key), suggestion=one.suggestion)
        for one in document.remarks
        if not one.unset
    ]
    if twice:
        raise UserError(twice)
    if not isinstance(document.data, dict):
        raise UserError(Problem(f"holds no mapping of keys; {_LOOKED_FOR}", file=str(path), suggestion=_WHAT))
    return document


_LOOKED_FOR = "looked for " + ", or for ".join(
    f"`{tool.needed}` with any of {', '.join(tool.typical)} ({tool.name})" for tool in TOOLS
)
_WHAT = "name the YAML file that `axolotl train` or `llamafactory-cli train` takes"


def _whose(path: Path, document: Document) -> Tool:
    data = document.data
    for tool in TOOLS:
        if data.get(tool.needed) and any(name in data for name in tool.typical):
            return tool
    if isinstance(data.get("model"), dict) and "method" in data:
        raise UserError(Problem("this is a recipe already", file=str(path), suggestion=f"peft validate {path}"))
    raise UserError(Problem(f"neither axolotl's nor LLaMA-Factory's; {_LOOKED_FOR}", file=str(path), suggestion=_WHAT))


def _at(work: Conversion, key: str, message: str, remedy: str) -> Problem:
    return Problem(message, file=work.file, line=work.document.lines.get((key,)), key=None, suggestion=remedy)


def _defaults(work: Conversion) -> None:
    """Write what the tool does where a key is missing, if a recipe would do something else."""
    warm = work.get("training.warmup_steps") is not None
    held_out = work.get("data.validation") is not None
    lora = work.get("method.name") in ("lora", "qlora")
    for ours, value in DEFAULTS[work.tool].items():
        if (ours == "training.warmup_ratio" and warm) or (ours == "data.val_set_size" and held_out):
            continue
        if not ours.startswith("method.") or lora:
            work.default(ours, value)
    for ours, value in LOSS_DEFAULTS[work.tool].get(str(work.get("training.loss_type")), {}).items():
        work.default(ours, value)
    rank = work.get("method.r")
    if work.tool == LLAMA_FACTORY and lora and isinstance(rank, int):
        work.default("method.lora_alpha", 2 * rank)


def _settle(work: Conversion) -> None:
    """Take out what a recipe refuses, and say so, until it validates.

    Raises:
        UserError: what is needed is missing.
    """
    for _ in range(_ROUNDS):
        try:
            recipe_from_data(work.file, work.recipe, NAMES)
            return
        except UserError as error:
            taken: set[str] = set()
            for problem in error.problems:
                key = _whole(problem.key or "")
                if key in taken:
                    continue
                if work.get(key) is None or key in _NEEDED:
                    raise
                remedy = f"; {problem.suggestion}" if problem.suggestion else ""
                work.refuse(key, f"{problem.message}{remedy}")
                taken.add(key)
    recipe_from_data(work.file, work.recipe, NAMES)


def _whole(key: str) -> str:
    """Return the key that is taken out for a problem at `key`: an element of a list goes with its list."""
    head, _, last = key.rpartition(".")
    return _whole(head) if last.isdigit() else key
