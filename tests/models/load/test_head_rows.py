"""A head's rows follow the names of its labels: in loading, in `init_from`, for a whole and for a partly known set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftcli.data.store.labels import LabelSpec
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.models.load.head_rows import head_rows
from peftcli.models.load.heads import start_anew
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.models.load.meta_model import label_parameters
from peftcli.recipe.schema import ModelSpec
from peftcli.training.run import train
from tests.tiny import save_tiny, tiny_model

HELD = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")


@pytest.mark.parametrize(
    ("wanted", "held", "rows", "nameless"),
    [
        (HELD, HELD, (0, 1, 2), False),
        (("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), HELD, (0, 2, 1), False),
        (("contradiction", "entailment", "neutral"), HELD, (0, 2, 1), False),
        (("not good", "very-good"), ("Very_Good", "Not Good"), (1, 0), False),
        (("Pos", "neg", "pos"), ("pos", "neg"), (None, 1, 0), False),
        (("POS", "Pos"), ("pos", "neg"), (None, None), False),
        (("pos", "x"), ("POS", "Pos"), (None, None), False),
        (("B-ORG", "B-PER", "O"), ("O", "B-PER"), (None, 1, 0), False),
        (("a", "b"), ("x", "y"), (None, None), False),
        (("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2), False),
        (("1", "2", "3"), ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2), True),
        (("a", "b"), ("LABEL_0", "LABEL_1"), (0, 1), True),
        (("a", "b", "c"), ("LABEL_0", "LABEL_1"), (None, None, None), False),
        (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), (1, 0), False),
    ],
)
def test_names_match_exactly_first_then_as_they_are_usually_written(wanted, held, rows, nameless) -> None:
    found = head_rows(wanted, held)
    assert (found.rows, found.nameless) == (rows, nameless)
    assert (found.note("the checkpoint") is None) == (rows == tuple(range(len(held))) and not nameless)


@pytest.mark.parametrize(
    ("family", "task", "names"),
    [
        ("bert", "sequence_classification", ["classifier.weight", "classifier.bias"]),
        ("roberta", "sequence_classification", ["classifier.out_proj.weight", "classifier.out_proj.bias"]),
        ("llama", "sequence_classification", ["score.weight"]),
        (
            "bart",
            "sequence_classification",
            ["classification_head.out_proj.weight", "classification_head.out_proj.bias"],
        ),
        ("modernbert", "token_classification", ["classifier.weight", "classifier.bias"]),
        ("llama", "causal_lm", []),
    ],
)
def test_the_parameters_with_a_row_for_each_label_are_found_by_building(family, task, names) -> None:
    # 32 labels: as many as the hidden size, so that sizes alone would not tell
    assert label_parameters(tiny_model(family, task, num_labels=32), task) == names


def _loaded(directory: Path, task, names, problem="single_label") -> tuple[Loaded, dict[str, torch.Tensor]]:
    save = {"id2label": dict(enumerate(HELD)), "label2id": {name: i for i, name in enumerate(HELD)}}
    spec = ModelSpec(name_or_path=str(directory))
    if not directory.exists():
        save_tiny(directory, "roberta", task, **save)
    loaded = load_model(spec, task, labels=LabelSpec(problem, names))
    return loaded, load_file(directory / "model.safetensors")


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
@pytest.mark.parametrize(
    ("names", "rows", "words"),
    [
        (HELD, (0, 1, 2), None),
        (("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), (0, 2, 1), "follow the names"),
        (("entailment", "neutral"), (2, 1), "CONTRADICTION is not used"),
        (("contradiction", "neutral", "other"), (0, 1, None), "other is new"),
        (("a", "b", "c", "entailment"), (None, None, None, 2), "a, b, c are new"),
        (("a", "b", "c"), (None, None, None), "new random values"),
        (("a", "b"), (None, None), "random values"),
    ],
)
def test_a_trained_heads_rows_go_where_their_names_are(tmp_path, task, names, rows, words) -> None:
    problem = "single_label" if task == "sequence_classification" else "token"
    loaded, stored = _loaded(tmp_path / "base", task, names, problem)
    again, _ = _loaded(tmp_path / "base", task, names, problem)
    for name in loaded.label_parameters:
        got = loaded.model.get_parameter(name)
        assert torch.equal(got, again.model.get_parameter(name))
        assert len(got) == len(names)
        for new, old in enumerate(rows):
            if old is not None:
                assert torch.equal(got[new], stored[name][old])
            elif got.dim() == 2:
                assert not any(torch.equal(got[new], row) for row in stored[name])
    assert loaded.model.config.id2label == dict(enumerate(names))
    assert loaded.head_note is None if words is None else words in loaded.head_note


def test_eval_of_an_untrained_base_uses_its_head_by_name(recipe, tmp_path) -> None:
    base = tmp_path / "base"
    save_tiny(base, "bert", "sequence_classification", id2label=dict(enumerate(HELD)))
    rows = [{"text": "the cat", "label": name} for name in (*["ENTAILMENT"] * 8, "CONTRADICTION", "NEUTRAL")]
    loaded = recipe("bert", "sequence_classification", rows, model=base)
    sure = load_file(base / "model.safetensors")
    sure["classifier.bias"] = torch.tensor([0.0, 0.0, 9.0])
    save_file(sure, base / "model.safetensors", metadata={"format": "pt"})
    notes: list[str] = []
    data = tmp_path / "run.jsonl"
    assert evaluate_run(loaded.path, str(data), note=notes.append)["eval_accuracy"] == 0.8
    assert any("follow the names of the labels" in note for note in notes)


def test_init_from_takes_rows_by_name_and_says_what_is_new(recipe, recorder) -> None:
    texts = ["the cat sat", "red dog ran"]
    rows = [{"text": texts[i % 2], "label": ("good", "bad")[i % 2]} for i in range(8)]
    first = recipe("bert", "sequence_classification", rows, name="one")
    train(first)
    again = [{"text": texts[i % 2], "label": ("good", "zebra")[i % 2]} for i in range(8)]
    second = recipe("bert", "sequence_classification", again, name="two", training__max_steps=1,
                    training__learning_rate=1e-12, method__init_from=first.recipe.output_dir)  # fmt: skip
    train(second, reporter=recorder)
    one, two = (load_file(f"{r.recipe.output_dir}/adapter/adapter_model.safetensors") for r in (first, second))
    key = next(key for key in one if key.endswith("classifier.weight"))
    assert torch.allclose(two[key][0], one[key][1], atol=1e-6)  # good: bad, good -> good, zebra
    assert not torch.allclose(two[key][1], one[key][0], atol=1e-3)
    told = [note for note in recorder.notes if "head" in note]
    assert len(told) == 1
    assert "zebra is new" in told[0]
    assert "bad is not used" in told[0]


def test_a_new_row_has_the_familys_own_random_values(tmp_path) -> None:
    loaded, _ = _loaded(tmp_path / "base", "sequence_classification", ("a", "b", "c"))
    layer = loaded.model.get_submodule("classifier.out_proj")
    assert isinstance(layer, nn.Linear)
    assert float(layer.bias.detach().abs().max()) == 0.0
    assert 0.005 < float(layer.weight.detach().std()) < 0.05


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_new_head_drawn_again_is_the_one_that_transformers_drew(family: str, tmp_path: Path) -> None:
    """On a card it is: the seed then gives the head that it gives on the CPU."""
    save_tiny(tmp_path / "base", family, "base")
    model = load_model(ModelSpec(name_or_path=str(tmp_path / "base")), "sequence_classification", seed=3).model
    names = [name for name, _ in model.named_parameters() if "classif" in name or name.startswith("score")]
    drawn = {name: model.get_parameter(name).detach().clone() for name in names}
    for name in names:
        model.get_parameter(name).data.zero_()
    start_anew(model, names, 3)
    assert names and all(torch.equal(model.get_parameter(name), value) for name, value in drawn.items())
