"""Families x tasks x LoRA: on all linears with r = 16 it overfits sixteen rows of every tiny random model."""

from __future__ import annotations

import math

import pytest

from peftcli.models.families.family_table import FAMILIES as TABLE
from peftcli.models.model_tasks import possible_tasks
from peftcli.tasks.task_table import TASKS
from tests.matrix.cases import LORA_RATE, NOT_OF_TEXT, TASK_HOLES
from tests.matrix.pairs import CLASSES, build, train
from tests.tiny import FAMILIES, VOCAB, tiny_config

TEXT_FAMILIES = [family for family in FAMILIES if family not in NOT_OF_TEXT]
ALONE = [name for name, task in TASKS.items() if task.info.rows != "preferences"]
"""Tasks whose loss is that of one row; pairs have a matrix of their own."""
PAIRS = [(family, task) for family in TEXT_FAMILIES for task in ALONE if (family, task) not in TASK_HOLES]


def test_the_matrix_covers_the_table() -> None:
    assert set(TABLE) - {"gemma3"} == set(FAMILIES)  # gemma3 is gemma3_text inside an image model
    assert {family for family, _ in PAIRS} == set(TEXT_FAMILIES)
    assert {task for _, task in PAIRS} == set(ALONE)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_task_that_is_not_possible_is_a_listed_hole(family: str) -> None:
    possible = possible_tasks(tiny_config(family))
    missing = [task for task in TASKS if task not in possible and (family, task) not in TASK_HOLES]
    assert not missing


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_lora_on_all_linears_overfits(family: str, task: str) -> None:
    pair = build(family, task, "lora", r=16, lora_alpha=32, target_modules="all-linear")
    chance = math.log(VOCAB if task.endswith("_lm") else CLASSES)
    trained = train(pair, LORA_RATE, 0.1, at_most=chance)
    assert trained.last < 0.1 * min(trained.first, chance), trained
    assert trained.moved == set(pair.attachment.trainable_parameters())
