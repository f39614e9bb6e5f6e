"""Gradient checkpointing where memory needs it: the need is measured, the choice told and recorded."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from peftcli.distributed import devices
from peftcli.distributed.devices import free_bytes
from peftcli.distributed.processes import World
from peftcli.distributed.strategy import Strategy
from peftcli.layers.added_modules import is_added
from peftcli.models.few_blocks import FirstBlocks
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.training.run import train
from peftcli.training.setup import build_session
from peftcli.training.speed import recomputation
from peftcli.training.speed.activation_memory import _kept_bytes, activation_cost
from peftcli.training.speed.recomputation import Need, need_of
from peftcli.training.watch.reporting import Silent

CPU = torch.device("cpu")
ALL = FirstBlocks(torch.nn.Module(), {})
"""Nothing is left out."""


def session_of(loaded, tmp_path):
    return build_session(loaded, World(CPU), RunDirectory(tmp_path / "built"), Silent(), TrainState())


def need_for(session) -> Need | None:
    given = session.attachment, session.info, session.task, session.computing, session.anatomy
    return need_of(session.batches, *given)


def long_rows(count: int, words: int) -> list[dict[str, str]]:
    return [{"prompt": "the cat sat " * (words // 6), "completion": "red dog " * (words // 4)} for _ in range(count)]


@pytest.mark.parametrize(
    ("family", "task", "change"),
    [
        ("llama", "causal_lm", {}),
        ("llama", "causal_lm", {"model__attn_implementation": "eager"}),
        ("bert", "sequence_classification", {"training__fast_paths": {"last_block": False}}),
        ("t5", "seq2seq_lm", {}),
    ],
)
def test_short_rows_tell_what_long_ones_keep(recipe, models, tmp_path, family, task, change) -> None:
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = models(family, task, **dropout) if family == "bert" else None
    rows = [{"text": "the cat sat " * 14, "label": "a"}, {"text": "dog " * 42, "label": "b"}]
    rows = rows * 4 if "classification" in task else long_rows(8, 60)
    named = {"model": model} if model is not None else {}
    loaded = recipe(family, task, rows, data__max_length=60, **named, **change)
    session = session_of(loaded, tmp_path)
    row = session.data.train[0]
    assert len(row.input_ids) > 40
    short = activation_cost(session.model, session.task, session.batches.collator, row, session.computing, ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftcli.training.speed.activation_memory.LONGEST_PROBE", len(row.input_ids))
        whole = activation_cost(session.model, session.task, session.batches.collator, row, session.computing, ALL)
    assert short.of(1, len(row.input_ids)) == pytest.approx(whole.of(1, len(row.input_ids)), rel=0.1)
    assert short.of(8, 40) > 7 * short.of(1, 40) - 7 * short.fixed


@pytest.mark.parametrize(
    ("family", "task", "deep", "change"),
    [
        ("llama", "causal_lm", {"num_hidden_layers": 6}, {}),
        ("llama", "causal_lm", {"num_hidden_layers": 9}, {"method__layers_to_transform": [3, 4, 5]}),
        ("llama", "causal_lm", {"num_hidden_layers": 6}, {"method": {"name": "prefix_tuning"}}),
        ("llama", "causal_lm", {"num_hidden_layers": 6}, {"method": {"name": "prompt_tuning"}}),
        ("gpt2", "causal_lm", {"n_layer": 6, "resid_pdrop": 0.1}, {"method": {"name": "bitfit"}}),
        ("llama", "causal_lm", {"num_hidden_layers": 6}, {"model__attn_implementation": "eager"}),
        ("bert", "sequence_classification", {"num_hidden_layers": 6}, {"method": {"name": "adapter"}}),
        ("t5", "seq2seq_lm", {"num_layers": 6}, {}),
    ],
)
def test_a_few_blocks_tell_what_all_keep(recipe, models, tmp_path, family, task, deep, change) -> None:
    loaded = recipe(family, task, model=models(family, task, **deep), **change)
    session = session_of(loaded, tmp_path)
    given = session.model, session.task, session.batches.collator, session.data.train[0], session.computing
    stacks = session.anatomy.layers
    computed: list[int] = []
    for block in (path for stack in stacks.values() for path in stack):
        session.model.get_submodule(block).register_forward_hook(lambda *_: computed.append(1) or None)
    few, all_of_them = activation_cost(*given, FirstBlocks(session.model, stacks)), activation_cost(*given, ALL)
    assert few.of(8, 30) == pytest.approx(all_of_them.of(8, 30), rel=1e-6)
    whole = 3 * sum(map(len, stacks.values()))
    classifies = task == "sequence_classification"  # its last block is cut, and so of a kind of its own
    assert len(computed) == 2 * whole if classifies else len(computed) < 2 * whole


def _with_a_graph() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) and each.grad_fn is not None for each in gc.get_objects())


def test_what_the_probe_kept_is_let_go(recipe, tmp_path) -> None:
    session = session_of(recipe("llama", "causal_lm", long_rows(8, 60), data__max_length=60), tmp_path)
    before = _with_a_graph()
    activation_cost(
        session.model, session.task, session.batches.collator, session.data.train[0], session.computing, ALL
    )
    assert _with_a_graph() == before


def test_attention_that_keeps_its_probabilities_grows_with_the_square(recipe, tmp_path) -> None:
    plain, eager = (
        session_of(recipe(name=name, model__attn_implementation=name), tmp_path / name) for name in ("sdpa", "eager")
    )
    costs = [
        activation_cost(run.model, run.task, run.batches.collator, run.data.train[0], run.computing, ALL).quadratic
        for run in (plain, eager)
    ]
    assert costs[0] < 0.1 * costs[1]


def test_checkpointing_is_off_where_a_step_fits(recipe, recorder) -> None:
    train(recipe(), reporter=recorder)
    assert not [note for note in recorder.notes if "checkpointing" in note]


@pytest.mark.parametrize("fast", [True, False])
def test_checkpointing_is_on_where_it_does_not_and_changes_nothing(recipe, recorder, monkeypatch, fast) -> None:
    train(recipe(name="kept"), reporter=recorder)
    losses = list(recorder.losses)
    recorder.steps.clear()
    monkeypatch.setattr(recomputation, "free_bytes", lambda *_: 100_000)
    switches = {} if fast else {"training__fast_paths": {"padding_free": False}}
    summary = train(recipe(name="recomputed", **switches), reporter=recorder)
    notes = [note for note in recorder.notes if "gradient checkpointing is on" in note]
    assert len(notes) == 1 and "GiB of activations" in notes[0] and "are free" in notes[0]
    # free memory differs from run to run: what it decides must not move a number
    assert recorder.losses == (losses if fast else pytest.approx(losses, rel=1e-5))
    state = next(Path(summary.output_dir).glob("checkpoints/step-*/state.json"))
    assert '["recomputes", true]' in json.dumps(json.loads(state.read_text()))


def test_false_keeps_activations_whatever_is_free(recipe, recorder, monkeypatch) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda *_: 1)
    train(recipe(training__gradient_checkpointing=False), reporter=recorder)
    assert not [note for note in recorder.notes if "checkpointing" in note]


def test_a_resumed_run_does_as_before(recipe, tmp_path, monkeypatch) -> None:
    loaded = recipe()
    with monkeypatch.context() as patch:
        patch.setattr(recomputation, "free_bytes", lambda *_: 1)
        first = session_of(loaded, tmp_path)
    assert first.state.recomputes
    again = build_session(loaded, World(CPU), RunDirectory(tmp_path / "built"), Silent(), TrainState(recomputes=True))
    assert again.state.recomputes
    kept = build_session(loaded, World(CPU), RunDirectory(tmp_path / "built"), Silent(), TrainState(recomputes=False))
    assert not kept.state.recomputes


def test_a_family_without_it_trains_and_says_so(recipe, recorder, monkeypatch) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda *_: 1)
    train(recipe("albert", "sequence_classification"), reporter=recorder)
    [note] = [note for note in recorder.notes if "memory may run out" in note]
    assert "does not support" in note and "per_device_train_batch_size" in note


def test_the_need_is_that_of_the_largest_micro_batch(recipe, tmp_path) -> None:
    small = need_for(session_of(recipe(training__max_tokens_per_micro_batch=24), tmp_path / "a"))
    large = need_for(session_of(recipe(training__per_device_train_batch_size=16), tmp_path / "b"))
    assert small is not None and large is not None
    assert small.rows * small.length <= 24 + small.length
    assert large.rows == 16 and large.activations > 4 * small.activations
    assert Need(1, 10, 1e9, 0, int(2e9)).fits and not Need(1, 10, 1e9, int(1e9), int(2e9)).fits


@pytest.mark.parametrize("limit", [None, 64], ids=["by rows", "by tokens"])
def test_targets_that_are_longer_than_inputs_count(recipe, tmp_path, limit) -> None:
    """The longest input has a short target here, and the others are the other way round."""
    rows = [{"prompt": "the cat " * 22, "completion": "red"}]
    rows += [{"prompt": "a cat", "completion": "red dog on the mat " * 4} for _ in range(7)]
    loaded = recipe("t5", "seq2seq_lm", rows, training__max_tokens_per_micro_batch=limit)
    session = session_of(loaded, tmp_path)
    need = need_for(session)
    assert need is not None
    kept = []
    for share in session.batches.read(0), session.batches.read(1):
        for rows_of_one in (one.rows for one in share):
            batch = session.batches.collator.batch(rows_of_one)
            with torch.enable_grad(), session.computing(batch):
                kept.append(_kept_bytes(session.model.train(), session.task, batch, {}))
    assert 0.9 * max(kept) < need.activations < (2.5 if limit is None else 1.5) * max(kept)


def test_rows_of_a_stream_may_have_targets_of_any_length(recipe, tmp_path) -> None:
    rows = [{"prompt": "the cat sat on the mat", "completion": "red"} for _ in range(32)]
    stored = recipe("t5", "seq2seq_lm", rows, name="stored", data__max_length=40)
    stream = recipe("t5", "seq2seq_lm", rows, name="stream", data__max_length=40, data__streaming=True)
    known, unknown = need_for(session_of(stored, tmp_path / "a")), need_for(session_of(stream, tmp_path / "b"))
    assert known is not None and unknown is not None
    assert (unknown.length, unknown.target) == (40, 40)
    assert unknown.activations > 4 * known.activations


@pytest.mark.parametrize(
    ("strategy", "left"),
    [
        (Strategy(), 6.0),
        (Strategy("fsdp"), 6 / 4 + 2 * 3 / 4),
        (Strategy("fsdp", cpu_offload=True), 2.0),
        (Strategy("fsdp", reshard_after_forward=False), 6.0),
    ],
    ids=["whole", "divided", "divided, on the host", "divided, and kept gathered"],
)
def test_a_base_that_is_still_to_be_divided_gives_memory_back(
    recipe, models, tmp_path, monkeypatch, strategy, left
) -> None:
    """One that is quantised while it loads is read whole; a share of it stays, and two blocks that are gathered."""
    session = session_of(recipe(model=models("llama", "causal_lm", num_hidden_layers=6)), tmp_path)
    monkeypatch.setattr(recomputation, "free_bytes", lambda *_: 10**6)
    world = session.batches.world
    world.size, world.strategy = 4, strategy
    block = session.model.get_submodule(session.anatomy.layers["decoder"][0])
    own = sum(p.nbytes for name, p in block.named_parameters() if not is_added(name))
    need = need_for(session)
    assert need is not None
    assert need.free == pytest.approx(10**6 + (6 - left) * own, abs=10)


def test_a_process_keeps_the_optimizers_state_of_its_share(recipe, tmp_path) -> None:
    session = session_of(recipe(method={"name": "full"}), tmp_path)
    alone = need_for(session)
    world = session.batches.world
    world.size, world.strategy = 4, Strategy("fsdp")
    divided = need_for(session)
    assert alone is not None and divided is not None
    assert divided.states == pytest.approx(alone.states / 4, rel=0.01)


def test_a_containers_limit_counts(tmp_path, monkeypatch) -> None:
    whole = free_bytes(CPU)
    assert whole is not None
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert free_bytes(CPU) == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(CPU) == 400
    assert free_bytes(CPU, processes=2) == 200
