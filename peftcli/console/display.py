"""What a person sees of a run: a header, progress, evaluations, and a closing table with the next commands to type.

Progress goes to standard error: a live bar on a terminal, plain lines elsewhere, nothing with `--quiet`. The closing
table is the result and goes to standard output.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from peftcli.console.output import print_table, print_whole, result_console, table
from peftcli.console.terminal import safe_console
from peftcli.progress import Stage, watched_by
from peftcli.record.shown_numbers import byte_size, count, duration, metric

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.record.callback import StepRecord
    from peftcli.record.run_summary import Summary


PREPARING_EVERY = 10.0  # seconds between lines of a log while rows are tokenised


class View(Protocol):
    """Where progress is drawn."""

    def waiting(self, text: str) -> None:
        """Draw what is being waited for, where the screen can be redrawn."""
        ...

    def header(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Draw the facts of the run below a title."""
        ...

    def line(self, text: str) -> None:
        """Draw one line that stays."""
        ...

    def preparing(self, rows: int) -> None:
        """Draw how many rows are tokenised so far."""
        ...

    def step(self, record: StepRecord) -> None:
        """Draw that a step is done."""
        ...

    def show(self, stage: Stage | None) -> None:
        """Draw a stage of what takes long, where the screen can be redrawn; None where it ended."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found."""
        ...


class RunDisplay:
    """The reporter of the command line; a context manager, so that an error leaves the terminal in order.

    Args:
        command: what was typed, shown as the header's title.
        quiet: draw no progress.
        results: print the closing table; off when the command prints JSON.
    """

    def __init__(self, *, command: str, quiet: bool = False, results: bool = True) -> None:
        self._command = command
        self._results = results
        self._view: View = _Nothing() if quiet else choose_view()
        self._watched = ExitStack()

    def __enter__(self) -> RunDisplay:
        self._view.waiting("loading libraries, model and data")
        self._watched.enter_context(watched_by(self._view))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watched.close()
        self._view.close()

    def header(self, facts: dict[str, Any]) -> None:
        """Show what was decided before the first step."""
        self._view.header(self._command, header_rows(facts))

    def note(self, text: str) -> None:
        """Show one sentence that the user should read."""
        self._view.line(f"note: {text}")

    def preparing(self, rows: int) -> None:
        """Show how many rows are tokenised so far."""
        self._view.preparing(rows)

    def step(self, record: StepRecord) -> None:
        """Show that a step is done."""
        self._view.step(record)

    def evaluation(self, metrics: dict[str, Any]) -> None:
        """Show metrics."""
        self._view.line(evaluation_line(metrics))

    def finished(self, summary: Summary) -> None:
        """Show how the run ended."""
        self._view.close()
        if self._results:
            print_summary(summary, result_console())


class PlainView:
    """Lines for a log file: every line stands alone, only logged steps are shown."""

    def __init__(self) -> None:
        self._prepared_at: float | None = None

    def waiting(self, text: str) -> None:
        """Do nothing: a log needs no sign of life."""

    def preparing(self, rows: int) -> None:
        """Print the number of rows now and then."""
        now = time.monotonic()
        if self._prepared_at is None:
            self._prepared_at = now
        elif now - self._prepared_at >= PREPARING_EVERY:
            self._prepared_at = now
            self.line(f"preparing data: {count(rows)} rows")

    def header(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Print the facts, one a line."""
        self.line(title)
        for label, text in rows:
            self.line(f"  {label + ':':<15}{text}")

    def line(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)

    def step(self, record: StepRecord) -> None:
        """Print a logged step."""
        if record.logged:
            self.line(f"step {record.step}/{record.total_steps}  {step_text(record)}")

    def show(self, stage: Stage | None) -> None:
        """Do nothing: a log needs no sign of life."""

    def close(self) -> None:
        """Do nothing; lines need no end."""


class _Nothing:
    """`--quiet`."""

    def waiting(self, text: str) -> None: ...

    def header(self, title: str, rows: list[tuple[str, str]]) -> None: ...

    def line(self, text: str) -> None: ...

    def preparing(self, rows: int) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def show(self, stage: Stage | None) -> None: ...

    def close(self) -> None: ...


def choose_view() -> View:
    """Return a live view if standard error is a terminal that can redraw, else plain lines."""
    console = safe_console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        from peftcli.console.live import LiveView

        return LiveView(console)
    return PlainView()


def header_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) in the order to show; facts that belong together share a line."""
    rows: list[tuple[str, str]] = []
    merged = {"total", "percent", "epochs", "batch", "warmup_steps", "learning_rate", "precision"}
    for key, value in facts.items():
        if key in merged or value is None:
            continue
        if key == "trainable":
            rows.append(("trainable", trainable_text(facts)))
        elif key == "steps":
            rows.append(("steps", _steps_text(facts)))
        elif key == "device":
            rows.append(("device", ", ".join(str(facts[part]) for part in ("device", "precision") if facts.get(part))))
        elif key == "learning_rate_source":
            rows.append(("learning rate", f"{facts['learning_rate']:g}: {value}"))
        elif key == "output_dir":
            rows.append(("output", str(value)))
        else:
            rows.append((key.replace("_", " "), _fact_text(value)))
    return rows


def trainable_text(facts: Mapping[str, Any]) -> str:
    """Return `149,381 of 22,713,221 (0.66%)`."""
    trainable, total = facts["trainable"], facts["total"]
    return f"{count(trainable)} of {count(total)} parameters ({100 * trainable / max(total, 1):.2f}%)"


def _steps_text(facts: Mapping[str, Any]) -> str:
    parts = [count(facts["steps"])]
    if facts.get("epochs") is not None:
        parts.append(f"{facts['epochs']:g} epoch{'' if facts['epochs'] == 1 else 's'}")
    if facts.get("batch") is not None:
        parts.append(f"batch {facts['batch']}")
    if facts.get("warmup_steps"):
        parts.append(f"{facts['warmup_steps']} of warm-up")
    return ", ".join(parts)


def _fact_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_fact_text(item)} {key}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact_text(item) for item in value)
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def step_text(record: StepRecord) -> str:
    """Return the numbers of a logged step on one line."""
    parts = [f"loss {record.loss:.4f}" if record.loss is not None else "", f"lr {record.learning_rate:.2e}"]
    if record.tokens_per_second is not None:
        parts.append(f"{record.tokens_per_second:,.0f} tokens/s")
    if record.seconds_left is not None:
        parts.append(f"{duration(record.seconds_left)} left")
    return "  ".join(part for part in parts if part)


