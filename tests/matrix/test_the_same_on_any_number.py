"""1 x 8, 2 x 4 and 4 x 2 rows give one adapter, dropout and all; runs go on, evaluate and merge on any number.

One start of four processes serves all: they are worlds of two, one, two and four in turn (`several_worlds`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.training.run import train
from tests.matrix.noisy import Noisy
from tests.matrix.several_worlds import Job, in_worlds
from tests.recipes import Recorder, chat_rows, class_rows, write_jsonl

FAMILIES = ("gpt2", "bert", "t5", "opt", "roberta", "bart")
"""In turn for the methods: joined rows, padded ones, flattened ones, two sequences, layers that are skipped."""
REFUSED = {("bitfit", "t5")}
pytestmark = pytest.mark.timeout(900)
METHODS = registry.names()
ON_FOUR = METHODS[::4]
CHANGES: dict[str, Any] = {"training__adam_epsilon": 1e-3}
"""A gradient that is zero but for rounding must not become a step of full size."""
SAVING = {"training__max_steps": 7, "training__save_strategy": "steps", "training__save_steps": 100}


def family_of(method: str) -> str:
    place = METHODS.index(method)
    families = [family for family in FAMILIES if (method, family) not in REFUSED]
    return families[place % len(families)]


@dataclass
class Found:
    """What one process and several gave.

    Args:
        home: where it all lies.
        alone: losses by run of one process.
        several: what the main process gave, by world and job.
    """

    workshop: Noisy
    alone: dict[str, list[float]]
    several: list[list[Any]]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        folder = self.workshop.home / "runs" / name
        (file,) = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
        return load_file(file)


NEFTUNE = {"training__neftune_noise_alpha": 5.0}
USED = {"data__val_set_size": 5}
SAMPLES = {"training__eval_generate": 2}


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What was trained: by the first of pytest's workers that needs it, for all of them."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "worlds"
    results = place / "found.json"
    with FileLock(f"{place}.lock"):
        workshop = Noisy(place)
        if not results.exists():
            place.mkdir()
            results.write_text(json.dumps(trained(workshop)), encoding="utf-8")
    alone, several = json.loads(results.read_text(encoding="utf-8"))
    return Found(workshop, alone, several)


def trained(workshop: Noisy) -> tuple[dict[str, list[float]], list[list[Any]]]:
    """Train everything; return the losses of one process by run, and what the others gave by world and job."""
    alone: dict[str, list[float]] = {}

    def here(loaded: LoadedRecipe) -> None:
        recorder = Recorder()
        train(loaded, reporter=recorder)
        alone[Path(loaded.path).stem] = recorder.losses

    def training(name: str, family: str, method: str, size: int, **changes: Any) -> Job:
        return {
            "kind": "train",
            "recipe": str(workshop.noisy(f"{name}-{size}", family, method, size, **CHANGES, **changes).path),
        }

    worlds: list[tuple[int, list[Job]]] = [(2, []), (1, []), (2, []), (4, [])]
    for method in METHODS:
        here(workshop.noisy(method, family_of(method), method, **CHANGES))
        for place, size in ((0, 2), (3, 4)):
            if size == 2 or method in ON_FOUR:
                worlds[place][1].append(training(method, family_of(method), method, size))
    here(workshop.noisy("noise", "t5", "lora", **CHANGES, **NEFTUNE))
    worlds[0][1].append(training("noise", "t5", "lora", 2, **NEFTUNE))
    here(workshop.noisy("legs", "gpt2", "lora", **CHANGES, **SAVING))
    same = {"output_dir": str(workshop.home / "runs" / "leg")}
    for place, (size, at) in enumerate([(2, 1), (1, 3), (2, 4), (4, None)]):
        divided = {"distributed__strategy": "fsdp"} if place == 2 else {}
        leg = workshop.noisy(f"leg-{place}", "gpt2", "lora", size, **CHANGES, **SAVING, **same, **divided)
        worlds[place][1].append({"kind": "train", "recipe": str(leg.path), "stop_at": at, "resume": place > 0})
    wrong = workshop.noisy("wrong", "gpt2", "lora", 1, **CHANGES, **SAVING, **same)
    worlds[2][1].insert(0, {"kind": "train", "recipe": str(wrong.path), "resume": True})
    for name, family in (("text", "gpt2"), ("classes", "bert")):
        here(workshop.noisy(name, family, "lora", **USED, **(SAMPLES if name == "text" else {})))
        run = str(workshop.home / "runs" / name)
        rows = write_jsonl(workshop.home / f"{name}-new.jsonl", chat_rows(7) if name == "text" else class_rows(7))
        few = write_jsonl(
            workshop.home / f"{name}-few.jsonl", chat_rows(3)[:1] if name == "text" else class_rows(3)[:1]
        )
        worlds[3][1].extend(
            [
                {"kind": "evaluate", "run": run},
                {"kind": "evaluate", "run": run, "data": str(few)},
                {"kind": "predict", "run": run, "data": str(rows)},
                {"kind": "predict", "run": run, "data": str(few)},
                {"kind": "merge", "run": run, "output": f"{run}-merged"},
            ]
        )
    return alone, in_worlds(workshop.home, worlds)


def assert_same(found: Found, name: str, other: str, losses: list[float]) -> None:
    assert losses == pytest.approx(found.alone[name], rel=2e-6), (name, other)
    ours, theirs = found.tensors(name), found.tensors(other)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(
            theirs[key], tensor, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: f"{other} {key}: {text}"
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_on_two_and_four_processes(found: Found, method: str) -> None:
    assert len(found.alone[method]) == 3
    assert_same(found, method, f"{method}-2", found.several[0][METHODS.index(method)])
    if method in ON_FOUR:
        assert_same(found, method, f"{method}-4", found.several[3][ON_FOUR.index(method)])


def test_neftune_draws_its_noise_by_rows(found: Found) -> None:
    assert_same(found, "noise", "noise-2", found.several[0][len(METHODS)])


def test_a_run_goes_on_on_two_then_one_then_two_then_four(found: Found) -> None:
    legs = [world[-1] if place < 3 else world[len(ON_FOUR)] for place, world in enumerate(found.several)]
    assert [len(leg) for leg in legs] == [2, 1, 2, 2]  # two processes agree on a stop one step later
    assert_same(found, "legs", "leg", [loss for leg in legs for loss in leg])


def test_another_number_of_rows_in_a_step_is_refused_with_what_to_set(found: Found) -> None:
    message = found.several[2][0]
    assert "a step of this run has 8 rows; here it would have 16" in message
    assert "add training.per_device_train_batch_size=4" in message


@pytest.mark.parametrize(("place", "name"), [(0, "text"), (1, "classes")])
def test_four_processes_use_a_run_as_one_does(found: Found, place: int, name: str) -> None:
    """Five validation rows, seven to predict, and fewer than there are processes."""
    start = len(ON_FOUR) + 1 + 5 * place
    evaluated, of_few, predicted, few, merged = found.several[3][start : start + 5]
    run = found.workshop.home / "runs" / name
    alone = evaluate_run(run)
    assert {k: v for k, v in evaluated.items() if k != "eval_runtime"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "eval_runtime"}, rel=1e-6
    )
    assert of_few["eval_rows"] == 1
    for lines, file in ((predicted, f"{name}-new"), (few, f"{name}-few")):
        expected = list(predict_run(run, str(found.workshop.home / f"{file}.jsonl")))
        assert [line["prediction"] for line in lines] == [line["prediction"] for line in expected]
    report = merge_run(run, found.workshop.home / f"{name}-here").as_dict()
    assert merged["verified"] and merged["agreement"] == report["agreement"]
    assert merged["max_abs_diff"] == pytest.approx(report["max_abs_diff"], rel=0.1)
    there = json.loads((Path(f"{run}-merged") / "config.json").read_text())
    assert there["model_type"] == found.workshop.model({"text": "gpt2", "classes": "bert"}[name]).name
