"""One run of one side: its files are written, its command is run, its losses are read."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.common.demo import encoder_checkpoint
from benchmarks.common.process_tree import measured
from benchmarks.peers.peer_rows import rows_folder, stored_as
from benchmarks.peers.peer_table import OURS, Peer, Side, peer
from benchmarks.peers.programs.shared_settings import SYSTEM

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"
VERSIONS = "versions.json"
"""In an environment's folder once all of it is there."""
FAILED = "failed.txt"
"""In its place: why it is not."""


@dataclass(frozen=True)
class Place:
    """What all runs of a measurement share.

    Args:
        environments: the folder that `--setup` fills.
        material: where rows, copies of the checkpoint and the runs' output are.
        model: the decoder's checkpoint.
        data: GSM8K as JSON lines.
        threads: of OpenMP.
        limit: seconds of a run.
    """

    environments: Path
    material: Path
    model: Path
    data: Path
    threads: int
    limit: float = 1800.0


class NotRun(Exception):
    """A side has nothing to count; the text is the reason, for the table."""


def bin_folder(place: Place, of: Peer) -> Path:
    """Return where a peer's programs are.

    Raises:
        NotRun: its environment is not there.
    """
    if of.name == OURS:
        return Path(sys.executable).parent
    home = place.environments / of.name
    if (home / FAILED).exists():
        raise NotRun((home / FAILED).read_text(encoding="utf-8").strip())
    if not (home / VERSIONS).exists():
        raise NotRun(f"not set up: python -m benchmarks.peers --setup {place.environments} {of.name}")
    return home / "venv/bin"


def run_side(side: Side, place: Place, count: int, dtype: str) -> dict[str, Any]:
    """Train on the first `count` rows once; return seconds, CPU seconds, peak bytes and the losses of the steps.

    Raises:
        NotRun: it cannot be run here, failed, or printed no loss.
    """
    place.material.mkdir(parents=True, exist_ok=True)
    logs = place.material / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{side.name.replace('/', '-')}-{dtype}-{count}.log"
    with tempfile.TemporaryDirectory(dir=place.material, prefix="run-") as out:
        known = words(side, place, count, dtype, Path(out))
        for template, name in side.files.items():
            text = (PROGRAMS / template).read_text(encoding="utf-8")
            (Path(out) / name).write_text(Template(text).substitute(known), encoding="utf-8")
        command = [Template(part).substitute(known) for part in side.command]
        used = measured(command, variables(side, place, known), Path(out), log, place.limit)
        file = Path(out) / side.log if side.log else log
        said = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    losses = [float(value) for value in re.findall(side.losses, said)]
    if used.late:
        raise NotRun(f"not done after {place.limit:.0f} s")
    if used.code or not losses:
        raise NotRun(f"{f'exit code {used.code}' if used.code else 'no loss in its output'}: {last_line(log)}")
    return {"seconds": used.seconds, "cpu_seconds": used.cpu_seconds, "peak_bytes": used.peak_bytes, "losses": losses}


def words(side: Side, place: Place, count: int, dtype: str, out: Path) -> dict[str, str]:
    """Return what `$`-words in a side's command and files stand for."""
    programs = bin_folder(place, peer(side.peer))
    encoder = side.work != "decoder"
    rows = rows_folder(place.material, place.data, count, encoder)
    needs_copy = any("$stored" in (PROGRAMS / template).read_text(encoding="utf-8") for template in side.files)
    return {
        "python": str(programs / "python"), "bin": str(programs), "programs": str(PROGRAMS), "root": str(ROOT),
        "home": str(place.environments / side.peer), "model": str(place.model), "rows": str(rows), "out": str(out),
        "stored": str(stored_as(dtype, place.model, place.material)) if needs_copy else "",
        "encoder": str(encoder_checkpoint()) if encoder else "", "system": SYSTEM,
        "dtype": dtype, "precision": side.precision[dtype], **side.values,
    }  # fmt: skip


def variables(side: Side, place: Place, known: dict[str, str]) -> dict[str, str]:
    """Return the environment of a run: this one without what belongs to this project's own, CPU only, no network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    threads = str(place.threads)
    own = {name: Template(value).substitute(known) for name, value in side.environment.items()}
    return {
        **kept, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{known['out']}/datasets", "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "PYTHONUNBUFFERED": "1",  # an error that ends a run is the last line of its log
        **own,
    }  # fmt: skip


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, shortened for a table."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip()[:160] for line in reversed(lines) if line.strip()), "no output")


def versions(place: Place, of: Peer) -> str:
    """Return the versions of a peer's environment that the table names."""
    if of.name == OURS:
        from importlib.metadata import version

        found = {name: version(name) for name in ("torch", *of.reported)}
    else:
        found = json.loads((place.environments / of.name / VERSIONS).read_text(encoding="utf-8"))
    return ", ".join(f"{name} {found[name]}" for name in of.reported if name in found)
