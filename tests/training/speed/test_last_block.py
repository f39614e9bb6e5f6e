"""A classifier's last block where its head reads: the same losses and gradients, and only where it may."""

from __future__ import annotations

import pytest
import torch

from peftcli.layers.cpu.first_position import FirstPosition
from peftcli.models.read_anatomy import read_anatomy
from peftcli.tasks.task import unprepared
from peftcli.training.run import train
from peftcli.training.speed.last_block import last_block
from tests.tiny import ENCODERS, tiny_model

CUT = ["bert", "roberta", "distilbert", "electra", "modernbert"]
LORA = {"name": "lora", "r": 4, "target_modules": "all-linear"}
METHODS = ["adapter", "parallel_adapter", "compacter", "prefix_tuning", "bitfit", "ia3", "mam", "adalora", "full"]
NO_DROPOUT = {"parallel_adapter": {"dropout": 0.0}, "mam": {"dropout": 0.0}}


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the inputs of each block that was cut, one of the trial among them."""
    seen: list[int] = []
    original = FirstPosition.expect

    def counted(self: FirstPosition, length: int) -> None:
        original(self, length)
        seen.append(length)

    monkeypatch.setattr(FirstPosition, "expect", counted)
    return seen


def compare(recipe, recorder, cuts, family: str, change: dict[str, object]) -> None:
    loaded = recipe(family, "sequence_classification", name="cut", **change)
    train(loaded, reporter=recorder)
    losses, norms = list(recorder.losses), [step.grad_norm for step in recorder.steps]
    taken = len(cuts)
    assert taken > 1  # one is the trial's
    recorder.steps.clear()
    off = {"training__fast_paths": {"last_block": False}}
    train(recipe(family, "sequence_classification", name="whole", **off, **change), reporter=recorder)
    assert len(cuts) == taken
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


def test_gradients_agree_to_the_last_digits_in_a_padded_batch() -> None:
    model = tiny_model("bert", "sequence_classification").double().eval()
    ids = torch.randint(5, 100, (3, 11))
    mask = (torch.arange(11) < torch.tensor([11, 7, 4])[:, None]).long()
    found = last_block(model, read_anatomy(model, None), unprepared)
    assert found is not None
    gradients = []
    for context in (found.cut, torch.enable_grad):
        model.zero_grad()
        with context():
            model(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-12, rtol=1e-9, msg=name)
