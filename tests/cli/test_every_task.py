"""The whole way of each task through the command line: tiny models learn it, predict what they learnt, and merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peftcli.recipe.load_recipe import LoadedRecipe
from tests.command_line import Cli
from tests.recipes import write_jsonl

WORDS = ("cat", "dog", "mat", "house")


@dataclass(frozen=True)
class Case:
    """A task that a tiny model learns in seconds.

    Args:
        rows: to learn, and to predict without what is learnt.
        answers: what a row is learnt by, left out of the rows to predict; the first is compared with the prediction.
        wide: settings of the model's config: with the usual small weights a frozen head cannot tell rows apart.
    """

    family: str
    task: str
    rows: list[dict[str, Any]]
    answers: tuple[str, ...]
    wide: dict[str, Any] = field(default_factory=lambda: {"initializer_range": 0.4})


COMPLETIONS = [{"prompt": f"the {word}", "completion": f" sat on the {word}"} for word in WORDS]
CASES = {
    "causal_lm-llama": Case("llama", "causal_lm", COMPLETIONS, ("completion",)),
    "causal_lm-gpt2": Case("gpt2", "causal_lm", COMPLETIONS, ("completion",)),
    "seq2seq_lm-t5": Case(
        "t5",
        "seq2seq_lm",
        [{"input": f"the {word}", "target": f"{word} on the mat"} for word in WORDS],
        ("target",),
        {"initializer_factor": 2.0},
    ),
    "sequence_classification-bert": Case(
        "bert",
        "sequence_classification",
        [{"text": f"the {word} was", "label": word.upper()} for word in WORDS],
        ("label",),
    ),
    "token_classification-bert": Case(
        "bert",
        "token_classification",
        [{"tokens": ["the", word, "was"], "tags": ["O", f"B-{word.upper()}", "O"]} for word in WORDS],
        ("tags",),
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_train_evaluate_predict_and_merge(
    cli: Cli, recipe: Callable[..., LoadedRecipe], models: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    loaded = recipe(
        case.family,
        case.task,
        case.rows * 4,
        model=models(case.family, case.task, **case.wide),
        data__val_set_size=4,
        method__r=8,
        training__learning_rate=0.01,  # 0.02 did not settle for T5 on every processor
        training__max_steps=100,
        training__per_device_train_batch_size=12,
        training__max_new_tokens=16,
    )
    run = Path(str(loaded.recipe.output_dir))
    done = cli("train", loaded.path, "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    trained = done.json
    assert trained["eval"]["eval_loss"] < 0.2 < trained["eval_before"]["eval_loss"]
    assert ("eval_perplexity" in trained["eval"]) == case.task.endswith("_lm")

    again = cli("eval", run, "--json")
    assert again.code == 0, again.err
    assert again.json["eval_loss"] == pytest.approx(trained["eval"]["eval_loss"], rel=1e-5)

    questions = [{key: value for key, value in row.items() if key not in case.answers} for row in case.rows]
    predicted = cli("predict", run, "--input", write_jsonl(tmp_path / "new.jsonl", questions))
    assert predicted.code == 0, predicted.err
    answers = [json.loads(line)["prediction"] for line in predicted.out.splitlines()]
    expected = [row[case.answers[0]] for row in case.rows]
    assert [answer.strip() if isinstance(answer, str) else answer for answer in answers] == [
        answer.strip() if isinstance(answer, str) else answer for answer in expected
    ]

    merged = cli("merge", run, "-o", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json["verified"] is True and merged.json["agreement"] == 1.0
