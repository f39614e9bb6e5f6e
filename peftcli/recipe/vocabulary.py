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

_CLASSES = ("accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted", "precision", "recall")

METRICS: dict[str, tuple[str, ...]] = {
    "single_label": (*_CLASSES, "mcc"),
    "multi_label": _CLASSES,
    "regression": ("mse", "rmse", "mae", "r2", "pearson", "spearman"),
    "tags": ("accuracy", "f1", "f1_micro", "f1_macro", "precision", "recall"),
    "text": ("bleu", "chrf", "rouge", "rouge1", "rouge2", "rougeL", "exact_match", "perplexity", "token_accuracy"),
}
"""What an evaluation can measure beside the loss, by the kind of prediction."""

PREDICTIONS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("text",),
    "seq2seq_lm": ("text",),
    "sequence_classification": ("single_label", "multi_label", "regression"),
    "token_classification": ("tags",),
}
"""The kinds of prediction of each task; `model.problem_type` chooses where there are several."""
