"""Fill the generated parts of these pages: `python docs/generate.py`, or `--check` to say which page is out of date.

A generated part stands between `<!-- generated: NAME ARGUMENT -->` and `<!-- end -->`; PARTS has each NAME.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from peftcli.analysis.advice.advice_rules import rules
from peftcli.analysis.estimate.published_error import published_markdown
from peftcli.analysis.support import type_tables
from peftcli.cli.methods import text_of
from peftcli.layers.quantised.quantiser_table import quantiser_facts
from peftcli.names import NAMES
from peftcli.protocol.method import merges_by_default
from peftcli.protocol.rates.default_rate import default_rate
from peftcli.protocol.rates.published_sources import sources
from peftcli.protocol.rates.rate_evidence import rate_evidence
from peftcli.protocol.registry import registry
from peftcli.recipe.aliases import foreign_values as there
from peftcli.recipe.aliases.all_aliases import ALIASES, METHOD_ALIASES, TASK_ALIASES
from peftcli.recipe.field_descriptions import describe
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.schema import (
    DataSource,
    DataSpec,
    DistributedSpec,
    FastPathsSpec,
    ModelSpec,
    Recipe,
    TrainingSpec,
)
from peftcli.recipe.vocabulary import spelled_out
from peftcli.starting.shipped_recipes import shipped_recipes
from peftcli.tasks.task_info import ModelKind

DOCS = Path(__file__).resolve().parent
BLOCKS: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "model": ModelSpec,
    "data": DataSpec,
    "source": DataSource,
    "training": TrainingSpec,
    "fast_paths": FastPathsSpec,
    "distributed": DistributedSpec,
}
SHOWN_MODELS: tuple[tuple[ModelKind, int], ...] = (("encoder", 384), ("decoder", 2048), ("decoder", 4096))
"""Kind and width of the models whose default learning rates are shown."""
LISTED_ELSEWHERE = {
    describe(Literal[("auto", *NAMES.formats)]): "auto, or the name of a [row format](data.md#formats)",
}
"""What the table of a block gives as a link: a new format changes one page."""

PART = re.compile(r"<!-- generated: ([\w-]+)(?: ([^>]*?))? -->\n.*?<!-- end -->", flags=re.S)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped, and a cell's lines become one: a row is a line."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(columns), *lines[1:]))


def fields(name: str) -> str:
    """Return the keys of a block: type and bounds, default, meaning."""
    return _fields(BLOCKS[name])


def _fields(block: type[BaseModel], without: Sequence[str] = ()) -> str:
    rows = []
    for key, field in block.model_fields.items():
        if key in without:
            continue
        value = describe(spelled_out(field.annotation, field.metadata, NAMES), field.metadata)
        for listed, link in LISTED_ELSEWHERE.items():
            value = value.replace(listed, link)
        rows.append([f"`{key}`", value, _default(block, key), field.description or ""])
    return table(["key", "value", "default", "meaning"], rows)


def _default(block: type[BaseModel], key: str) -> str:
    field = block.model_fields[key]
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return f"a block: {name}" if name else "a block"
    return f"`{text_of(value)}`" if value != "" else '`""`'


def methods(_: str) -> str:
    """Return every method with its capabilities, and its default learning rate on models of three sizes."""
    columns = [f"rate: {kind} {width}" for kind, width in SHOWN_MODELS]
    rows = []
    for name in registry.names():
        info = registry.info(name)
        merges = {True: "yes", False: "no", None: "depends"}[merges_by_default(registry.method(name))]
        rows.append(
            [
                f"[`{name}`](#{name})",
                info.family,
                merges,
                "yes" if info.quantised_base else "no",
                *(f"{default_rate(registry.method(name), None, kind, width).value:g}" for kind, width in SHOWN_MODELS),
                info.paper,
            ]
        )
    return table(["method", "family", "merges", "4-bit base", *columns, "paper"], rows)


def rates(_: str) -> str:
    """Return what the learning-rate defaults rest on: a row for each point, then one for each setting."""
    evidence, rows = rate_evidence(), []
    for trains, group in evidence.groups.items():
        by_kind = {"encoder": group.encoder, "decoder": group.decoder, "encoder-decoder": group.encoder_decoder}
        for kind, points in by_kind.items():
            for point in points:
                of = f"`{group.exemplar}` ({trains})"
                rows.append([of, kind, str(point.width), f"{point.rate:g}", point.kind, point.source, point.scope])
    changes = [
        [f"`{name}`", f"x {one.factor:g}" if not one.exponent else f"value to the power {one.exponent:g}", one.kind,
         one.source, one.scope]
        for name, one in evidence.settings.items()
    ]  # fmt: skip
    points_table = table(["methods like", "model", "width", "rate", "known how", "source", "scope"], rows)
    return f"{points_table}\n\n{table(['setting', 'changes the rate', 'known how', 'source', 'scope'], changes)}"


def advice_rules(_: str) -> str:
    """Return the rules of `peft recommend`, in the order in which they are tried."""
    rows = [
        [f"`{rule.key}`", f"`{text_of(rule.value)}`", rule.reason, rule.scope, rule.limit, rule.source, rule.date]
        for rule in rules()
    ]
    return table(["key", "value", "why", "found on", "limit", "source", "read"], rows)


def source_list(_: str) -> str:
    """Return the sources by id."""
    rows = [
        [f"`{name}`", one.title, one.who, one.where, one.read, "yes" if one.checked else "no"]
        for name, one in sources().items()
    ]
    return table(["id", "title", "who", "where", "read", "figures checked in the source"], rows)


def method(name: str) -> str:
    """Return one method: what it is, and its hyper-parameters."""
    info = registry.info(name)
    lines = [f"{info.summary} {info.paper}."]
    if info.unmergeable is not None:
        lines.append(f"It does not merge: {info.unmergeable}.")
    if info.tasks:
        lines.append(f"Tasks: {', '.join(sorted(info.tasks))}.")
    if info.artifact == "model":
        lines.append("The run holds a complete model, `model/`, in place of `adapter/`.")
    common = ("name", "modules_to_save", "init_from")
    shown = _fields(info.params, common) if len(info.params.model_fields) > len(common) else ""
    return "\n".join(lines) + (f"\n\n{shown}" if shown else "")


def common(_: str) -> str:
    """Return the hyper-parameters that every method takes."""
    from peftcli.recipe.method_params import MethodParams

    return _fields(MethodParams)


def families(_: str) -> str:
    """Return the table of model families."""
    from transformers import AutoConfig

    from peftcli.models.families.family_table import FAMILIES, family_row
    from peftcli.models.model_tasks import possible_tasks

    rows = []
    for name in FAMILIES:
        config = AutoConfig.for_model(name)
        row = family_row(config)
        assert row is not None
        fused = [f"{'+'.join(f.roles)} in `{path}`" for stack in row.stacks for path, f in stack.fused.items()]
        tasks = [f"`{task}`" for task in possible_tasks(config)]
        remarks = [*fused, *([row.note] if row.note else []), *([row.prefix_reason] if row.prefix_reason else [])]
        remarks += [f"`{path}`: {why}" for stack in row.stacks for path, why in stack.left_out.items()]
        rows.append(
            [
                f"`{name}`",
                " and ".join(dict.fromkeys(stack.stack for stack in row.stacks)),
                ", ".join(tasks) or "none: anatomy and counts only",
                row.prefix_route or "no",
                "; ".join(dict.fromkeys(remarks)),
            ]
        )
    return table(["`model_type`", "stacks", "tasks", "prefix route", "remarks"], rows)


def tried_types(part: str) -> str:
    """Return what was tried of the types of transformers: a summary, a task's table, or the types left out of it."""
    from peftcli.analysis.support.tried_types import TASKS_TRIED, read_tried

    what, _, asked = part.partition(" ")
    if what == "summary":
        return type_tables.summary(read_tried())
    task = next(task for task in TASKS_TRIED if task == asked)
    return table(type_tables.COLUMNS, type_tables.rows_of(task)) if what == "table" else type_tables.left_out(task)


