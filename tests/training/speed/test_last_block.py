"""A classifier's last block where its head reads: the same losses and gradients, and only where it may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftcli.inference import open_run
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.methods.lora import LoraParams
from peftcli.methods.parallel_adapter import ParallelAdapterParams
from peftcli.models.anatomy import Anatomy
from peftcli.models.last_block import LastBlock, last_block
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.recipe.method_params import MethodParams
from peftcli.tasks.task import unprepared
from peftcli.training.run import train
from tests.tiny import ENCODERS, HEADS, HIDDEN, tiny_model

CUT = ["bert", "roberta", "distilbert", "electra", "modernbert"]
LORA = {"name": "lora", "r": 4, "target_modules": "all-linear"}
METHODS = ["adapter", "parallel_adapter", "compacter", "prefix_tuning", "bitfit", "ia3", "mam", "adalora", "full"]
NO_DROPOUT = {"parallel_adapter": {"dropout": 0.0}, "mam": {"dropout": 0.0}}


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[LastBlock]:
    """Every last block that was given hooks, those that were found not to allow it among them."""
    seen: list[LastBlock] = []
    original = LastBlock.__init__

    def noted(self: LastBlock, *args: object) -> None:
        original(self, *args)
        seen.append(self)

    monkeypatch.setattr(LastBlock, "__init__", noted)
    return seen


def compare(recipe, recorder, cuts, family: str, change: dict[str, object]) -> None:
    loaded = recipe(family, "sequence_classification", name="cut", **change)
    train(loaded, reporter=recorder)
    losses, norms = list(recorder.losses), [step.grad_norm for step in recorder.steps]
    assert len(cuts) == 1
    assert cuts[0].taken > 1  # one is the trial's
    recorder.steps.clear()
    off = {"training__fast_paths": {"last_block": False}}
    train(recipe(family, "sequence_classification", name="whole", **off, **change), reporter=recorder)
    assert len(cuts) == 1
    tolerance = 2e-2 if "training__bf16" in change else 1e-5
    assert losses == pytest.approx(recorder.losses, rel=tolerance)
    assert norms == pytest.approx([step.grad_norm for step in recorder.steps], rel=20 * tolerance)


@pytest.mark.parametrize("family", CUT)
@pytest.mark.parametrize(
    "change",
    [{}, {"training__gradient_checkpointing": True}, {"training__bf16": True}],
    ids=["plain", "recomputed", "bf16"],
)
def test_learns_the_same_as_the_whole_block(recipe, recorder, cuts, family, change) -> None:
    compare(recipe, recorder, cuts, family, {"method": LORA, **change})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_same(recipe, recorder, cuts, method) -> None:
    compare(recipe, recorder, cuts, "bert", {"method": {"name": method, **NO_DROPOUT.get(method, {})}})


def test_a_base_in_4_bits_is_no_other_case(recipe, recorder, cuts) -> None:
    pytest.importorskip("bitsandbytes")
    change = {"method": {**LORA, "name": "qlora"}, "model__load_in_4bit": True, "training__bf16": True}
    compare(recipe, recorder, cuts, "bert", change)


def test_accumulated_and_split_batches_are_no_other_case(recipe, recorder, cuts) -> None:
    change = {"method": LORA, "training__gradient_accumulation_steps": 2, "training__max_tokens_per_micro_batch": 12}
    compare(recipe, recorder, cuts, "bert", change)


def test_evaluation_and_prediction_are_cut_too(recipe, cuts, monkeypatch) -> None:
    loaded = recipe("bert", "sequence_classification", data__val_set_size=6, training__max_steps=1)
    train(loaded)
    run, data = loaded.recipe.output_dir, loaded.recipe.data.path
    found = []
    for allowed in (True, False):
        if not allowed:
            monkeypatch.setattr(open_run, "last_block", lambda *_: None)
        cuts.clear()
        found.append((evaluate_run(run), list(predict_run(run, data))))
        assert [cut.taken > 1 for cut in cuts] == [True, True] * allowed
    (metrics, lines), (expected, others) = found
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    for line, other in zip(lines, others, strict=True):
        assert line["prediction"] == other["prediction"] and line["scores"] == pytest.approx(other["scores"], rel=1e-4)


def test_a_closed_run_leaves_no_hook_of_it(recipe) -> None:
    loaded = recipe("bert", "sequence_classification", training__max_steps=1)
    train(loaded)
    opened = open_run.open_run(str(loaded.recipe.output_dir))
    assert opened.cut is not None
    hooks = [module for module in opened.model.modules() if module._forward_pre_hooks or module._forward_hooks]
    opened.close()
    left = [module for module in opened.model.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert len(left) < len(hooks)
    assert not any(hook.__self__ is opened.cut for module in left for hook in module._forward_hooks.values()
                   if hasattr(hook, "__self__"))  # fmt: skip


@pytest.mark.parametrize("method", ["unipelt", "prompt_tuning"])
def test_a_method_that_moves_or_mixes_positions_is_computed_whole(recipe, recorder, cuts, method) -> None:
    """A gate over the sequence needs all positions; a prompt may stand where the head reads, or not."""
    losses = []
    for on in (True, False):
        recorder.steps.clear()
        switches = {"training__fast_paths": {"last_block": on}, "method": {"name": method}}
        train(recipe("bert", "sequence_classification", name=f"{on}", **switches), reporter=recorder)
        losses.append(list(recorder.losses))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert method == "prompt_tuning" or not cuts


@pytest.mark.parametrize("family", ["albert", "bart", "llama", "t5"])
def test_shared_blocks_and_heads_that_read_elsewhere_are_left_alone(family) -> None:
    model = tiny_model(family, "sequence_classification")
    assert last_block(model, read_anatomy(model, None), unprepared) is None


def test_a_head_that_averages_is_left_alone() -> None:
    averaging = tiny_model("modernbert", "sequence_classification", classifier_pooling="mean")
    assert last_block(averaging, read_anatomy(averaging, None), unprepared) is None


@pytest.mark.parametrize("family", ENCODERS)
def test_what_is_tried_leaves_the_model_as_it_was(family) -> None:
    model = tiny_model(family, "sequence_classification").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = last_block(model, read_anatomy(model, None), unprepared)
    assert (found is not None) or family not in CUT
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def gradients(model: Any, inputs: dict[str, torch.Tensor], context: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """Return the logits and the gradient of every parameter of a loss on them, computed within a context."""
    model.zero_grad()
    with context():
        logits = model(**inputs).logits
        logits.square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **found}


# (rows, tokens): tokens as the model is wide, as its feed-forward part, as an attention head, as there are heads; rows
# as there are tokens, rows as the model is wide; one row, one token; and none of these
COINCIDENCES = [
    (3, HIDDEN), (3, 48), (3, HIDDEN // HEADS), (2, HEADS), (7, 7), (HIDDEN, 5), (HEADS, 9), (HIDDEN, HIDDEN), (1, 1),
    (1, 11), (5, 1), (1, HIDDEN), (2, 2), (3, 11),
]  # fmt: skip


@pytest.mark.parametrize("family", [*CUT, "xlm-roberta"])
@pytest.mark.parametrize(
    "params",
    [None, LoraParams(target_modules="all-linear"), ParallelAdapterParams(placement="both")],
    ids=["whole model", "lora", "parallel adapters"],
)
def test_logits_and_gradients_agree_whatever_sizes_coincide(family: str, params: MethodParams | None) -> None:
    """Adapters beside the attention see all positions; low rank parts and biases see the first one."""
    model = tiny_model(family, "sequence_classification").double().eval()
    anatomy = read_anatomy(model, None)
    if params is not None:
        attach_parts(model, anatomy, params)
    found = last_block(model, anatomy, unprepared)
    assert found is not None
    compare_whatever_sizes_coincide(model, found)


@pytest.mark.parametrize("family", ["camembert", "roberta-prelayernorm"])
def test_families_that_are_found_by_their_structure_are_no_other_case(family: str) -> None:
    """Their norms have no role, so that the residual sums have all positions."""
    config = AutoConfig.for_model(family, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
                                  intermediate_size=48, vocab_size=128, pad_token_id=0)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    anatomy = read_anatomy(model, None)
    assert anatomy.origin == "structure"
    found = last_block(model, anatomy, unprepared)
    assert found is not None
    compare_whatever_sizes_coincide(model, found)


def compare_whatever_sizes_coincide(model: Any, found: LastBlock) -> None:
    for rows, length in COINCIDENCES:
        lengths = torch.arange(length, length - rows, -1).clamp(min=1)  # padded rows among them
        mask = (torch.arange(length) < lengths[:, None]).long()
        ids = torch.randint(5, 100, (rows, length)).masked_fill(mask == 0, model.config.pad_token_id or 0)
        inputs = {"input_ids": ids, "attention_mask": mask}
        before = found.taken
        cut, whole = gradients(model, inputs, found.cut), gradients(model, inputs, torch.enable_grad)
        assert found.taken == before + 1
        assert cut.keys() == whole.keys()
        for name, value in cut.items():
            torch.testing.assert_close(value, whole[name], atol=1e-12, rtol=1e-9, msg=f"{name}: {rows} x {length}")


def attach_parts(model: Any, anatomy: Anatomy, params: MethodParams) -> None:
    """Attach a method's parts, filled with numbers that are not zero."""
    attachment = apply_method(model, anatomy, params)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.double()
