"""report.html of a run: what it gave, its curves, samples, counts, data, settings and versions."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from peftcli.data.store.data_report import DataReport, counted, template_in_words
from peftcli.record.listing.run_entry import RunEntry
from peftcli.record.run_summary import Summary
from peftcli.record.shown_numbers import byte_size, count, duration, metric
from peftcli.shown_text import escape
from peftcli.studies.report.run_pages.run_figures import NO_METRICS, number, run_figures
from peftcli.studies.report.run_pages.run_files import RunFiles
from peftcli.studies.report.shell.html_page import html_page
from peftcli.studies.report.shell.html_parts import bullets, folded, pairs, plain_table

_SAMPLES = 12


def run_report(files: RunFiles) -> str:
    """Return the page of a run; of one that has not ended, what is known so far."""
    figures = run_figures(files)
    sections = [
        f"<h1>{escape(files.name)}</h1>",
        _facts(files),
        pairs(_tiles(files), kind="tiles"),
        bullets("What to know", files.summary.notes if files.summary is not None else _why(files.entry)),
        "<h2>Curves</h2>" if figures else "",
        *(figure.html() for figure in figures),
        _samples(files),
        _counts(files.summary),
        _data(files),
        _settings(files),
        _surroundings(files.summary),
    ]
    made_from = "recipe.yaml, metrics.jsonl and samples.jsonl"
    if files.summary is not None:
        made_from = "recipe.yaml, summary.json, metrics.jsonl and samples.jsonl"
    return html_page(files.name, [part for part in sections if part], kicker="peft train", made_from=made_from)


def _facts(files: RunFiles) -> str:
    summary = files.summary
    times = [line["time"] for line in files.lines if number(line.get("time"))]
    facts = [
        files.setting("method.name"),
        (files.setting("task") or (summary.task if summary is not None else "")).replace("_", " "),
        files.setting("model.name_or_path"),
        (summary.status if summary is not None else files.entry.state).replace("_", " "),
        _day(times[-1]) if times else "",
    ]
    return f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)}</p>'


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
    except (OverflowError, OSError, ValueError):  # the file may have been edited
        return ""


def _tiles(files: RunFiles) -> list[tuple[str, str]]:
    """Return what matters most: the metrics with those before training, and what it took."""
    summary = files.summary
    if summary is None:
        steps = [line for line in files.lines if "loss" in line]
        last = [("last loss", metric("loss", steps[-1]["loss"]))] if steps else []
        return [("state", _state(files.entry)), ("last step", _last_step(files)), *last]
    before = summary.eval_before or {}
    tiles = []
    for key, value in (summary.eval or {}).items():
        if key not in NO_METRICS and number(value):
            was = f"\nbefore: {metric(key, before[key])}" if number(before.get(key)) else ""
            tiles.append((key.removeprefix("eval_").replace("_", " "), metric(key, value) + was))
    if summary.train_loss is not None:
        tiles.append(("training loss", metric("loss", summary.train_loss)))
    tiles += [
        ("trained", f"{count(summary.trainable)}\n{_share(summary)} of {count(summary.total)}"),
        ("time", f"{duration(summary.train_runtime)}\n{summary.tokens_per_second:,.0f} tokens/s"),
        ("peak memory", f"{byte_size(summary.peak_memory_bytes)}\n{summary.device}"),
        ("steps", f"{count(summary.steps)}\n{summary.epochs:.3g} epochs"),
    ]
    return tiles


def _state(entry: RunEntry) -> str:
    return f"{entry.state}\ncontinue it with --resume" if entry.state in ("interrupted", "failed") else entry.state


def _why(entry: RunEntry) -> list[str]:
    """Return why a run has not ended, where that is known."""
    return [] if entry.reason is None else [f"{entry.state}: {entry.reason}"]


def _last_step(files: RunFiles) -> str:
    of = f"\nof {count(files.entry.steps)}" if files.entry.steps else ""
    return f"{count(files.lines[-1]['step'])}{of}" if files.lines else "none"


def _share(summary: Summary) -> str:
    return f"{100 * summary.trainable / max(1, summary.total):.3g}%"


def _samples(files: RunFiles) -> str:
    """Return generated text of the last evaluation that has some, beside what the first one had for the same row."""
    if not files.samples:
        return ""
    last = files.samples[-1]["step"]
    first = {sample.get("row"): sample for sample in reversed(files.samples) if sample["step"] != last}
    shown = [sample for sample in files.samples if sample["step"] == last][:_SAMPLES]
    parts = [f"<h2>Samples</h2><p>Text that was generated for held-out rows at step {last}.</p>"]
    for sample in shown:
        early = first.get(sample.get("row"))
        texts = [("prompt", sample.get("prompt")), ("expected", sample.get("reference"))]
        texts += [(f"at step {early['step']}", early.get("prediction"))] if early is not None else []
        texts += [(f"at step {last}", sample.get("prediction"))]
        blocks = "".join(
            f'<h4>{escape(name)}</h4><pre class="wrap">{escape(str(text))}</pre>'
            for name, text in texts
            if text is not None
        )
        parts.append(f'<div class="sample"><h3>Row {escape(str(sample.get("row", "")))}</h3>{blocks}</div>')
    return "".join(parts)


def _counts(summary: Summary | None) -> str:
    if summary is None:
        return ""
    items = [
        ("trained", f"{count(summary.trainable)} numbers, {_share(summary)} of all"),
        ("saved", f"{count(summary.saved)} numbers in {summary.artifact}/"),
        ("base and added", f"{count(summary.total)} numbers"),
        ("tokens", f"{count(summary.train_tokens)} read, {count(summary.supervised_tokens)} learnt"),
        ("steps", f"{count(summary.steps)} of {count(summary.total_steps)}"),
        ("best step", count(summary.best_step) if summary.best_step is not None else ""),
    ]
    return f"<h2>Counts</h2>{pairs(items)}"


def _data(files: RunFiles) -> str:
    report = files.data
    if report is None:
        return ""
    items = [
        ("training rows", count(report.train_rows)),
        *(
            (f"held out: {name}" if name else "held out", f"{count(rows)} rows")
            for name, rows in report.validation_rows.items()
        ),
        ("packed into", f"{count(report.packed_rows)} rows" if report.packed_rows is not None else ""),
        ("tokens", f"{count(report.tokens)}, {count(report.supervised_tokens)} learnt" if report.tokens else ""),
        ("longest row", f"{count(report.longest)} tokens" if report.longest else ""),
        ("format", ", ".join(report.formats) or report.format),
        ("chat template", template_in_words(report.template)),
        *((f"not used: {name}", f"in {count(rows)} rows") for name, rows in report.unused.items()),
    ]
    notes = [*report.evidence, *report.notes]
    found = "".join(f"<li>{escape(line)}</li>" for line in notes)
    listed = f"<h3>How the rows were recognised</h3><ul>{found}</ul>" if notes else ""
    return f"<h2>Data</h2>{pairs(items)}{listed}{_fates(report)}{_skipped(files.skipped)}"


def _fates(report: DataReport) -> str:
    """Return what became of the rows of each set, folded away."""
    if not report.sets:
        return ""
    rows = [[name, *(count(value) for value in counts.values())] for name, counts in report.sets.items()]
    columns = ["set", *(counted(name, split=report.split) for name in asdict(report.counts))]
    return folded("What became of the rows", "What became of the rows", plain_table("By set of rows", columns, rows))


def _skipped(skipped: list[dict[str, Any]]) -> str:
    if not skipped:
        return ""
    rows = [[f"{bad.get('source')}:{bad.get('row')}", str(bad.get("message", ""))] for bad in skipped]
    table = plain_table(f"The first {len(rows)} broken rows", ["row", "what is wrong"], rows, texts=2)
    return folded("Broken rows that were passed over", "Broken rows", table)


def _settings(files: RunFiles) -> str:
    keys = (
        "method.name", "training.learning_rate", "training.num_train_epochs", "training.max_steps",
        "training.lr_scheduler_type", "data.path", "data.max_length", "seed",
    )  # fmt: skip
    items = [(key, files.setting(key)) for key in keys]
    text = f'<pre class="wrap">{escape(files.recipe)}</pre>'
    return (
        f"<h2>Settings</h2>{pairs(items)}"
        f"<details><summary>The whole recipe, every default filled in</summary>{text}</details>"
    )


def _surroundings(summary: Summary | None) -> str:
    if summary is None:
        return ""
    items = [
        ("device", summary.device),
        ("precision", summary.precision),
        ("base weights", summary.weights_dtype),
        ("processes", f"{summary.processes} ({summary.strategy})" if summary.processes is not None else ""),
        *((name, str(version)) for name, version in summary.versions.items()),
    ]
    return f"<h2>Versions and machine</h2>{pairs(items)}"