def role_paths(name: str) -> str:
    """Return the modules that are the roles of one family."""
    from transformers import AutoConfig

    from peftcli.models.families.family_table import family_row

    row = family_row(AutoConfig.for_model(name))
    assert row is not None
    rows = []
    for stack in row.stacks:
        for role, path in stack.linears.items():
            rows.append([f"`{role}`", f"`{path if isinstance(path, str) else ', '.join(path)}`"])
        for path, held in stack.fused.items():
            rows += [[f"`{role}`", f"its part of `{path}`"] for role in held.roles]
    return table(["role", f"module of a {name} block"], rows)


def formats(_: str) -> str:
    """Return the row formats."""
    rows = []
    for known in NAMES.formats.values():
        tasks = [name for name, info in NAMES.tasks.items() if info.rows in known.makes]
        columns = []
        for column in known.columns:
            others = f" ({', '.join(column.synonyms)})" if column.synonyms else ""
            columns.append(f"`{column.name}`{'' if column.required else '?'}{others}")
        rows.append([f"[`{known.name}`](#{known.name})", ", ".join(tasks), "; ".join(columns)])
    return table(["format", "tasks", "columns (other names that are recognised); ? may be absent"], rows)


def format_rows(_: str) -> str:
    """Return a section for each format: example rows, and what its file says about them."""
    sections = []
    for known in NAMES.formats.values():
        rows = [f"```json\n{json.dumps(row, ensure_ascii=False)}\n```" for row in known.rows]
        sections.append("\n\n".join([f"### {known.name}", *rows, *([known.about] if known.about else [])]))
    return "\n\n".join(sections)


