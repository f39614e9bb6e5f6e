"""The preference stages of axolotl and LLaMA-Factory: their losses, and the keys and rows that only these have.

Read in axolotl 067b021 (core/builders/rl.py, prompt_strategies/dpo, kto and orpo) and LLaMA-Factory ff6d4d1
(train/dpo/trainer.py, train/kto/trainer.py, data/converter.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftcli.data.formats.preference import FORMAT as PAIRS
from peftcli.data.formats.unpaired import FORMAT as UNPAIRED
from peftcli.recipe.aliases.foreign_values import PAIR_COLUMNS, PAIR_TYPES, STAGE_LOSSES
from peftcli.recipe.preference_losses import DEFAULT_LOSS, PREFERENCE_LOSSES
from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.starting.convert import data_set_templates
from peftcli.starting.convert.conversion import Conversion
from peftcli.starting.convert.plain_keys import translate_plain

Handler = Callable[[Conversion, Key, Any], None]

_STARTS_FROM = "the reference is this run's model before its first step; to compare with another one, start from it"
_WORDING = "the prompt's wording: write it as data.template, or leave it to the chat template"
_AS_THEY_ARE = "answers are taken as they are"
_HEADS = ("chat_template", "user_defined")


def trains_preferences(work: Conversion) -> bool:
    """Return whether the configuration is one of preference tuning: only such a recipe has a loss."""
    return work.get("training.loss_type") is not None


def axolotl_loss(data: Mapping[str, Any]) -> str:
    """Return our loss for their `rl`, which `dpo_loss_type` may change."""
    kinds = data.get("dpo_loss_type")
    named = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else kinds
    if data.get("rl") == "dpo" and isinstance(named, str) and named in _OF_PAIRS:
        return named
    return STAGE_LOSSES["rl"].get(data.get("rl"), DEFAULT_LOSS)


def llama_factory_loss(data: Mapping[str, Any]) -> str:
    """Return our loss for their `stage` and `pref_loss`."""
    if data.get("stage") == "kto":
        return "kto"
    named = data.get("pref_loss")
    return STAGE_LOSSES["pref_loss"].get(named, DEFAULT_LOSS) if isinstance(named, str) else DEFAULT_LOSS


_OF_PAIRS = ("sigmoid", "ipo", "hinge", "robust")
"""TRL's names of DPO's losses that are ours, too."""


def _rl(work: Conversion, key: Key, _value: Any) -> None:
    work.say(key, "training.loss_type", f"task: preference, loss_type: {work.get('training.loss_type')}")


def _dpo_loss_type(work: Conversion, key: Key, value: Any) -> None:
    named = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not trains_preferences(work) or work.document.data.get("rl") != "dpo":
        work.drop(key, "only rl: dpo reads it")
    elif isinstance(named, str) and named in _OF_PAIRS:
        work.say(key, "training.loss_type")
    else:
        text = f"one loss trains at a time, of {', '.join(_OF_PAIRS)}; training.sft_weight adds the likelihood's"
        work.decide(key, text, "training.loss_type")


def _only_for(stage: str, ours: str) -> Handler:
    """Return what translates a key that axolotl reads for one value of `rl` alone."""

    def handle(work: Conversion, key: Key, value: Any) -> None:
        if work.document.data.get("rl") == stage:
            work.put(key, ours, value)
        else:
            work.drop(key, f"only rl: {stage} reads it")

    return handle


def _beta_unless(*others: str) -> Handler:
    """Return what translates a key that is beta there, unless one of the others is set."""

    def handle(work: Conversion, key: Key, value: Any) -> None:
        data = work.document.data
        block = data.get("trl")
        winner = next((name for name in others if name != "trl.beta" and data.get(name) is not None), None)
        if "trl.beta" in others and isinstance(block, dict) and block.get("beta") is not None:
            winner = "trl.beta"
        if winner is not None:
            work.drop(key, f"{winner} is beta")
        else:
            translate_plain(work, key, value)

    return handle


def _trl(work: Conversion, key: Key, value: Any) -> None:
    if not isinstance(value, dict):
        translate_plain(work, key, value)
        return
    for name, inner in value.items():
        if name == "beta" or inner in (None, ""):
            translate_plain(work, (*key, name), inner)
        elif trains_preferences(work):
            work.drop((*key, name), "an option of training with rewards")
        else:
            translate_plain(work, (*key, name), inner)


def _off_or_decide(note: str) -> Handler:
    """Return what leaves out an option that is switched off, and leaves it to the user otherwise."""

    def handle(work: Conversion, key: Key, value: Any) -> None:
        if not value:
            work.drop(key, "the same as leaving it out")
        elif not trains_preferences(work):
            work.drop(key, "only preference tuning reads it")
        else:
            work.decide(key, note)

    return handle


def _stage(work: Conversion, key: Key, value: Any) -> None:
    work.say(key, "task")
    if value == "pt":
        work.set("data.format", "text")


def _pref_loss(work: Conversion, key: Key, value: Any) -> None:
    if work.document.data.get("stage") != "dpo":
        work.drop(key, "only stage: dpo reads it")
    elif isinstance(value, str) and value in STAGE_LOSSES["pref_loss"]:
        if value == work.get("training.loss_type"):
            work.say(key, "training.loss_type")
        else:
            text = "each answer of a pair is one by itself here, and the divergence is estimated over the whole step"
            work.decide(key, text, "training.loss_type")
    else:
        text = f"{show(value)} is no loss here; training.loss_type is {DEFAULT_LOSS}"
        work.decide(key, text, "training.loss_type")


def _pref_ftx(work: Conversion, key: Key, value: Any) -> None:
    """Translate the weight of the chosen answer's likelihood, which comes on top of ORPO's own."""
    loss = work.get("training.loss_type")
    if not trains_preferences(work):
        work.drop(key, "only preference tuning reads it")
    elif not value:
        work.drop(key, "the same as leaving training.sft_weight out")
    elif "sft_weight" not in PREFERENCE_LOSSES[loss].defaults:
        work.decide(key, f"the loss {loss} has no likelihood term", "training.sft_weight")
    elif loss == "orpo" and isinstance(value, int | float):
        work.put(key, "training.sft_weight", 1.0 + value, "on top of ORPO's own, whose weight is 1")
    else:
        translate_plain(work, key, value)


def _ref_model(work: Conversion, key: Key, value: Any) -> None:
    if not trains_preferences(work):
        work.drop(key, "only preference tuning reads it")
    elif value == work.document.data.get("model_name_or_path"):
        work.drop(key, "the reference is this model before the first step")
    else:
        work.decide(key, _STARTS_FROM, "method.init_from")


def _adapter(work: Conversion, key: Key, value: Any) -> None:
    """Translate an adapter to go on from; there the reference is the base without it."""
    translate_plain(work, key, value)
    loss = PREFERENCE_LOSSES.get(str(work.get("training.loss_type")))
    if trains_preferences(work) and loss is not None and loss.reference and work.get("method.init_from"):
        work.decide(key, "the reference here is the model with this adapter; there the base without it", None)


AXOLOTL_HANDLERS: Mapping[str, Handler] = {
    "rl": _rl,
    "trl": _trl,
    "rl_beta": _beta_unless("trl.beta"),
    "orpo_alpha": _beta_unless("trl.beta", "rl_beta"),
    "cpo_alpha": _only_for("simpo", "training.sft_weight"),
    "rpo_alpha": _only_for("dpo", "training.sft_weight"),
    "dpo_loss_type": _dpo_loss_type,
    "dpo_use_weighting": _off_or_decide("WPO's weights are not built"),
    "dpo_norm_loss": _off_or_decide("training.loss_type: simpo and ipo divide by an answer's tokens"),
}

LLAMA_FACTORY_HANDLERS: Mapping[str, Handler] = {
    "stage": _stage,
    "pref_loss": _pref_loss,
    "pref_ftx": _pref_ftx,
    "pref_bco_weight": _off_or_decide("BCO's loss is not built"),
    "ld_alpha": _off_or_decide("LD-DPO's weights are not built"),
    "ref_model": _ref_model,
    "ref_model_adapters": _ref_model,
    "ref_model_quantization_bit": _off_or_decide("the reference has the bits of the model: one model serves both"),
    "adapter_name_or_path": _adapter,
}


def rows_format(work: Conversion) -> str:
    """Return the format of a data set's rows of preference tuning."""
    return UNPAIRED.name if work.get("training.loss_type") == "kto" else PAIRS.name


