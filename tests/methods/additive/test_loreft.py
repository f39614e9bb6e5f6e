"""LoReFT: the paper's formula, where it intervenes, padding, packing, generation, and the way of the answers' key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from peftcli.errors import UserError
from peftcli.ignored_label import IGNORED
from peftcli.layers.added_modules import ANSWERS
from peftcli.layers.parts.subspace_edit import SubspaceEdit
from peftcli.layers.prompt_ends import answers_of, documents_of, ends
from peftcli.methods.loreft import METHOD, LoreftParams
from peftcli.protocol.attachment import Attachment
from tests.methods import harness
from tests.tiny import VOCAB


def disturbed(family: str, task: str | None = None, **params: Any) -> Attachment:
    attachment = harness.attached("loreft", family, task, r=3, **params)
    harness.disturb(attachment, std=0.5)
    return attachment


def chosen(shown: list[int], documents: list[int], answers: list[int] | None, first: int, last: int) -> str:
    """Return a letter for each token: f, l, or a dot."""
    where = [torch.tensor([row]) for row in (shown, documents, answers or [])]
    found = ends(where[0].bool(), where[1], where[2].bool() if answers is not None else None, first, last)
    return "".join("f" if f else "l" if l_ else "." for f, l_ in zip(found[0][0], found[1][0], strict=True))


ONE = [0] * 8


@pytest.mark.parametrize(
    ("shown", "documents", "answers", "first", "last", "expected"),
    [
        ([1] * 8, ONE, None, 2, 3, "ff...lll"),
        ([0, 0, 1, 1, 1, 1, 1, 1], ONE, None, 2, 1, "..ff...l"),  # padded in front
        ([1, 1, 1, 1, 1, 1, 0, 0], ONE, None, 2, 1, "ff...l.."),
        ([1] * 8, ONE, [0, 0, 0, 0, 0, 1, 1, 1], 1, 2, "f..ll..."),  # nothing behind the prompt
        ([1] * 8, ONE, [0, 0, 0, 1, 1, 1, 1, 1], 7, 7, "ffl....."),  # a short prompt is divided
        ([1] * 8, ONE, [0, 1, 1, 1, 1, 1, 1, 1], 7, 7, "f......."),
        ([1] * 8, ONE, [0, 0, 0, 1, 1, 1, 1, 1], 0, 7, "lll....."),
        ([1] * 8, ONE, [1] * 8, 2, 3, "ff......"),  # a text without a prompt: its end is not known beforehand
        ([1] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1, 1], 1, 1, "f.l.fl.."),  # packed
    ],
)
def test_the_ends_of_prompts(
    shown: list[int], documents: list[int], answers: list[int] | None, first: int, last: int, expected: str
) -> None:
    assert chosen(shown, documents, answers, first, last) == expected


def test_answers_go_from_the_first_supervised_token_to_the_end_of_the_document() -> None:
    labels = torch.tensor([[IGNORED, 5, IGNORED, 6, IGNORED, IGNORED, 7]])
    documents = documents_of(labels, torch.tensor([[0, 1, 2, 3, 0, 1, 2]]))
    assert answers_of(labels, documents).long().tolist() == [[0, 1, 1, 1, 0, 0, 1]]


def test_the_formula_of_the_paper() -> None:
    """In float64: h + R^T (W h + b - R h) at the chosen tokens of the last block, and nothing elsewhere."""
    where = torch.tensor([[True, False, True, False]])
    part = SubspaceEdit(6, 2, 0.0, lambda: where).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    h = torch.randn(1, 4, 6, dtype=torch.float64)
    rotation = part.rotation()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(2, dtype=torch.float64))
    expected = h.clone()
    for token in (0, 2):
        at = h[0, token]
        expected[0, token] = at + rotation.T @ (part.loreft_W @ at + part.loreft_b - rotation @ at)
    torch.testing.assert_close(part(h, h), expected)
    assert torch.equal(part(h, h)[:, 1::2], h[:, 1::2])


def test_r_keeps_orthonormal_rows_while_it_trains() -> None:
    attachment = harness.attached("loreft", "llama", r=3)
    before = [placed.part.rotation().detach() for placed in attachment.placed]  # type: ignore[union-attr,operator]
    harness.train_steps(attachment, harness.batch_for(attachment.model), steps=5, lr=0.1)
    for start, placed in zip(before, attachment.placed, strict=True):
        assert isinstance(placed.part, SubspaceEdit)
        rotation = placed.part.rotation().detach()
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)
        assert (rotation - start).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_block_outputs_change_at_the_ends_of_the_prompt_only(family: str) -> None:
    attachment = disturbed(family, layers=[0], positions="f1+l2")
    batch = harness.batch_for(attachment.model, rows=1, padding="none")
    if family in ("llama", "gpt2"):
        batch["labels"][:, :5] = IGNORED
    seen: dict[bool, Tensor] = {}
    host = attachment.model.get_submodule(attachment.placed[0].key.removesuffix(".loreft"))
    for on in (True, False):
        attachment.enable(on)
        handle = host.register_forward_hook(lambda _m, _a, out, on=on: seen.update({on: out}))
        harness.logits_of(attachment, batch)
        handle.remove()
    outputs = [out[0] if isinstance(out, tuple) else out for out in seen.values()]
    moved = (outputs[0] - outputs[1]).abs().amax(-1)[0] > 1e-6
    end = 5 if family in ("llama", "gpt2") else 9
    assert moved.nonzero().flatten().tolist() == [0, end - 2, end - 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("share", [True, False])
def test_padding_changes_nothing(side: str, share: bool) -> None:
    attachment = disturbed("llama", positions="f2+l2", share_weights=share)
    batch = harness.batch_for(attachment.model, padding=side)
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    together = harness.logits_of(attachment, batch)
    for row, mask in enumerate(batch["attention_mask"].bool()):
        alone = {"input_ids": batch["input_ids"][row][mask][None]}
        torch.testing.assert_close(harness.logits_of(attachment, alone)[0], together[row][mask], atol=1e-4, rtol=1e-4)


def test_packed_documents_are_as_if_alone() -> None:
    attachment = disturbed("llama", positions="f2+l1")
    attachment.model.config._attn_implementation = "eager"
    ids = torch.randint(5, VOCAB, (1, 9))
    labels = ids.clone()
    labels[:, :3], labels[:, 5:7] = IGNORED, IGNORED
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    whole = {"input_ids": ids, "labels": labels, "position_ids": positions}
    answers = attachment.prepare_inputs(whole)[ANSWERS]
    parts = [
        attachment.prepare_inputs({"input_ids": ids[:, at], "labels": labels[:, at]})[ANSWERS]
        for at in (slice(0, 5), slice(5, 9))
    ]
    assert torch.equal(answers, torch.cat(parts, dim=1))
    attachment.model(**attachment.prepare_inputs({**whole, "use_cache": False}))
    first, last = attachment.ends.chosen(2, 1)  # type: ignore[attr-defined]
    assert first.long().tolist() == [[1, 1, 0, 0, 0, 1, 0, 0, 0]]
    assert last.long().tolist() == [[0, 0, 1, 0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_gives_what_it_gives_without(family: str, beams: int) -> None:
    attachment = disturbed(family, positions="f2+l2")
    batch = harness.batch_for(attachment.model, padding="left")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    texts = []
    for cached in (True, False):
        prepared = attachment.prepare_inputs(inputs, generate=True)
        made: Any = attachment.model
        out = made.generate(
            **prepared, max_new_tokens=6, do_sample=False, num_beams=beams, use_cache=cached, eos_token_id=None
        )
        texts.append(out)
    assert torch.equal(*texts)
    attachment.enable(False)
    plain = made.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams, eos_token_id=None)
    assert not torch.equal(plain, texts[0])


def test_generation_sees_the_prompt_that_training_saw() -> None:
    """The first generated token is the one that the logits at the end of a trained row's prompt say."""
    attachment = disturbed("llama", positions="f2+l2")
    ids = torch.randint(5, VOCAB, (1, 9))
    labels = ids.clone()
    labels[:, :6] = IGNORED
    trained = harness.logits_of(attachment, {"input_ids": ids, "labels": labels})[0, 5].argmax()
    made: Any = attachment.model
    prompt = {"input_ids": ids[:, :6], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    out = made.generate(**attachment.prepare_inputs(prompt, generate=True), max_new_tokens=1, do_sample=False)
    assert out[0, -1] == trained


def test_two_of_them_take_different_blocks() -> None:
    model, anatomy = harness.frozen("llama")
    parts = [{"name": "loreft", "r": 2, "layers": [layer]} for layer in (0, 1)]
    attachment = harness.attach("compose", model, anatomy, parts=parts)
    batch = harness.batch_for(model)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    model, anatomy = harness.frozen("llama")
    with pytest.raises(UserError, match="cannot share a place"):
        harness.attach("compose", model, anatomy, parts=[parts[0], parts[0]])


@pytest.mark.parametrize("order", [("loreft", "prompt_tuning"), ("prompt_tuning", "loreft")])
def test_in_a_composition_the_order_does_not_matter(order: tuple[str, str]) -> None:
    options = {"loreft": {"r": 2, "positions": "f3+l1"}, "prompt_tuning": {"num_virtual_tokens": 2}}
    model, anatomy = harness.frozen("llama")
    parts = [{"name": name, **options[name]} for name in order]
    attachment = harness.attach("compose", model, anatomy, parts=parts)
    batch = harness.batch_for(model, padding="none")
    batch["labels"][:, :6] = IGNORED
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    ends_of = next(part.ends for part in attachment.parts.values() if hasattr(part, "ends"))  # type: ignore[attr-defined]
    first, last = ends_of.chosen(3, 1)
    assert first[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert last[0].nonzero().flatten().tolist() == [7]  # two virtual tokens in front


def test_weight_decay_leaves_the_rotation_and_its_target_alone() -> None:
    attachment = harness.attached("loreft", "llama", r=2)
    decayed = set(attachment.trainable_parameters()) - attachment.multiplicative()
    assert decayed and all(name.endswith("loreft_b") for name in decayed)


@pytest.mark.parametrize("positions", ["", "+", "f7l7", "f7+", "+l7", "f0", "l7+f7", "f", "7"])
def test_positions_are_refused(positions: str) -> None:
    with pytest.raises(ValidationError, match="names no tokens"):
        LoreftParams(positions=positions)


def test_what_does_not_fit_is_refused() -> None:
    _, anatomy = harness.frozen("llama")
    assert "at most 32" in METHOD.check(anatomy, LoreftParams(r=33))[0]
    assert "has blocks 0 to 1, not 2" in METHOD.check(anatomy, LoreftParams(layers=[1, 2]))[0]
    assert "share_weights" in LoreftParams(positions="f3").idle_keys()
