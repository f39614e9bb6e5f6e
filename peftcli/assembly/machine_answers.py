"""What a measurement by the clock found on this machine: kept, so that the next run does not measure again.

A measurement depends on the load of the moment; a run must not. The first answer to a question is written below the
user's cache directory and holds for every later run, whichever process comes first.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from peftcli.atomic import PARTIAL
from peftcli.locations import CACHE_VARIABLE, user_cache
from peftcli.recipe.schema import Recipe


@dataclass(frozen=True)
class Answer:
    """Whether something is faster on this machine, and by what ratio."""

    faster: bool
    ratio: float


def answers_directory() -> Path | None:
    """Return where answers are kept: in $PEFTCLI_CACHE or the user's cache directory; None where there is none."""
    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(given) if given else user_cache()
    return None if cache is None else cache / "machine"


def machine(device: torch.device) -> dict[str, str]:
    """Return what a measurement depends on besides the load: the processor or GPU, and the build of torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {"device": device.type, "name": name, "torch": torch.__version__}


def about_steps(recipe: Recipe) -> dict[str, Any]:
    """Return what the speed of a recipe's steps depends on besides machine, shape of the model and rows."""
    spec = recipe.training
    loss = {key: getattr(spec, key) for key in ("loss_type", "reference") if getattr(spec, key) is not None}
    return {
        **loss,  # a pass more: of mismatched answers, or of a live reference
        "task": recipe.task,
        "method": recipe.method.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json", exclude={"name_or_path", "revision"}),
        "rows": spec.per_device_train_batch_size,
        "length": recipe.data.max_length if recipe.data is not None else None,
        "bf16": spec.bf16,
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "cpu")


def kept_answer(question: dict[str, str]) -> Answer | None:
    """Return the answer that is kept, None without one or where it cannot be read."""
    file = _file(question)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    answer = found.get("answer") if isinstance(found, dict) else None
    faster, ratio = (answer.get("faster"), answer.get("ratio")) if isinstance(answer, dict) else (None, None)
    return Answer(faster, ratio) if isinstance(faster, bool) and isinstance(ratio, float) else None


def keep_answer(question: dict[str, str], answer: Answer) -> Answer:
    """Keep an answer and return the one that holds: another process's, if that was first.

    Where nothing can be written, the answer holds for this run alone.
    """
    file = _file(question)
    if file is None:
        return answer
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.parent / f"{PARTIAL}{os.getpid()}-{file.name}"
        partial.write_text(json.dumps({"question": question, "answer": asdict(answer)}) + "\n", encoding="utf-8")
        try:
            if kept_answer(question) is None:  # none, or one that cannot be read
                file.unlink(missing_ok=True)
            os.link(partial, file)  # fails if another process was first
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError:
        return answer
    return kept_answer(question) or answer


def _file(question: dict[str, str]) -> Path | None:
    directory = answers_directory()
    key = hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()
    return None if directory is None else directory / f"{key}.json"
