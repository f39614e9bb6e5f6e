"""The losses of preference tuning: which hyper-parameters each has, and with what defaults. No torch here.

The formulas are in `tasks.preference_formulas`. A new loss is one entry here, one function there, and its name in
`schema.LossType`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peftcli.recipe.schema import TrainingSpec

HYPERPARAMETERS = (
    "beta",
    "label_smoothing",
    "simpo_gamma",
    "sft_weight",
    "desirable_weight",
    "undesirable_weight",
)
"""Keys of `training` that belong to these losses alone."""

DEFAULT_LOSS = "sigmoid"


@dataclass(frozen=True)
class PreferenceLossInfo:
    """One loss.

    Args:
        summary: one sentence, for the documentation.
        paper: where it is from.
        defaults: its hyper-parameters, with the values that they have where the recipe leaves them out; None must be
            given.
        reference: whether it compares with the model before the first step.
        per_token: whether log-probabilities are means over an answer's tokens, not sums.
        unpaired: whether it takes each answer by itself, as a good or a bad one; a pair is two answers then.
        rate: its usual learning rate, as a share of that of supervised fine-tuning.
    """

    summary: str
    paper: str
    defaults: Mapping[str, float | None] = field(default_factory=dict)
    reference: bool = True
    per_token: bool = False
    unpaired: bool = False
    rate: float = 0.1


_BETA = {"beta": 0.1, "sft_weight": 0.0}

PREFERENCE_LOSSES: dict[str, PreferenceLossInfo] = {
    "sigmoid": PreferenceLossInfo(
        "DPO: the log-odds that the chosen answer is the better one; with label_smoothing, conservative DPO",
        "Rafailov et al. 2023, arXiv:2305.18290, equation 7",
        {**_BETA, "label_smoothing": 0.0},
    ),
    "ipo": PreferenceLossInfo(
        "the squared distance of the margin from 1 / (2 beta), which bounds it where all raters agree",
        "Azar et al. 2023, arXiv:2310.12036, equation 17",
        _BETA,
        per_token=True,
    ),
    "hinge": PreferenceLossInfo(
        "no loss from a margin of 1 on", "Liu et al. 2023 (RSO), arXiv:2309.06657, equation 11", _BETA
    ),
    "robust": PreferenceLossInfo(
        "DPO without bias where a known share of the preferences is the wrong way round (label_smoothing)",
        "Chowdhury et al. 2024, arXiv:2403.00409, equation 10",
        {**_BETA, "label_smoothing": None},
    ),
    "orpo": PreferenceLossInfo(
        "fine-tuning on the chosen answers, and beta times the log of the odds ratio; without a reference",
        "Hong et al. 2024, arXiv:2403.07691, equations 6 and 7 (beta is the paper's lambda)",
        {"beta": 0.1, "sft_weight": 1.0},
        reference=False,
        per_token=True,
        rate=0.5,  # it starts where fine-tuning starts; the paper's is 8e-6 where that takes 2e-5
    ),
    "simpo": PreferenceLossInfo(
        "DPO of mean log-probabilities with a wanted margin (simpo_gamma), without a reference",
        "Meng et al. 2024, arXiv:2405.14734, equation 6",
        {"beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.0, "sft_weight": 0.0},
        reference=False,
        per_token=True,
    ),
    "cpo": PreferenceLossInfo(
        "DPO against a uniform reference, and fine-tuning on the chosen answers",
        "Xu et al. 2024, arXiv:2401.08417, equation 5",
        {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0},
        reference=False,
    ),
    "kto": PreferenceLossInfo(
        "single answers that were called good or bad: no pairs are needed",
        "Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1, equation 7",
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        unpaired=True,
    ),
}
"""By TRL's names, in the order of the documentation."""


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of a recipe with its hyper-parameters filled in; those that it lacks are 0."""

    name: str
    info: PreferenceLossInfo
    beta: float
    label_smoothing: float
    simpo_gamma: float
    sft_weight: float
    desirable_weight: float
    undesirable_weight: float


def takes_single_answers(spec: TrainingSpec) -> bool:
    """Return whether the loss of a `training` block takes each answer by itself."""
    info = PREFERENCE_LOSSES.get(spec.loss_type or DEFAULT_LOSS)
    return info is not None and info.unpaired


def prediction_kind(spec: TrainingSpec) -> str:
    """Return the kind of prediction that the loss of a `training` block measures: of pairs, or of single answers."""
    return "answers" if takes_single_answers(spec) else "preferences"


def preference_loss(spec: TrainingSpec) -> PreferenceLoss:
    """Return the loss of a `training` block."""
    name = spec.loss_type or DEFAULT_LOSS
    info = PREFERENCE_LOSSES[name]
    values = {}
    for key in HYPERPARAMETERS:
        given = getattr(spec, key)
        values[key] = float(info.defaults.get(key) or 0.0) if given is None or key not in info.defaults else given
    return PreferenceLoss(name, info, **values)


_REFERENCES = {
    "precomputed": "the reference, this model before its first step, is computed once",
    "live": "the reference is a frozen copy of the starting values, in every pass",
}


def loss_in_words(spec: TrainingSpec) -> str:
    """Return the loss of a `training` block, its hyper-parameters, and what it compares with."""
    loss = preference_loss(spec)
    named = [
        f"{key} {getattr(loss, key):g}" for key, usual in loss.info.defaults.items() if getattr(loss, key) or usual
    ]
    compares = _REFERENCES[spec.reference or "precomputed"] if loss.info.reference else "no reference is computed"
    return f"{', '.join([loss.name, *named])}; {compares}"
