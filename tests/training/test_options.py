"""Options of training and evaluation, each seen to do what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening, open_run
from peftcli.inference.predict_run import predict_run
from peftcli.tasks.class_weights import balanced_weights
from peftcli.training import milestones
from peftcli.training.run import train
from tests.recipes import WORDS, chat_rows, class_rows, write_jsonl


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "r": 4, "modules_to_save": ["embeddings"]}])
@pytest.mark.parametrize("task", ["sequence_classification"])
def test_what_is_saved_is_what_was_evaluated(recipe, method, task) -> None:
    loaded = recipe("bert", task, method=method, data__val_set_size=6)
    summary = train(loaded)
    out = Path(loaded.recipe.output_dir)
    assert (out / ("model" if method["name"] == "full" else "adapter")).is_dir()
    again = evaluate_run(out)
    assert again["eval_loss"] == pytest.approx(summary.eval["eval_loss"], rel=1e-6)
    assert again["eval_accuracy"] == summary.eval["eval_accuracy"]


def test_predictions_of_a_classifier_name_the_labels_in_order(recipe, models, tmp_path) -> None:
    rows = class_rows(24)
    wide = models("bert", "sequence_classification", initializer_range=0.2)  # learns in fewer steps
    train(loaded := recipe("bert", "sequence_classification", rows, model=wide, training__max_steps=60))
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in rows])
    predicted = list(predict_run(loaded.recipe.output_dir, str(texts)))
    assert [row["prediction"] for row in predicted] == [row["label"] for row in rows]
    for row in predicted:
        assert sum(row["scores"].values()) == pytest.approx(1.0, abs=1e-5)
        assert max(row["scores"], key=row["scores"].get) == row["prediction"]


def test_other_label_kinds_predict_their_own_values(recipe, tmp_path) -> None:
    pets = [{"text": w, "labels": [k for k in ("pet", "noun") if (k == "pet") == (w in ("cat", "dog"))]} for w in WORDS]
    loaded = recipe("bert", "sequence_classification", pets * 2, training__max_steps=60, training__learning_rate=0.01)
    train(loaded)
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in pets])
    assert [row["prediction"] for row in predict_run(loaded.recipe.output_dir, str(texts))] == [
        row["labels"] for row in pets
    ]
    numbers = [{"text": w, "label": i / 4} for i, w in enumerate(WORDS)]
    loaded = recipe("bert", "sequence_classification", numbers, name="numbers", training__max_steps=60,
                    data__val_set_size=3, training__metrics=["spearman", "mae"])  # fmt: skip
    summary = train(loaded)
    assert {"eval_mse", "eval_pearson", "eval_spearman", "eval_mae"} <= set(summary.eval)
    (row, *_) = predict_run(loaded.recipe.output_dir, str(texts))
    assert isinstance(row["prediction"], float)


def test_tags_are_predicted_word_by_word(recipe, models, tmp_path) -> None:
    rows = []
    for i in range(24):
        words = [WORDS[i % 12], WORDS[(i * 5) % 12], WORDS[(i * 7) % 12]]
        rows.append({"tokens": words, "tags": ["B-PET" if word in ("cat", "dog", "mat") else "O" for word in words]})
    wide = models("bert", "token_classification", initializer_range=0.2)
    loaded = recipe("bert", "token_classification", rows, model=wide, training__max_steps=60, data__val_set_size=6,
                    training__metrics=["f1"])  # fmt: skip
    summary = train(loaded)
    assert summary.eval["eval_f1"] > 0.9 and summary.eval["eval_accuracy"] > 0.9
    words = write_jsonl(tmp_path / "words.jsonl", [{"tokens": row["tokens"]} for row in rows])
    predicted = list(predict_run(loaded.recipe.output_dir, str(words)))
    right = [p["prediction"] == row["tags"] for p, row in zip(predicted, rows, strict=True)]
    assert sum(right) > 20
    assert all(len(p["scores"]) == 3 for p in predicted)


def test_the_evaluation_before_the_first_step_can_be_left_out_and_changes_no_number(recipe) -> None:
    rows, options = class_rows(24), {"data__val_set_size": 6, "training__max_steps": 2}
    usual = train(recipe("bert", "sequence_classification", rows, **options))
    without = train(recipe("bert", "sequence_classification", rows, name="w", training__eval_on_start=False, **options))
    assert usual.eval_before is not None and without.eval_before is None
    assert (without.eval["eval_loss"], without.train_loss) == (usual.eval["eval_loss"], usual.train_loss)


def test_label_smoothing_and_class_weights_change_training_and_not_evaluation(recipe) -> None:
    rows = class_rows(24)
    options = {"data__val_set_size": 6, "training__max_steps": 1}
    shape = {"training__label_smoothing_factor": 0.2, "training__class_weights": [1.0, 5.0, 0.5]}
    plain = train(recipe("bert", "sequence_classification", rows, **options))
    shaped = train(recipe("bert", "sequence_classification", rows, name="shaped", **options, **shape))
    assert shaped.eval_before["eval_loss"] == plain.eval_before["eval_loss"]
    assert shaped.train_loss != plain.train_loss
    with pytest.raises(UserError, match="2 class weights for 3 classes"):
        train(recipe("bert", "sequence_classification", rows, name="wrong", training__class_weights=[1.0, 2.0]))


def test_weighted_loss_of_any_split_is_torchs_weighted_mean() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 3), torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 0, 0])
    weight = balanced_weights(labels.tolist(), 3)
    whole = F.cross_entropy(logits, labels, weight=weight)
    parts = [F.cross_entropy(logits[s], labels[s], weight=weight, reduction="sum") for s in (slice(0, 3), slice(3, 10))]
    torch.testing.assert_close(sum(parts) / weight[labels].sum(), whole)
    assert float(weight[labels].sum()) == pytest.approx(10.0)


def test_several_validation_sets_are_reported_by_name_and_together(recipe, tmp_path) -> None:
    sets = [
        {"path": str(write_jsonl(tmp_path / f"{name}.jsonl", chat_rows(count))), "name": name}
        for name, count in (("news", 3), ("chat", 5))
    ]
    summary = train(recipe(data__validation=sets, training__metric_for_best_model="eval_news_loss"))
    scores = summary.eval
    assert {"eval_loss", "eval_news_loss", "eval_chat_loss", "eval_news_perplexity"} <= set(scores)
    low, high = sorted((scores["eval_news_loss"], scores["eval_chat_loss"]))
    assert low <= scores["eval_loss"] <= high and scores["eval_rows"] == 8


def test_text_metrics_and_samples_come_from_generation(recipe, recorder, monkeypatch) -> None:
    monkeypatch.setattr(milestones, "_SAMPLE", 4)
    loaded = recipe(data__val_set_size=4, training__metrics=["exact_match", "rouge", "bleu", "token_accuracy"],
                    training__eval_generate=2, training__max_new_tokens=4, training__max_steps=2)  # fmt: skip
    summary = train(loaded, reporter=recorder)
    names = {"exact_match", "rouge1", "rougeL", "bleu", "token_accuracy"}
    assert {f"eval_{name}" for name in names} <= set(summary.eval)
    samples = [json.loads(x) for x in (Path(loaded.recipe.output_dir) / "samples.jsonl").read_text().splitlines()]
    assert [sample["row"] for sample in samples] == [0, 1]
    assert set(samples[0]) == {"step", "row", "prompt", "prediction", "reference"}
    shown = next(note for note in recorder.notes if note.startswith("sample: "))
    asked, answer = (" ".join(samples[0][name].split()) for name in ("prompt", "prediction"))
    assert len(answer) > 4  # an answer is cut at its end, a prompt at its beginning
    assert shown == f"sample: ... {asked[-4:].partition(' ')[2]} -> {answer[:4]}..."


def test_a_warm_start_goes_on_from_the_adapter(recipe) -> None:
    first = recipe(name="first", data__val_set_size=4)
    done = train(first)
    second = recipe(name="second", data__val_set_size=4, method__init_from=first.recipe.output_dir)
    assert train(second).eval_before["eval_loss"] == done.eval["eval_loss"]
    with pytest.raises(UserError, match="does not fit this model"):
        train(recipe(name="third", method__init_from=first.recipe.output_dir, method__r=2))


COMPOSED = {"name": "compose", "parts": [{"name": "parallel_adapter", "bottleneck_size": 4, "scaling": 2.0}]}
OTHER_SCALING = {"name": "compose", "parts": [{"name": "parallel_adapter", "bottleneck_size": 4, "scaling": 3.0}]}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"name": "lora", "r": 4}, {"name": "lora", "r": 4, "lora_alpha": 64}, "lora_alpha 16 (here 64)"),
        (
            {"name": "vera", "r": 4},
            {"name": "vera", "r": 4, "projection_prng_key": 5},
            "projection_prng_key 0 (here 5)",
        ),
        (COMPOSED, OTHER_SCALING, "parts.0.scaling 2.0 (here 3.0)"),
        ({"name": "lora", "r": 4}, {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}, None),
    ],
)
def test_an_adapter_that_starts_with_other_values_is_told(recipe, recorder, first, second, told) -> None:
    """Its weights fit, and do something else under another scale or with other frozen matrices."""
    options = {"training__max_steps": 1, "training__learning_rate": 0.01}
    trained = recipe(name="first", method=first, **options)
    train(trained)
    train(
        recipe(name="second", method={**second, "init_from": trained.recipe.output_dir}, **options), reporter=recorder
    )
    notes = [note for note in recorder.notes if "method.init_from" in note]
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_bfloat16_weights_train_evaluate_and_open_again(recipe) -> None:
    loaded = recipe("bert", "sequence_classification", data__val_set_size=6, model__dtype="bfloat16")
    summary = train(loaded)
    assert summary.precision.startswith("bf16 (training.bf16 is off")  # and how a processor without them multiplies
    again = evaluate_run(loaded.recipe.output_dir)
    assert again["eval_loss"] == pytest.approx(summary.eval["eval_loss"], rel=1e-6)
    opened = open_run(loaded.recipe.output_dir, Opening("float32"))
    assert "results can differ" in opened.notes[0]


def test_a_validation_set_is_asked_for_where_there_is_none(recipe) -> None:
    loaded = recipe(training__max_steps=1)
    assert train(loaded).eval is None
    with pytest.raises(UserError, match="--data"):
        evaluate_run(loaded.recipe.output_dir)


def test_packed_rows_train_like_any_other(recipe, recorder) -> None:
    train(recipe(data__packing=True, training__max_steps=3, training__per_device_train_batch_size=1), reporter=recorder)
    assert recorder.losses[-1] < recorder.losses[0]


def test_tensorboard_gets_every_line_and_wandb_is_asked_for(recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = recipe(training__report_to=["tensorboard"], training__max_steps=3)
    train(loaded)
    files = (Path(loaded.recipe.output_dir) / "logs").rglob("events*")
    read = EventAccumulator(str(min(files, key=lambda path: len(path.parts)).parent))  # deeper ones hold the recipe
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3]
    with pytest.raises(UserError, match="wandb is not installed"):
        train(recipe(name="wandb", training__report_to=["wandb"]))


def test_pushing_needs_a_token_before_anything_is_loaded(recipe, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="hf auth login"):
        train(recipe(training__push_to_hub="me/adapter"))


def test_a_profile_is_a_trace_and_a_table(recipe, recorder) -> None:
    loaded = recipe(training__max_steps=8)
    train(loaded, reporter=recorder, profile=True)
    profile = Path(loaded.recipe.output_dir) / "profile"
    assert json.loads((profile / "trace.json").read_text())["traceEvents"]
    table = (profile / "table.txt").read_text()
    assert "addmm" in table or "mm" in table
    assert any("profile of 3 steps" in note for note in recorder.notes)
