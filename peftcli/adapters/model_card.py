"""The model card that lies beside an adapter: what it is, on which base, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from peftcli.adapters.format import AdapterMeta
from peftcli.recipe.params import MethodParams
from peftcli.tasks.task_table import TASKS


def model_card(
    params: MethodParams,
    meta: AdapterMeta,
    *,
    loads_in_hf: bool,
    metrics: Mapping[str, float] | None = None,
    note: str | None = None,
) -> str:
    """Return README.md: front matter for the hub, then prose.

    Args:
        params: the method's hyper-parameters.
        meta: the adapter's record.
        loads_in_hf: whether HF peft reads the files beside it.
        metrics: final evaluation numbers.
        note: what a user of HF peft should know.
    """
    base = str(meta.base.get("name") or "unknown")
    front: dict[str, object] = {
        "base_model": base,
        "library_name": "peft" if loads_in_hf else "peftcli",
        "tags": ["peftcli", params.name, meta.task],
    }
    task = TASKS.get(meta.task)
    if task is not None and task.info.pipeline_tag:
        front["pipeline_tag"] = task.info.pipeline_tag
    changed = params.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {params.name} adapter for {base}",
        "",
        f"A `{params.name}` adapter for the task `{meta.task}`, trained with peftcli.",
        "",
        "## Use",
        "",
        "```bash",
        "peft predict RUN --input rows.jsonl   # RUN: the run directory that holds this adapter",
        "```",
        "",
    ]
    if loads_in_hf:
        lines += ["```python", *_python(base, meta), "```", ""]
    if loads_in_hf and note:
        lines += [note, ""]
    lines += ["## Hyper-parameters", "", "| name | value |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in changed.items()]
    if meta.labels and meta.labels.get("names"):
        lines += ["", "## Labels", "", ", ".join(f"`{name}`" for name in meta.labels["names"])]
    if metrics:
        lines += ["", "## Evaluation", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    if meta.versions:
        lines += ["", "## Versions", "", ", ".join(f"{name} {value}" for name, value in meta.versions.items())]
    return "\n".join(lines) + "\n"


def _python(base: str, meta: AdapterMeta) -> list[str]:
    task = TASKS.get(meta.task)
    auto = task.info.auto_class if task is not None else "AutoModel"
    names = list((meta.labels or {}).get("names", ()))
    extra = f", num_labels={len(names)}" if names else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("{base}"{extra})',
        'model = PeftModel.from_pretrained(model, "path/to/this/directory")',
    ]