def optimizers(_: str) -> str:
    """Return the names of the optimizers."""
    return ", ".join(f"`{name}`" for name in OPTIMIZERS) + "."


def tasks(_: str) -> str:
    """Return the tasks and what a model learns in each."""
    return table(
        ["task", "what the model is trained to predict"],
        [[f"`{name}`", info.summary] for name, info in NAMES.tasks.items()],
    )


def metrics(_: str) -> str:
    """Return the metrics by kind of prediction."""
    return table(
        ["kind", "`training.metrics`"],
        [[kind, ", ".join(f"`{name}`" for name in names)] for kind, names in NAMES.metrics.items()],
    )


def foreign_keys(tool: str) -> str:
    """Return what `peft validate` answers to the names of one tool."""
    rows = []
    for name, alias in sorted(ALIASES.items()):
        if tool in [each.strip() for each in alias.tools.replace(" v1", "").split(",")]:
            rows.append([f"`{name}`", f"`{alias.ours}`" if alias.ours else "none", alias.note or ""])
    if not rows:
        raise ValueError(f"no alias names the tool {tool!r}")
    return table([f"{tool}", "here", "remark"], rows)


def foreign_methods(_: str) -> str:
    """Return other names of methods and tasks."""
    rows = [[f"`{name}`", f"`method.name: {ours}`", note or ""] for name, (ours, note) in METHOD_ALIASES.items()]
    rows += [[f"`{name}`", f"`task: {ours}`", ""] for name, ours in TASK_ALIASES.items()]
    return table(["other name", "here", "remark"], rows)


def foreign_values(_: str) -> str:
    """Return what values of axolotl's and LLaMA-Factory's keys are here."""
    rows = [
        [f"`{key}`", f"`{text_of(theirs)}`", "(default)" if ours is None else f"`{text_of(ours)}`"]
        for key, values in {**there.VALUES, **there.STAGE_LOSSES}.items()
        for theirs, ours in values.items()
    ]
    return table(["key", "value there", "here"], rows)


