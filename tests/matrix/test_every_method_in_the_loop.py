"""Methods x settings through the training loop: every trainable parameter gets a gradient within three steps, no other.

The settings are those in which a graph is cut in other places: checkpointed blocks, packed documents, bfloat16 copies
of frozen matrices, several processes, and all of them at once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftcli.protocol.registry import registry
from tests.matrix.runs import Seen, Workshop, watched_training

METHODS = registry.names()
CHECKPOINTED = {"training__gradient_checkpointing": True}
BFLOAT16 = {"training__bf16": True}
PACKED = {"data__packing": True, "training__per_device_train_batch_size": 2}
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "checkpointing": (CHECKPOINTED, ("bert", "t5")),
    "packing": (PACKED, ("qwen2", "opt")),  # documents told apart by positions, and by 4-D masks
    "bf16": (BFLOAT16, ("bert", "bart")),
    "all": ({**CHECKPOINTED, **PACKED, **BFLOAT16}, ("gpt2",)),
}
PLACES = [(setting, family) for setting, (_, families) in SETTINGS.items() for family in families]
REFUSED = {("bitfit", "t5")}  # it has no biases; tests/matrix/test_methods_on_every_family.py has all refusals
TRIALS = [(method, *place) for method in METHODS for place in PLACES if (method, place[1]) not in REFUSED]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(("method", "setting", "family"), TRIALS)
def test_what_is_trainable_gets_a_gradient_and_nothing_else(
    workshop: Workshop, method: str, setting: str, family: str
) -> None:
    watched_training(workshop.recipe("run", family, method, **SETTINGS[setting][0])).check()


def test_two_processes_move_the_same_parameters_to_the_same_values(workshop: Workshop) -> None:
    """Packed and checkpointed: half the rows in each of two processes, against all of them in one."""
    one, two = ({**CHECKPOINTED, **PACKED, "training__per_device_train_batch_size": rows} for rows in (2, 1))
    alone = {method: watched_training(workshop.recipe("one", "gpt2", method, **one)) for method in METHODS}
    recipes = [workshop.recipe(method, "gpt2", method, **two).path for method in METHODS]
    ranks = in_two_processes(workshop.home / "seen", recipes)
    for method in METHODS:
        first, second = (rank[method] for rank in ranks)
        alone[method].check()
        assert first == {**second, "losses": first["losses"]}, method  # the main process records
        Seen(set(first["trainable"]), set(first["moved"]), set(first["stray"]), first["steps"]).check()
        assert set(first["moved"]) == alone[method].moved, method
        assert first["losses"] == pytest.approx(alone[method].losses, rel=1e-4), method


def in_two_processes(output: Path, recipes: list[str]) -> list[dict[str, Any]]:
    """Return what each of two processes saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.matrix.two_processes", str(output), *recipes]
    children = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in {**shared, **own}.items()}},
        )
        for own in ({"RANK": 0, "LOCAL_RANK": 0}, {"RANK": 1, "LOCAL_RANK": 1})
    ]
    try:
        assert [child.wait(240) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return [json.loads(Path(f"{output}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