def evaluation_line(metrics: Mapping[str, Any]) -> str:
    """Return one evaluation as a line; `best` marks the best so far."""
    step = metrics.get("step") or 0
    head = f"evaluation at step {step}" if step else "evaluation before training"
    values = [f"{name} {metric(name, value)}" for name, value in metrics.items() if _shown(name, value)]
    return f"{head}: {'  '.join(values)}{'  (best so far)' if step and metrics.get('best') else ''}"


def _shown(name: str, value: Any) -> bool:
    return (
        name.startswith("eval_")
        and isinstance(value, (int, float))
        and not name.endswith(("_runtime", "_per_second", "_tokens", "_rows"))
    )


def print_summary(summary: Summary, console: Console) -> None:
    """Print the closing table: before and after, where the result is, and what to type next."""
    if console.is_terminal:
        console.print()  # apart from the progress above
    if summary.eval:
        columns = {"before": summary.eval_before, "after": summary.eval}
        known = {heading: metrics for heading, metrics in columns.items() if metrics}
        rows = [
            [name, *(metric(name, metrics[name]) if name in metrics else "" for metrics in known.values())]
            for name, value in summary.eval.items()
            if _shown(name, value)
        ]
        print_table(console, table(["validation", *known], rows, numeric=range(1, 1 + len(known))))
        console.print()
    elif summary.train_loss is not None:
        console.print(f"training loss   {summary.train_loss:.4f}", highlight=False)
    place = Path(summary.output_dir) / summary.artifact
    size = sum(file.stat().st_size for file in place.glob("*.safetensors")) if place.is_dir() else 0
    console.print(f"{summary.artifact:<10} {place}{f' ({byte_size(size)})' if size else ''}", markup=False)
    console.print(f"{'trained':<10} {trainable_text({'trainable': summary.trainable, 'total': summary.total})}")
    console.print(
        f"{'took':<10} {duration(summary.train_runtime)} for {count(summary.steps)} steps, "
        f"{summary.tokens_per_second:,.0f} tokens/s, peak memory {byte_size(summary.peak_memory_bytes)}"
    )
    if summary.processes is not None and summary.base_bytes_per_process is not None:
        held = f"{byte_size(summary.base_bytes_per_process)} of the base in each ({summary.strategy})"
        console.print(f"{'processes':<10} {summary.processes}, {held}")
    console.print("\nnext")
    for command in next_commands(summary):
        print_whole(console, f"  {command}")


def next_commands(summary: Summary) -> list[str]:
    """Return the commands that make sense on this run."""
    run = shlex.quote(summary.output_dir)
    commands = [f"peft predict {run} --input FILE"]
    if _chats(summary):
        commands.insert(0, f"peft chat {run}")
    if summary.eval:
        commands.insert(0, f"peft eval {run}")
    if summary.artifact == "adapter" and _merges(summary):
        commands.append(f"peft merge {run} -o {shlex.quote(f'{summary.output_dir}-merged')}")
    return [*commands, f"peft report {run}"]


def _chats(summary: Summary) -> bool:
    """Return whether the run goes on with a conversation, as `peft chat` needs it."""
    from peftcli.tasks.task_table import TASKS

    task = TASKS.get(summary.task)
    return task is not None and task.info.generates and task.info.reads == "text"


def _merges(summary: Summary) -> bool:
    """Return whether the run's adapter folds into its base; combinations depend on their parts and gates."""
    from peftcli.names import NAMES
    from peftcli.protocol.composite_method import CompositeMethod
    from peftcli.protocol.registry import registry
    from peftcli.recipe.stored_recipe import load_stored_recipe

    method = registry.method(summary.method)
    if not isinstance(method, CompositeMethod):
        return method.info.unmergeable is None
    recipe = load_stored_recipe(Path(summary.output_dir, "recipe.yaml"), NAMES).recipe
    return registry.method(summary.method).why_not_mergeable(recipe.method) is None