def foreign_defaults(_: str) -> str:
    """Return what axolotl and LLaMA-Factory do where a key is missing."""
    rows = [
        [tool, f"`{key}`", f"`{text_of(value)}`"]
        for tool, defaults in there.DEFAULTS.items()
        for key, value in defaults.items()
    ]
    rows += [[tool, f"`{key}` (loss {loss})", f"`{text_of(value)}`"] for tool, losses in there.LOSS_DEFAULTS.items()
             for loss, defaults in losses.items() for key, value in defaults.items()]  # fmt: skip
    return table(["tool", "our key", "its default"], rows)


def foreign_rows(_: str) -> str:
    """Return the formats of other tools' data sets."""
    rows = [["axolotl", f"`type: {theirs}`", f"`data.format: {ours}`"] for theirs, ours in there.DATASET_TYPES.items()]
    rows += [["LLaMA-Factory", f"`{theirs}`", f"`data.columns: {ours}`"] for theirs, ours in there.INFO_COLUMNS.items()]
    rows += [[tool, f"`{theirs}` of preferences", f"`data.columns: {ours}`"]
             for tool, columns in there.PAIR_COLUMNS.items() for theirs, ours in columns.items()]  # fmt: skip
    return table(["tool", "there", "here"], rows)


def recipes_shipped(_: str) -> str:
    """Return the shipped recipes."""
    return table(
        ["recipe", "task", "model", "method", "memory", "purpose", "source"],
        [
            [f"[`{one.name}`](../recipes/{one.name}.yaml)", f"`{one.task}`", one.model, one.method, one.memory_how,
             one.purpose, one.source]
            for one in shipped_recipes()
        ],
    )  # fmt: skip


def papers_shipped(_: str) -> str:
    """Return the recipes with a paper's settings: its figure, and this project's."""
    return table(
        ["recipe", "the paper's figure", "measured with this project"],
        [[f"`{one.name}`", one.paper, one.measured or ""] for one in shipped_recipes() if one.paper],
    )


PARTS: dict[str, Callable[[str], str]] = {
    "fields": fields,
    "methods": methods,
    "method": method,
    "rates": rates,
    "advice-rules": advice_rules,
    "estimate-error": lambda _: published_markdown(),
    "sources": source_list,
    "common": common,
    "families": families,
    "tried-types": tried_types,
    "quantisers": lambda _: table(*quantiser_facts()),
    "roles": role_paths,
    "formats": formats,
    "format-rows": format_rows,
    "optimizers": optimizers,
    "tasks": tasks,
    "metrics": metrics,
    "foreign-keys": foreign_keys,
    "foreign-methods": foreign_methods,
    "foreign-values": foreign_values,
    "foreign-defaults": foreign_defaults,
    "foreign-rows": foreign_rows,
    "shipped-recipes": recipes_shipped,
    "shipped-papers": papers_shipped,
}


def filled(page: str) -> str:
    """Return a page with every generated part made anew."""

    def fill(found: re.Match[str]) -> str:
        name, argument = found.group(1), found.group(2) or ""
        head = f"<!-- generated: {name}{f' {argument}' if argument else ''} -->"
        return f"{head}\n{PARTS[name](argument)}\n<!-- end -->"

    return PART.sub(fill, page)


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or with `--check` only compare; return the exit code."""
    stale = []
    for file in sorted(DOCS.glob("*.md")):
        page = file.read_text(encoding="utf-8")
        made = filled(page)
        if made != page:
            stale.append(file.name)
            if "--check" not in arguments:
                file.write_text(made, encoding="utf-8")
    wrong = "--check" in arguments and bool(stale)
    print("\n".join(f"{name}: {'out of date' if wrong else 'written'}" for name in stale) or "up to date")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
