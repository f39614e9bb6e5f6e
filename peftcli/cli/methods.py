"""`peft methods [NAME] [--model M]`: the methods, one method's hyper-parameters, and which fit a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftcli.console.completions import complete_method, complete_task
from peftcli.console.options import Json
from peftcli.console.progress_bar import with_progress
from peftcli.process_state import large_imports

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.analysis.fitting import Fit
    from peftcli.analysis.method_contracts import Finding
    from peftcli.protocol.method import MethodInfo
    from peftcli.protocol.rates.default_rate import DefaultRate
    from peftcli.recipe.method_params import MethodParams


_MERGES = {True: "yes", False: "no", None: "depends"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("methods", short_help="List the methods, or show one.")(with_progress(methods))


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show one method and its hyper-parameters.", autocompletion=complete_method
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Show which methods work with this model; reads no weights."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="The task for --model.", autocompletion=complete_task),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="NAME[:KEY=VALUE,...]",
            help="Check on tiny models that a plug-in's method keeps what every method promises.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or show one with its hyper-parameters.

    Example: peft methods lora
    """
    from peftcli.console.output import print_json
    from peftcli.protocol.registry import registry

    _refuse_ignored(name, model, task, check)
    if check is not None:
        _check(check, as_json=as_json)
        return
    infos = [registry.info(each) for each in ([name] if name else registry.names())]
    fits = _fits(infos, model, task) if model else {}
    rates = _rates(infos, model, task)
    rows = [_record(info, rates[info.name], fit=fits.get(info.name)) for info in infos]
    trial = _add_tried(rows, model, task) if model else None
    if as_json:
        print_json(rows)
    elif name:
        _print_one(rows[0])
    else:
        _print_all(rows, trial)


def _refuse_ignored(name: str | None, model: str | None, task: str | None, check: str | None) -> None:
    """Refuse what would have no effect beside, or without, another option.

    Raises:
        UserError: something of that kind was typed.
    """
    from peftcli.console.options import refuse_nothing
    from peftcli.errors import UserError

    for option, text in (("NAME", name), ("--model", model), ("--task", task), ("--check", check)):
        if text is not None:
            refuse_nothing(text, option)
            if check is not None and option != "--check":
                raise UserError(
                    f"{option} {text} has no effect beside --check, which tries its method on tiny models of its own",
                    suggestion=f"leave it out: peft methods --check {check}",
                )
    if task is not None and model is None:
        raise UserError(f"--task {task} is the task for --model M, which is missing", suggestion="add --model M")


def _check(text: str, *, as_json: bool) -> None:
    """Try the contracts of a method and show what was found.

    Raises:
        UserError: one does not hold.
    """
    from dataclasses import asdict

    with large_imports():
        from peftcli.analysis.method_contracts import check_contracts
    from peftcli.console.method_text import method_params
    from peftcli.console.output import print_json
    from peftcli.errors import UserError

    findings = check_contracts(method_params("--check", text))
    if as_json:
        print_json([{**asdict(finding), "holds": finding.holds} for finding in findings])
    else:
        _print_findings(findings)
    if failed := [finding for finding in findings if not finding.holds]:
        remedy = "see `Adding a method` in CONTRIBUTING.md, and the hooks in peftcli/protocol/method.py"
        raise UserError(f"{len(failed)} of {len(findings)} contracts do not hold", suggestion=remedy)


def _print_findings(findings: list[Finding]) -> None:
    """Print a row for each contract and a column for each model, and below it what was found."""
    from peftcli.console.output import print_table, result_console, table

    models = list(dict.fromkeys(finding.model for finding in findings if finding.model))
    found = {(finding.contract, finding.model): finding for finding in findings}

    def cell(contract: str, model: str | None) -> str:
        one = found.get((contract, model))
        return "" if one is None else "not tried" if one.skipped else "holds" if one.holds else "NO"

    contracts = list(dict.fromkeys(finding.contract for finding in findings))
    rows = [[each, *(cell(each, model) or cell(each, None) for model in models)] for each in contracts]
    console = result_console()
    print_table(console, table(["contract", *models], rows))
    for finding in findings:
        if finding.problem or finding.skipped:
            place = f" ({finding.model})" if finding.model else ""
            console.print(f"{finding.contract}{place}: {finding.problem or finding.skipped}", markup=False)


