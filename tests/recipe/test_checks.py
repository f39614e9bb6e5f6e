"""Recipes that are well formed and wrong in meaning."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftcli.errors import Problem
from tests.recipe.conftest import GOOD, Load

Problems = Callable[..., list[Problem]]

CLASSIFY = ("task=sequence_classification",)
TAGS = ("task=token_classification",)

WRONG: list[tuple[tuple[str, ...], str, str]] = [
    (("model.load_in_4bit=true", "model.load_in_8bit=true"), "model.load_in_8bit", "both true"),
    (("model.num_labels=3",), "model.num_labels", "does nothing for the task causal_lm"),
    ((*TAGS, "model.problem_type=regression"), "model.problem_type", "does nothing for the task token_classification"),
    ((*CLASSIFY, "model.problem_type=single_label", "model.num_labels=1"), "model.num_labels", "nothing to learn"),
    (("model.attn_implementation=flash_attention_2", "training.device=cpu"), "model.attn_implementation", "needs CUDA"),
    (
        ("model.attn_implementation=flash_attention_2", "model.dtype=float32"),
        "model.attn_implementation",
        "float16 and bfloat16 only",
    ),
    (("model.new_special_tokens=[a, a]",), "model.new_special_tokens", "repeated"),
    (("model.bnb_4bit_quant_type=fp4",), "model.bnb_4bit_quant_type", "does nothing without model.load_in_4bit"),
    (("data.datasets=[{path: a}]",), "data.datasets", "both given"),
    (("data.path=null",), "data.path", "missing"),
    (("data.path=null", "data.datasets=[]"), "data.path", "missing"),
    (("data.path=' '",), "data.path", "empty"),
    (("data.val_set_size=20.5",), "data.val_set_size", "a share below 1, or a whole number of rows"),
    ((*CLASSIFY, "data.packing=true"), "data.packing", "is for causal_lm"),
    (("data.streaming=true",), "data.streaming", "needs training.max_steps"),
    (("data.format=classification",), "data.format", "does not serve the task causal_lm"),
    ((*CLASSIFY, "data.format=messages"), "data.format", "does not serve the task sequence_classification"),
    (("data.validation={path: a, format: folders}",), "data.validation.format", "does not serve"),
    ((*CLASSIFY, "data.train_on=all"), "data.train_on", "does nothing"),
    ((*CLASSIFY, "data.chat_template=chatml"), "data.chat_template", "does nothing"),
    (("data.stratify=true",), "data.stratify", "needs classes"),
    ((*CLASSIFY, "data.stratify=true", "model.problem_type=regression"), "data.stratify", "needs single labels"),
    ((*CLASSIFY, "data.overflow=split"), "data.overflow", "one label to several rows"),
    (("task=seq2seq_lm", "data.overflow=split"), "data.overflow", "part an input from its target"),
    (("data.validation=[]",), "data.validation", "empty list"),
    (("data.validation=[{path: a, name: x}, {path: b}]",), "data.validation.1.name", "need a name each"),
    (("data.validation=[{path: a, name: x}, {path: b, name: x}]",), "data.validation.1.name", "two validation sets"),
    (("data.validation=[{path: a, name: 'x y'}]",), "data.validation.0.name", "expected letters"),
    (("data.template='Q: {a'",), "data.template", "expected '}'"),
    (("data.template='Q: {} A:'",), "data.template", "without a column's name"),
    (("data.template=Question",), "data.template", "names no column"),
    (("training.eval_strategy=steps",), "training.eval_strategy", "needs training.eval_steps"),
    (("training.save_strategy=steps",), "training.save_strategy", "needs training.save_steps"),
    (("training.eval_strategy=epoch", "training.eval_steps=5"), "training.eval_steps", "does nothing"),
    (("training.save_strategy=no", "training.save_steps=5"), "training.save_steps", "does nothing"),
    (("training.warmup_steps=5", "training.warmup_ratio=0.1"), "training.warmup_ratio", "both given"),
    (("training.warmup_steps=5", "training.max_steps=5"), "training.warmup_steps", "less than training.max_steps"),
    (("training.warmup_steps=5", "training.lr_scheduler_type=constant"), "training.warmup_steps", "does nothing"),
    (("training.fp16=true", "training.bf16=true"), "training.fp16", "both true"),
    (("training.fp16=true", "training.device=cpu"), "training.fp16", "needs CUDA"),
    (("training.optim=adamw",), "training.optim", "no such optimizer"),
    (("training.lr_groups={'(': 1e-3}",), "training.lr_groups.(", "not a regular expression"),
    (("training.push_to_hub='a/b/c'",), "training.push_to_hub", "no hub repository"),
    (("output_dir=''",), "output_dir", "empty"),
    (("training.class_weights=balanced",), "training.class_weights", "causal_lm has none"),
    (("training.train_head=false",), "training.train_head", "causal_lm has none"),
    (("training.head_learning_rate=0.1",), "training.head_learning_rate", "causal_lm has none"),
    ((*CLASSIFY, "training.eval_generate=3"), "training.eval_generate", "tasks that write text"),
    (
        (*CLASSIFY, "model.problem_type=regression", "training.label_smoothing_factor=0.1"),
        "training.label_smoothing_factor",
        "is for classes",
    ),
    ((*CLASSIFY, "training.class_weights=[1.0, -1.0]"), "training.class_weights", "must be positive"),
    ((*CLASSIFY, "model.num_labels=3", "training.class_weights=[1.0, 2.0]"), "training.class_weights", "is 3"),
    (("training.early_stopping_patience=3", "data.val_set_size=0"), "training.early_stopping_patience", "evaluation"),
    (
        ("training.early_stopping_patience=3", "training.eval_strategy=no"),
        "training.early_stopping_patience",
        "training.eval_strategy = no",
    ),
    (("training.early_stopping_threshold=0.1",), "training.early_stopping_threshold", "does nothing without"),
    (("training.metric_for_best_model=eval_perplexity", "data.val_set_size=0"), "training.metric_for_best_model", "no"),
    (("training.eval_strategy=epoch", "data.val_set_size=0"), "training.eval_strategy", "needs an evaluation"),
    (("training.metrics=[accuracy]",), "training.metrics.0", "not causal_lm"),
    (("training.metrics=[blue]",), "training.metrics.0", "there is no metric 'blue'"),
    (("training.metric_for_best_model=accuracy",), "training.metric_for_best_model", "expected eval_"),
    (("training.metric_for_best_model=eval_acuracy",), "training.metric_for_best_model", "there is no metric"),
    (("training.metric_for_best_model=eval_rouge",), "training.metric_for_best_model", "eval_rouge"),
    ((*CLASSIFY, "model.problem_type=regression", "training.metrics=[f1]"), "training.metrics.0", "not regression"),
    (("method={name: several, parts: [{name: low_rank}, {name: budget}]}",), "method.parts.1.name", "budget does not"),
    (
        (*CLASSIFY, "method={name: several, parts: [{name: budget}]}", "model.load_in_8bit=true"),
        "model.load_in_8bit",
        "the method budget cannot train",
    ),
    (("distributed={strategy: ddp, cpu_offload: true}",), "distributed.cpu_offload", "strategy is ddp"),
    (("distributed={strategy: ddp, reshard_after_forward: false}",), "distributed.reshard_after_forward", "is ddp"),
    (("distributed.cpu_offload=true", "training.device=cpu"), "distributed.cpu_offload", "training.device is cpu"),
    (("distributed.strategy=fsdp", "training.device=mps"), "distributed.strategy", "one device alone"),
    (("distributed.strategy=fsdp", "model.load_in_8bit=true"), "distributed.strategy", "8-bit weights"),
    (("method={name: budget}",), "task", "the method budget does not serve the task causal_lm"),
    (
        (*CLASSIFY, "method={name: budget}", "model.load_in_4bit=true"),
        "model.load_in_4bit",
        "cannot train on a quantised",
    ),
]


@pytest.mark.parametrize(("changes", "key", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_in_meaning(problems: Problems, changes: tuple[str, ...], key: str, words: str) -> None:
    (problem,) = problems(GOOD, *changes)
    assert problem.key == key, str(problem)
    assert words in problem.message, str(problem)


@pytest.mark.parametrize(
    "changes",
    [
        ("data.val_set_size=200",),
        ("data.val_set_size=0",),
        ("data.path=null", "data.datasets=[{path: a, weight: 2}, {path: b}]"),
        ("data.packing=true",),
        ("data.streaming=true", "training.max_steps=5"),
        ("data.template='Q: {question} A: {{}}'",),
        ("training.eval_steps=5",),
        ("training.save_steps=5",),
        ("training.eval_strategy=steps", "training.eval_steps=5"),
        ("training.warmup_ratio=0.1", "training.lr_scheduler_type=cosine"),
        ("training.fp16=true",),
        ("training.metric_for_best_model=eval_news_bleu", "data.validation={path: a, name: news}"),
        (
            "training.metric_for_best_model=eval_news_old_bleu",
            "data.validation=[{path: a, name: news}, {path: b, name: news_old}]",
        ),
        (*CLASSIFY, "training.metric_for_best_model=eval_f1_macro", "training.metrics=[mcc]"),
        (*CLASSIFY, "model.problem_type=regression", "training.metric_for_best_model=eval_pearson"),
        ("model.load_in_4bit=true", "model.bnb_4bit_quant_type=fp4"),
        ("training.push_to_hub=me/my-adapter",),
        ("training.optim=paged_adamw_8bit",),
        ("distributed={strategy: fsdp, cpu_offload: true, reshard_after_forward: false}",),
    ],
    ids=str,
)
def test_right_in_meaning(load: Load, changes: tuple[str, ...]) -> None:
    assert load(GOOD, *changes).recipe


def test_a_check_is_held_back_where_its_key_is_wrong_already(problems: Problems) -> None:
    (problem,) = problems(GOOD, "training.eval_strategy=steps", "training.eval_steps=-1")
    assert problem.key == "training.eval_steps"


def test_checks_run_beside_errors_elsewhere(problems: Problems) -> None:
    found = problems(GOOD, "method.r=0", "training.eval_strategy=steps", "data.val_set_size=1.5", "seed=-1")
    assert {problem.key for problem in found} == {"method.r", "training.eval_strategy", "data.val_set_size", "seed"}
