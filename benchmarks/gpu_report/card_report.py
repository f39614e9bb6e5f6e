"""What only a card can tell, in ten minutes: run the tests marked `gpu`, and write a report to commit.

    python -m benchmarks.gpu_report                  # writes gpu_report.md and .json into benchmarks/gpu_report
    python -m benchmarks.gpu_report --wheels DIR       # no network: install what is missing from wheels in DIR first
    python -m benchmarks.gpu_report --device cpu --output DIR     # the same tests here, to try this command
    python -m benchmarks.gpu_report --list             # which tests, and how long each file may take; runs none

Speed beside HF peft is measured apart, in ten minutes, too: python benchmarks/side_by_side.py --minutes 10

Each file of tests is a process of its own with a limit of time, so that one that hangs or takes the driver down loses
no other's result: a test's outcome is written when it ends. What is not installed is named, and its tests are skipped.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = "PEFTCLI_GPU_RESULTS"  # tests/gpu/conftest.py
FILES = ("test_one_card.py", "test_several_cards.py", "test_memory_and_speed.py")
SHARES = {"test_one_card.py": 0.55, "test_several_cards.py": 0.25, "test_memory_and_speed.py": 0.2}
"""Of the whole time, what each file may take; what one leaves goes to the next."""
NEEDED = ("pytest", "torch", "transformers", "accelerate", "safetensors", "datasets", "pydantic", "yaml")
USEFUL = {
    "bitsandbytes": "4 and 8 bits",
    "flash_attn": "flash attention",
    "triton": "compiled blocks",
    "pytest_timeout": "limits",
}
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "flash_attn", "triton", "safetensors")
ONE_TEST = 90
"""Seconds that a single test may take, where pytest-timeout is there."""


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and write the report; return the exit code, 1 where a test failed or none ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=570.0, help="for all tests (570)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the tests without a card")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="directory of the report")
    parser.add_argument("--wheels", type=Path, help="directory of wheels to install what is missing from")
    parser.add_argument("--select", default="", help="pytest's -k: only these tests")
    parser.add_argument("--list", action="store_true", help="only name the tests and the time of each file")
    options = parser.parse_args(arguments)
    if options.list:
        print(listing(options.device, options.seconds, options.select))
        return 0
    missing = [name for name in (*NEEDED, *USEFUL) if importlib.util.find_spec(name) is None]
    if missing and options.wheels is not None:
        install(missing, options.wheels)
        missing = [name for name in missing if importlib.util.find_spec(name) is None]
    if lacking := [name for name in missing if name in NEEDED]:
        print(f"not installed: {', '.join(lacking)}; python -m pip install -e '.[test]'", file=sys.stderr)
        return 2
    found = about(missing)
    if options.device == "cuda" and not found["cards"]:
        print("torch finds no CUDA device; --device cpu tries the tests without one", file=sys.stderr)
        return 2
    found["tests"] = run_all(options.device, options.seconds, options.select)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu_report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.output / "gpu_report.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    outcomes = [test["outcome"] for test in found["tests"]]
    return int("failed" in outcomes or "passed" not in outcomes)


def install(names: list[str], wheels: Path) -> None:
    """Install packages from a directory; what is not there stays missing."""
    for name in names:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(wheels)]
        subprocess.run([*command, name.replace("_", "-")], check=False)
    importlib.invalidate_caches()


def about(missing: list[str]) -> dict[str, Any]:
    """Return the machine, its cards and the versions of what is installed."""
    import torch

    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[:1],
        "cuda": torch.version.cuda,
        "cards": [{"name": card.name, "memory_mb": card.total_memory // 2**20} for card in cards],
        "versions": versions,
        "missing": {name: USEFUL[name] for name in missing if name in USEFUL},
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run_all(device: str, seconds: float, select: str) -> list[dict[str, Any]]:
    """Run each file of tests within its share of the time; return a record of each test that ended."""
    end, found = time.monotonic() + seconds, []
    left = dict(SHARES)
    for file in FILES:
        limit = (end - time.monotonic()) * left[file] / sum(left.values())
        del left[file]
        found += run_file(file, device, limit, select)
    return found


def listing(device: str, seconds: float, select: str) -> str:
    """Return the names of each file's tests, below the time that they have together."""
    lines = []
    for file in FILES:
        command = [*tests_of(file, device, select), "--collect-only"]
        asked = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # -v lists otherwise
        done = subprocess.run(command, cwd=ROOT, env=asked, capture_output=True, text=True, check=False)
        names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
        lines += [f"{file}: {len(names)} tests, {seconds * SHARES[file]:.0f} s", *(f"  {name}" for name in names)]
    return "\n".join(lines)


def tests_of(file: str, device: str, select: str) -> list[str]:
    """Return the command that runs a file's tests for a device."""
    chosen = f"({select}) and {device}" if select else device
    command = [sys.executable, "-m", "pytest", f"tests/gpu/{file}", "-o", "addopts=", "--import-mode=importlib", "-q"]
    return [*command, "-p", "no:cacheprovider", "-k", chosen]


def run_file(file: str, device: str, limit: float, select: str) -> list[dict[str, Any]]:
    """Run one file's tests in a process of its own, for at most `limit` seconds."""
    command = tests_of(file, device, select)
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", str(ONE_TEST)]
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory) / "results.jsonl"
        environment = {**os.environ, RESULTS: str(lines), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
            ended = "" if done.returncode in (0, 1, 5) else f"ended with {done.returncode}: {done.stdout[-1000:]}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    if ended:
        found.append({"test": file, "outcome": "failed", "seconds": round(limit, 1), "figures": {}, "said": ended})
    return found


def page(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    cards = (
        ", ".join(f"{card['name']} ({card['memory_mb']:,} MB)" for card in found["cards"]) or "none: tried on the CPU"
    )
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    missing = ", ".join(f"{name} ({why})" for name, why in found["missing"].items()) or "nothing"
    outcomes = [test["outcome"] for test in found["tests"]]
    counted = ", ".join(
        f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in outcomes
    )
    lines = [
        "# What ran on a card",
        "",
        f"Commit {found['commit']}, {found['date']}: {counted or 'nothing ran'}.",
        "Written by `python -m benchmarks.gpu_report`.",
        "",
        f"- cards: {cards}; driver {' '.join(found['driver']) or 'unknown'}, CUDA {found['cuda'] or 'none'}",
        f"- machine: {found['machine']}",
        f"- versions: {versions}",
        f"- not installed: {missing}",
        "",
        "| test | outcome | s | peak MB | figures |",
        "|---|---|---|---|---|",
    ]
    for test in found["tests"]:
        figures = ", ".join(f"{name} {value:,}" for name, value in test["figures"].items())
        row = (test["test"], test["outcome"], test["seconds"], test.get("peak_memory_mb", ""), figures)
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |")
    for test in found["tests"]:
        if test["outcome"] == "failed":
            lines += ["", f"## {test['test']}", "", "```", test["said"], "```"]
    return "\n".join(lines) + "\n"