def _record(info: MethodInfo, rate: DefaultRate, *, fit: Fit | None) -> dict[str, Any]:
    from peftcli.protocol.method import merges_by_default
    from peftcli.protocol.registry import registry

    schema = info.params.model_json_schema()
    parameters = [
        {
            "name": key,
            "type": type_text(field, schema.get("$defs", {})),
            "default": _default(info.params, key),
            "required": info.params.model_fields[key].is_required(),
            "description": field.get("description", ""),
        }
        for key, field in schema["properties"].items()
        if key != "name"
    ]
    record: dict[str, Any] = {
        "name": info.name,
        "family": info.family,
        "summary": info.summary,
        "paper": info.paper,
        "learning_rate": rate.value,
        "learning_rate_source": rate.reason,
        "mergeable": merges_by_default(registry.method(info.name)),
        "quantised_base": info.quantised_base,
        "artifact": info.artifact,
        "tasks": sorted(info.tasks),
        "servers": _servers(info),
        "parameters": parameters,
    }
    if fit is not None:
        record |= {"fits": not fit.reasons, "reasons": list(fit.reasons), "reach": list(fit.notes)}
    return record


def _servers(info: MethodInfo) -> str | None:
    """Return what serves a language model trained with the defaults; None for a method without complete ones."""
    from pydantic import ValidationError

    from peftcli.adapters.servers import served_by
    from peftcli.tasks.task_table import GOES_ON

    try:
        return served_by(info.params.model_validate({}), GOES_ON)
    except ValidationError:
        return None


def _default(params: type[MethodParams], key: str) -> Any:
    from peftcli.recipe.method_params import Block

    field = params.model_fields[key]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, Block) else value


def _fits(infos: list[MethodInfo], model: str, task: str | None) -> dict[str, Fit]:
    """Return, per method, whether this model can carry it with its default hyper-parameters."""
    with large_imports():
        from peftcli.analysis.fitting import fits

    return fits([info.name for info in infos], model, task)


def _add_tried(rows: list[dict[str, Any]], model: str, task: str | None) -> str:
    """Add to each row what was tried of its method on the model's type, and return a sentence on the trial."""
    from peftcli.analysis.fitting import tried_on
    from peftcli.analysis.support.tried_types import faults

    found = tried_on(model, task)
    for row in rows:
        cells = found.methods.get(row["name"])
        row["tried"] = None if cells is None else {"cells": cells, "wrong": faults(cells, found.bare)}
    return found.sentence


def _rates(infos: list[MethodInfo], model: str | None, task: str | None) -> dict[str, DefaultRate]:
    """Return the default learning rates on a model, by default the demo's: a small encoder."""
    names = [info.name for info in infos]
    if model is not None:
        with large_imports():
            from peftcli.analysis.fitting import rates_on

        return rates_on(names, model, task)

    from peftcli.protocol.rates.default_rate import default_rate
    from peftcli.protocol.rates.rate_evidence import rate_evidence
    from peftcli.protocol.registry import registry

    width = rate_evidence().demo_width
    return {name: default_rate(registry.method(name), None, "encoder", width) for name in names}


