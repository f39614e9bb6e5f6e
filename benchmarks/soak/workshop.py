"""A worker's place: states that cases start from, and what each command gives when nothing disturbs it.

All cases run in one directory, `now`, which is filled anew from a state each time, so that absolute paths are the same
in every case. States and references are made when they are first asked for.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import random
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak import faults, results
from benchmarks.soak.child import TEMPORARY, Ended, Fault, peft
from benchmarks.soak.material import DECODER, ENCODER, write_material
from benchmarks.soak.memory_disk import MemoryDisk
from benchmarks.soak.scenarios import STATES, Scenario

EVENTS, MODULES = ".events", ".modules"


@dataclass(frozen=True)
class Reference:
    """What a scenario gives undisturbed.

    Args:
        ended: its command.
        result: what it gave.
        events: its file events, in order.
        written: bytes that its files grew by.
        largest: bytes of its largest file.
    """

    ended: Ended
    result: results.Result
    events: tuple[str, ...]
    written: int
    largest: int


class Workshop:
    """One worker's directories.

    Args:
        root: an empty directory; on a file system in memory, syncing costs nothing.
        seed: of the campaign.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.now = root / "now"
        self.now.mkdir()
        self.memory = MemoryDisk.mounted(self.now)
        self.seed = seed
        self._states = root / "states"
        self._states.mkdir()
        self._references: dict[str, Reference] = {}
        self._seconds: dict[str, float] = {}
        self.log: list[object] = []

    def draw(self, case: str) -> random.Random:
        """Return the random numbers of a case."""
        return random.Random(f"{self.seed}/{case}")

    def start(self, state: str) -> Path:
        """Fill `now` with a state, and return it."""
        made = self._states / state
        if not made.exists():
            self._make(state)
        for entry in self.now.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(made, self.now, dirs_exist_ok=True)
        self.log.clear()
        return self.now

    def peft(self, *arguments: str, fault: Fault | None = None, kill_after: float | None = None) -> Ended:
        """Run a command in `now`."""
        found = [fault] if fault is not None else []
        ended = peft(self.now, arguments, *found, kill_after=kill_after)
        self.log.append(ended)
        return ended

    def reference(self, scenario: Scenario) -> Reference:
        """Return what a scenario gives undisturbed."""
        if scenario.name not in self._references:
            self.start(scenario.state)
            before = sum(_sizes(self.now))
            ended = self._measured(scenario.command)
            if fault := ended.fault() or (None if ended.code == 0 else ended.err):
                raise SystemExit(f"{scenario.name} fails undisturbed: {fault}")
            events = (self.now / EVENTS).read_text(encoding="utf-8").splitlines()
            (self.now / EVENTS).unlink()
            found = results.result(self.now, scenario.outputs, ended if scenario.prints else None)
            sizes = _sizes(self.now)
            made = Reference(ended, found, tuple(events), sum(sizes) - before, max(sizes))
            self._references[scenario.name] = made
        return self._references[scenario.name]

    def seconds(self, scenario: Scenario) -> float:
        """Return how long a scenario takes when all that it imports is imported."""
        if scenario.name not in self._seconds:
            self.reference(scenario)
            self.start(scenario.state)
            self._seconds[scenario.name] = peft(self.now, scenario.command).seconds
        return self._seconds[scenario.name]

    def _measured(self, command: tuple[str, ...]) -> Ended:
        """Run a command with its events listed, then import here what it imported: its next run finds that done."""
        imported = self.now / MODULES
        ended = peft(self.now, command, faults.modules_listed(imported), faults.listed(self.now / EVENTS))
        if imported.exists():
            _import(imported.read_text(encoding="utf-8").split())
            imported.unlink()
        return ended

    def _make(self, state: str) -> None:
        made = self._states / state
        if state == "fresh":
            warm_up()
            partial = made.with_name("fresh-partial")
            partial.mkdir()
            write_material(partial)
            _warm_transformers(partial)
            partial.rename(made)
            return
        before, commands, removed = STATES[state]
        self.start(before)
        for command, moment in commands:
            ended = peft(self.now, command, faults.kill_before(moment)) if moment else self._measured(command)
            if not (ended.killed if moment else ended.code == 0):
                raise SystemExit(f"state {state}: {ended}")
        for name in (*removed, TEMPORARY, EVENTS):
            path = self.now / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.copytree(self.now, made)


def warm_up() -> None:
    """Import all of the package, with one thread, so that a forked child has nothing to import or to lock."""
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    import torch
    import tqdm
    from transformers.utils import logging

    import peftcli

    tqdm.tqdm.monitor_interval = 0  # no thread that a fork would lose
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    names = (module.name for module in pkgutil.walk_packages(peftcli.__path__, "peftcli."))
    _import([name for name in names if not name.endswith("__main__")])


def _warm_transformers(directory: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    for name, auto in ((DECODER, AutoModelForCausalLM), (ENCODER, AutoModel)):
        auto.from_pretrained(directory / name)
        AutoTokenizer.from_pretrained(directory / name)


def _import(names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # an alias that libraries put into sys.modules
            continue
    gc.collect()
    gc.freeze()  # the children share what is never looked at again


def _sizes(directory: Path) -> list[int]:
    return [os.lstat(os.path.join(folder, file)).st_size for folder, _, files in os.walk(directory) for file in files]
