"""Names that recipes use and other packages implement; tests hold the two in step."""

from __future__ import annotations

OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_plain",
    "sgd",
    "adagrad",
    "rmsprop",
    "adafactor",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)
"""Values of `training.optim`."""

_PROMPTED = ("alpaca", "prompt_completion", "question_answer")

FORMATS: dict[str, frozenset[str]] = {
    "causal_lm": frozenset({"messages", "sharegpt", *_PROMPTED, "text", "pretokenized"}),
    "seq2seq_lm": frozenset({*_PROMPTED, "input_target", "pretokenized"}),
    "sequence_classification": frozenset({"classification", "folders", "pretokenized"}),
    "token_classification": frozenset({"tokens_tags", "pretokenized"}),
}
"""The row formats that serve a task; `auto` always may be asked for."""

_TEXT_METRICS = ("loss", "perplexity", "token_accuracy", "exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL")
_CLASS_METRICS = ("loss", "accuracy", "f1", "f1_macro", "f1_micro", "precision", "recall")

METRICS: dict[str, frozenset[str]] = {
    "causal_lm": frozenset(_TEXT_METRICS),
    "seq2seq_lm": frozenset(_TEXT_METRICS),
    "sequence_classification": frozenset(
        {*_CLASS_METRICS, "f1_weighted", "mcc", "mse", "rmse", "mae", "r2", "pearson", "spearman"}
    ),
    "token_classification": frozenset(_CLASS_METRICS),
}
"""What an evaluation of a task can measure; `eval_` stands before them in a run's files."""