def _print_all(rows: list[dict[str, Any]], trial: str | None) -> None:
    from peftcli.console.output import print_table, result_console, table

    columns = ["method", "family", "merges", "4-bit base", "servers of the adapter", "learning rate", "paper"]
    cells = [
        [
            row["name"],
            row["family"],
            _MERGES[row["mergeable"]],
            "yes" if row["quantised_base"] else "no",
            (row["servers"] or "depends").partition(" with the adapter")[0].partition(": a complete")[0],
            f"{row['learning_rate']:g}",
            row["paper"],
        ]
        for row in rows
    ]
    if trial is not None:
        columns[1:1] = ["fits", "tried"]
        for line, row in zip(cells, rows, strict=True):
            line[1:1] = [_fit_text(row), _tried_text(row["tried"])]
    console = result_console()
    print_table(console, table(columns, cells))
    console.print("\nA merged model is served wherever its base is. `peft export RUN --to SERVER` writes for a server.")
    if trial is not None:
        console.print(trial, markup=False)
    other = "" if trial is not None else " Learning rates are for a small encoder; --model M shows those for a model."
    console.print(f"`peft methods NAME` shows one with its hyper-parameters.{other}")


def _fit_text(row: dict[str, Any]) -> str:
    """Return `yes`, with what the method does not reach, or `no` with the reasons."""
    if not row["fits"]:
        return "no: " + "; ".join(row["reasons"])
    return "yes" + "".join(f"; {note}" for note in row["reach"])


def _tried_text(tried: dict[str, Any] | None) -> str:
    """Return in a word what was tried of a method on a tiny model of the type."""
    if tried is None:
        return "no"
    return "wrong: " + ", ".join(tried["wrong"]) if tried["wrong"] else "holds"


def _print_one(row: dict[str, Any]) -> None:
    from rich.text import Text

    from peftcli.console.output import print_table, result_console, table

    console = result_console()
    console.print(Text.assemble((row["name"], "bold"), f": {row['summary']}"))
    facts = {
        "family": row["family"],
        "paper": row["paper"],
        "learning rate": f"{row['learning_rate']:g}: {row['learning_rate_source']}",
        "merges": _MERGES[row["mergeable"]],
        "4-bit base": "yes" if row["quantised_base"] else "no",
        "servers": f"{row['servers'] or 'depends on its parts'} (language models)",
    }
    if "fits" in row:
        facts |= {"fits": _fit_text(row), "tried": _tried_text(row["tried"])}
    for label, text in facts.items():
        _print_fact(console, label, text)
    if row.get("tried"):
        for what, text in row["tried"]["wrong"].items():
            console.print(f"    {what}: {text}", markup=False)
    cells = [
        [
            field["name"],
            field["type"],
            "(required)" if field["required"] else text_of(field["default"]),
            field["description"],
        ]
        for field in row["parameters"]
    ]
    console.print()
    print_table(console, table(["method.", "type", "default", "meaning"], cells), spare=(1,))


def _print_fact(console: Console, label: str, text: str) -> None:
    """Print a fact; what follows its first line on a terminal begins below the text."""
    import textwrap

    head = f"  {label:<15}"
    lines = textwrap.wrap(text, console.width - len(head), break_on_hyphens=False) if console.is_terminal else [text]
    console.print(head + ("\n" + " " * len(head)).join(lines), markup=False, soft_wrap=True)


def text_of(value: Any) -> str:
    """Return a default as it would be written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(text_of(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {text_of(item)}" for key, item in value.items()) + "}"
    return str(value)


def type_text(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a JSON schema's type and bounds for reading: `int >= 1`, `none | all`, `list of str or null`."""
    if "$ref" in field:
        return type_text(definitions.get(field["$ref"].rsplit("/", 1)[-1], {}), definitions)
    if "enum" in field:
        return " | ".join(text_of(item) for item in field["enum"])
    if "const" in field:
        return text_of(field["const"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_text(option, definitions) for option in field["anyOf"]))
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {type_text(field.get('items', {}), definitions)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"map to {type_text(inner, definitions)}" if isinstance(inner, dict) else "block"
    word = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}.get(kind, kind)
    bounds = [
        f"{sign} {field[key]}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return " ".join([word, ", ".join(bounds)]) if bounds else word
