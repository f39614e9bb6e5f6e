"""Wrong values become sentences: what was received, what is allowed, how to write it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftcli.errors import Problem
from tests.recipe.conftest import GOOD

Problems = Callable[..., list[Problem]]


@pytest.mark.parametrize(
    ("override", "message", "suggestion"),
    [
        ("method.lora_dropout=1.5", "method.lora_dropout = 1.5; expected 0 <= value < 1", None),
        ("method.r=0", "method.r = 0; expected value >= 1", None),
        ("method.r=8.0", "method.r = 8.0; expected a whole number, value >= 1", "write 8"),
        ("method.r='8'", "method.r = '8'; expected a whole number, value >= 1", "write 8, without quotes"),
        ("method.r=true", "method.r = true; expected a whole number, value >= 1", None),
        ("method.r=null", "method.r = null; expected a whole number, value >= 1", "leave the key out"),
        ("method.r=[8]", "method.r = [8]; expected a whole number, value >= 1", None),
        ("training.learning_rate=1_000", "training.learning_rate = '1_000'; expected a number", "write 1000"),
        ("training.learning_rate=1,000", "training.learning_rate = '1,000'; expected a number", "write 1000"),
        ("training.learning_rate='1,5'", "training.learning_rate = '1,5'; expected a number", "write 1.5,"),
        ("data.val_set_size=10%", "data.val_set_size = '10%'; expected a number, value >= 0", "write 0.1"),
        ("method.r='1,5'", "method.r = '1,5'; expected a whole number", "write 15,"),
        ("training.learning_rate=.nan", "= .nan; expected a finite number, 0 < value <= 100 or null", None),
        ("training.learning_rate=2e4", "training.learning_rate = 20000.0; expected 0 < value <= 100", None),
        ("training.learning_rate=1e999", "training.learning_rate = .inf; expected a finite number", None),
        ("training.fp16=yes", "training.fp16 = 'yes'; expected true or false", "write true, without quotes"),
        ("training.fp16=off", "training.fp16 = 'off'; expected true or false", "write false, without quotes"),
        ("training.bf16=fast", "training.bf16 = 'fast'; expected true or false or auto", None),
        ("training.eval_strategy=false", "training.eval_strategy = false; expected one of auto, no, steps", "write no"),
        ("training.lr_scheduler_type=cosin", "training.lr_scheduler_type = 'cosin'", "did you mean cosine?"),
        ("training.optim=AdamW", "training.optim = 'AdamW'; there is no such optimizer", "did you mean adamw_torch?"),
        ("training.device=gpu", "training.device = 'gpu'; expected one of", "did you mean cuda?"),
        ("training.report_to=wandb", "expected a list of one of tensorboard, wandb, mlflow", "write [wandb]"),
        ("training.report_to=none", "training.report_to = 'none'", "leave the key out, or write []"),
        ("training.loss_type=dpo", "training.loss_type = 'dpo'", "did you mean sigmoid?"),
        ("model.dtype=bf16", "model.dtype = 'bf16'", "did you mean bfloat16?"),
        ("model.name_or_path=''", "model.name_or_path = ''; expected a value that is not empty", None),
        ("model.name_or_path=7", "model.name_or_path = 7; expected text", "'7'"),
        ("task=CAUSAL_LM", "task = 'CAUSAL_LM'", "did you mean causal_lm?"),
        ("task=ner", "task = 'ner'", "did you mean token_classification?"),
        ("data.columns={text: 3}", "data.columns.text = 3; expected text", None),
        ("data.columns=[text]", 'data.columns = ["text"]; expected a mapping of text to text', None),
        ("data.datasets=[{path: a, weight: 0}]", "data.datasets.0.weight = 0; expected value > 0", None),
        ("data.datasets=[{weight: 1}]", "data.datasets.0.path is missing; expected text", None),
        ("data.validation=3", "data.validation = 3; expected a mapping with at least path", None),
        ("method.target_modules=[attn.q, 1]", "method.target_modules.1 = 1; expected text", None),
        ("method.target_modules='(q'", "is not a regular expression", None),
        ("method.target_modules=[]", "names nothing", None),
        ("method.target_modules=all", "did you mean all-linear?", None),
        ("method.target_modules=[All_Linear]", "did you mean all-linear?", None),
        ("method.layers_to_transform=[0, -1]", "method.layers_to_transform.1 = -1; expected value >= 0", None),
        ("method.rank_pattern={attn.q: 0}", "method.rank_pattern.attn.q = 0; expected value >= 1", None),
        ("method.alpha_pattern={attn.q: -1}", "method.alpha_pattern.attn.q = -1; expected value > 0", None),
        ("data.num_proc=1000000", "data.num_proc = 1000000; expected 1 <= value <= 1024", None),
        ('model.revision="\\ud800"', "not Unicode", None),
        ('model.revision="\\0"', "control character", None),
        ("method.name=lowrank", "method.name = 'lowrank'; there is no such method", "did you mean low_rank?"),
        ("method.name=LOW-RANK", "there is no such method", "did you mean low_rank?"),
        ("method.name=5", "method.name = 5; there is no such method", "the methods are: low_rank, budget"),
        ("method=low_rank", "method = 'low_rank'; expected a mapping with the method's name", "{name: low_rank}"),
        ("method=null", "method = null; expected a mapping", None),
        ("seed=1e400", "seed = .inf", None),
        (f"seed={2**32}", "expected 0 <= value < 4294967296", None),
        ("data.max_length=99999999999999999999999", "expected 1 <= value <= 2147483647", None),
        ("training=null", "training = null; expected a mapping", "leave the key out"),
    ],
)
def test_wrong_values(problems: Problems, override: str, message: str, suggestion: str | None) -> None:
    found = problems(GOOD, override)
    assert any(message in problem.message for problem in found), [str(problem) for problem in found]
    if suggestion:
        assert any(suggestion in str(problem.suggestion) for problem in found), [str(problem) for problem in found]


def test_one_finding_for_one_value_of_a_union(problems: Problems) -> None:
    assert len(problems(GOOD, "method.target_modules=5")) == 1
    assert len(problems(GOOD, "data.validation={path: a, pth: b}")) == 1


def test_missing_blocks_and_names(problems: Problems) -> None:
    found = {problem.key: problem.message for problem in problems("seed: 1\n")}
    assert set(found) == {"model", "task", "data", "method"}
    assert "at least name_or_path" in found["model"]
    (problem,) = problems(GOOD.replace("  name: low_rank\n", "  type: low_rank\n").replace("  r: 8\n", ""))
    assert problem.key == "method.name"
    assert "`type` is called `name` here" in str(problem.suggestion)