def pair_type(work: Conversion, key: Key, value: Any, columns: dict[str, str]) -> None:
    """Translate axolotl's `type` of a data set of preferences: columns, and the template that the type is worded in."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner:
                pair_field(work, (*key, name), inner, columns)
        return
    head, _, kind = str(value).partition(".")
    template = data_set_templates.worded(head)
    if kind not in PAIR_TYPES or (template is None and head not in _HEADS):
        work.decide(key, f"no rows like these are known; expected columns are in docs/data.md, {rows_format(work)}")
        return
    columns.update(PAIR_TYPES[kind])
    wrong = data_set_templates.differing(work)
    if template is None:
        work.say(key, "data.format")
    elif wrong is not None:
        work.decide(key, wrong, "data.chat_template")
    else:
        work.set("data.chat_template", template)
        why = ", since its texts are taken as they are" if template == "none" else ""
        work.say(key, "data.format", f"data.chat_template: {template}{why}")


def pair_field(work: Conversion, key: Key, value: Any, columns: dict[str, str]) -> bool:
    """Translate a field of axolotl's that names a column or words a prompt; return whether it is one."""
    name = str(key[-1])
    if name == "field_messages" and value in ("chosen", "rejected"):
        work.drop(key, "the beginning that both conversations have in common is the prompt")
    elif name in PAIR_COLUMNS["axolotl"]:
        columns[PAIR_COLUMNS["axolotl"][name]] = str(value)
        work.say(key, "data.columns")
    elif name == "prompt_format":
        work.decide(key, _WORDING, "data.template")
    elif name in ("chosen_format", "rejected_format", "completion_format"):
        work.decide(key, _AS_THEY_ARE)
    else:
        return False
    return True


def described_pairs(work: Conversion, key: Key, name: str, entry: Mapping[str, Any], made: dict[str, Any]) -> None:
    """Put format and columns of an entry of LLaMA-Factory's dataset_info.json into the source that it becomes."""
    named = entry.get("columns") or {}
    made["format"] = UNPAIRED.name if named.get("kto_tag") else PAIRS.name
    if not named.get("kto_tag") and not entry.get("ranking"):
        text = f"{name}: neither ranking nor a column kto_tag; preferences need pairs, or answers with labels"
        work.decide(key, text, "data.path")
    elif made["format"] == UNPAIRED.name and not PREFERENCE_LOSSES[work.get("training.loss_type")].unpaired:
        work.decide(key, f"{name}: answers with labels; training.loss_type: kto learns from them", "training.loss_type")
    columns = {}
    for theirs, file in named.items():
        ours = PAIR_COLUMNS["LLaMA-Factory"].get(theirs)
        if ours is None and file:
            work.decide(key, f"{name}: rows of preferences have no column {theirs}", "data.columns")
        elif file and ours is not None:
            columns[ours] = str(file)
    if columns := {ours: theirs for ours, theirs in columns.items() if ours != theirs}:
        made["columns"] = columns
