"""Estimates from the config alone: every method, and what raises and lowers the memory."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from peftcli.analysis.contract_models import MODELS
from peftcli.analysis.estimate import estimating, fewer_blocks, library_memory, live_tensors, simulated_run
from peftcli.analysis.estimate.counted_bytes import Counted
from peftcli.analysis.estimate.estimating import estimate, read_basis
from peftcli.analysis.estimate.memory_options import options
from peftcli.analysis.estimate.memory_parts import PARTS, Estimate
from peftcli.analysis.estimate.product_memory import COMPILED
from peftcli.analysis.estimate.simulated_run import Setting, WholeModel, Work
from peftcli.distributed.strategy import Strategy
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe, recipe_from_overrides
from peftcli.training.speed.recomputation import BESIDE, SHARE, Need

TASKS = {"llama": "causal_lm", "bert": "sequence_classification"}


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries are measured once in their own test; elsewhere differences count."""
    monkeypatch.setattr(estimating, "library_bytes", lambda _device, *, quantised: nullcontext(lambda: 0))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a directory with nothing but a config, by model."""
    made = {}
    for kind in MODELS:
        if kind.title in TASKS:
            made[kind.title] = tmp_path_factory.mktemp(kind.title)
            kind.made_config().save_pretrained(made[kind.title])
    return made


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Return a llama's config whose activations outweigh the small objects between them."""
    config = next(kind for kind in MODELS if kind.title == "llama").made_config()
    config.hidden_size, config.intermediate_size, config.max_position_embeddings = 512, 1024, 1024
    config.num_hidden_layers = 6
    config.save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def recipe(directory: Path, task: str, method: str = "lora", *changes: str) -> LoadedRecipe:
    """Return a recipe without data for a model that is only a config."""
    given = [f"model.name_or_path={directory}", f"task={task}", f"method.name={method}", "data.path=nowhere.jsonl"]
    return recipe_from_overrides("test", [*given, "data.max_length=32", "training.bf16=false", *changes], NAMES)


def simulate(setting: Setting, work: Work) -> Counted:
    """Return what two steps of a model that is built for them count."""
    return WholeModel(setting).simulate(setting, work)


def estimated(directory: Path, task: str, method: str = "lora", *changes: str) -> Estimate:
    return estimate(read_basis(recipe(directory, task, method, *changes)))


NAMED = [name for name in registry.names() if name != "compose"]
SMALLER = {"miss": ["method.r=16"], "shira": ["method.r=8"]}
"""What does not fit a model of width 32 by default."""
ON_LLAMA = ("lora", "full", "prefix_tuning", "prompt_tuning", "adapter")


@pytest.mark.parametrize(("method", "title"), [(n, "bert") for n in NAMED] + [(n, "llama") for n in ON_LLAMA])
def test_every_method_is_estimated(method: str, title: str, directories: dict[str, Path]) -> None:
    info = registry.info(method)
    task = TASKS[title] if not info.tasks or TASKS[title] in info.tasks else sorted(info.tasks)[0]
    found = estimated(directories[title], task, method, *SMALLER.get(method, []))
    assert found.tier == "config" and found.seconds is None
    parts = dict(found.devices[0].parts)
    assert set(parts) == {*PARTS, "evaluation"} and parts["weights"] > 0 and parts["optimizer"] > 0
    parts.pop("evaluation")
    assert found.peak == sum(parts.values()) > parts["weights"]


def test_a_deep_model_is_as_its_first_blocks_say(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = next(kind for kind in MODELS if kind.title == "llama")
    config = kind.made_config()
    config.num_hidden_layers = 14
    config.save_pretrained(tmp_path)
    short = estimated(tmp_path, "causal_lm").devices[0].parts
    monkeypatch.setattr(fewer_blocks, "RUN_WHOLE", 100)
    whole = estimated(tmp_path, "causal_lm").devices[0].parts
    short.pop("fragments"), whole.pop("fragments")  # of so small a model, the C library's own units
    assert short == whole


def test_gaps_of_a_deep_model_are_not_multiplied(wide: Path) -> None:
    config = LlamaConfig.from_pretrained(wide)
    config.num_hidden_layers = 40
    config.save_pretrained(wide)
    parts = estimated(wide, "causal_lm", "lora", "training.gradient_checkpointing=true").devices[0].parts
    passing = sum(parts[part] for part in ("gradients", "activations", "logits"))
    of_libraries = 50e6 + 8e6 * torch.get_num_threads()  # what their products keep
    assert 0 < parts["fragments"] < passing + of_libraries


def test_a_run_over_rows_of_many_lengths_keeps_products_of_each(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = read_basis(recipe(directories["llama"], "causal_lm", "lora", "training.bf16=true"))
    if not estimate(basis).devices[0].parts["fragments"]:
        pytest.skip("the C library is another one than glibc")
    found = []
    for count in (1, 11):
        monkeypatch.setattr(estimating, "shapes", lambda *_rows, count=count: count)
        found.append(estimate(basis).devices[0].parts["fragments"])
    assert found[1] - found[0] > 10 * 5 * sum(COMPILED)  # at least five products a pass


def test_blocks_that_a_method_treats_differently_are_all_run(directories: dict[str, Path]) -> None:
    assert fewer_blocks._repeats(list("abababab")) == fewer_blocks.Repeats(2, 2, 8)
    assert fewer_blocks._repeats(list("axxxxx")) == fewer_blocks.Repeats(2, 1, 6)
    assert fewer_blocks._repeats(list("xxxxxa")) is None


def test_memory_grows_with_length_and_rows_and_shrinks_with_checkpointing(wide: Path) -> None:
    def lives(*changes: str) -> int:
        fixed = ("data.max_length=512", "training.max_tokens_per_micro_batch=100000")
        found = estimated(wide, "causal_lm", "lora", *fixed, "training.gradient_checkpointing=false", *changes)
        return found.peak - found.devices[0].parts["fragments"]

    plain = lives()
    assert 1.3 * lives("data.max_length=256") < plain < lives("training.per_device_train_batch_size=16") / 1.3
    assert 1.3 * lives("training.gradient_checkpointing=true") < plain


def test_parts_are_those_of_the_recipe(directories: dict[str, Path]) -> None:
    found = estimated(directories["llama"], "causal_lm", "full").devices[0].parts
    lora = estimated(directories["llama"], "causal_lm").devices[0].parts
    assert found["optimizer"] > 1.9 * found["weights"]  # two moments in float32
    assert lora["optimizer"] < lora["weights"] == found["weights"]


def test_what_fits_is_named_with_what_to_type(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("lora", "full", "ia3"))
    basis = read_basis(recipe(wide, "causal_lm", "lora", "data.max_length=256"))
    settings, methods = options(basis, 10**12, 1, lambda _text: None)
    assert settings[0].overrides == "" and settings[0].fits and settings[0].saves == 0
    assert any("training.gradient_checkpointing=true" in option.overrides and option.saves > 0 for option in settings)
    assert any("--num-processes 2" in option.overrides for option in settings)
    halved = next(option for option in settings if "data.max_length=128" in option.overrides)
    assert halved.saves > 0
    by_name = {option.method: option for option in methods}
    assert set(by_name) == {"full", "ia3"} and by_name["full"].saves < by_name["ia3"].saves
    assert by_name["ia3"].overrides == "method.name=ia3"


def test_methods_are_tried_with_what_takes_least_where_nothing_fits(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("lora", "ia3"))
    settings, methods = options(read_basis(recipe(directories["llama"], "causal_lm")), 1, 1, lambda _text: None)
    assert not any(option.fits for option in [*settings, *methods])
    least = min(settings, key=lambda option: option.peak)
    assert methods[0].overrides == f"method.name=ia3 {least.overrides}"


def test_preferences_are_estimated_with_both_answers(directories: dict[str, Path]) -> None:
    basis = read_basis(recipe(directories["llama"], "preference", "lora", "training.gradient_checkpointing=false"))
    assert basis.train.lengths[0] == 2 * 32 and len(basis.train[0].input_ids) == 2 * 32
    whole, cut = estimate(basis), estimate(basis, {"data.max_length": 8})
    assert whole.tier == "config" and cut.devices[0].parts["activations"] < whole.devices[0].parts["activations"]
    live = estimate(basis, {"training.reference": "live"})  # with a frozen copy of the trained values
    assert live.devices[0].parts["adapter"] >= 2 * whole.devices[0].parts["adapter"] > 0


def test_the_pass_of_kto_before_a_step_is_counted(directories: dict[str, Path]) -> None:
    """Of mismatched answers: without gradients, and so the smaller one, unless a step's own rows are far fewer."""
    basis = read_basis(recipe(directories["llama"], "preference", "lora", "training.loss_type=kto"))
    setting, work, _ = estimating._setting(basis, basis.recipe, 1)
    assert len(work.ahead) == basis.recipe.training.per_device_train_batch_size
    counted = simulate(setting, work)
    assert 0 < sum(counted.at("ahead").values()) < sum(counted.at("backward").values())
    assert len(work.evaluate_ahead) == len(work.evaluate) > 0
    evaluation = [simulate(setting, replace(work, evaluate_ahead=work.evaluate_ahead * n)) for n in (0, 1, 8)]
    assert evaluation[0].size("evaluation") == evaluation[1].size("evaluation") < evaluation[2].size("evaluation")
    few = replace(work, micro_batches=[work.micro_batches[0][:1]], evaluate=(), ahead=work.ahead * 8)
    without = simulate(setting, replace(few, ahead=()))
    assert simulate(setting, few).peak > without.peak and not without.at("ahead")
    pairs = read_basis(recipe(directories["llama"], "preference", "lora"))
    assert not estimating._setting(pairs, pairs.recipe, 1)[1].ahead


def test_another_method_is_typed_without_keys_of_the_recipes_own(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("lora", "ia3"))
    model = f"model.name_or_path={directories['llama']}"
    given = ["task=causal_lm", "method.name=lora", "method.r=4", model, "data.path=nowhere.jsonl"]
    _, methods = options(read_basis(recipe_from_overrides("test", given, NAMES)), 10**12, 1, print)
    (typed,) = shlex.split(methods[0].overrides)
    changed = recipe_from_overrides("test", [*given, typed], NAMES)
    assert changed.recipe.method.name == "ia3"


def test_libraries_are_measured_in_a_process_of_their_own() -> None:
    found = []
    for _ in range(2):
        with library_memory.library_bytes(torch.device("cpu"), quantised=False) as measured:
            found.append(measured())
    assert found[0] == found[1] and 100e6 < found[0] < 3e9


def test_libraries_are_measured_beside_what_is_done_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child waits for a file that is written inside; after an error it is ended."""
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there"
    waits = f"import os, time\nwhile not os.path.exists({str(there)!r}): time.sleep(0.01)\nprint(123456)"
    monkeypatch.setattr(library_memory, "_CHILD", waits)
    device = torch.device("cpu")
    with pytest.raises(ValueError, match="inside"), library_memory.library_bytes(device, quantised=False):
        raise ValueError("inside")
    with library_memory.library_bytes(device, quantised=False) as measured:
        there.touch()
        assert measured() == 123456
    monkeypatch.setattr(library_memory, "_CHILD", "raise SystemExit(1)")
    with library_memory.library_bytes(device, quantised=False) as measured:
        assert measured() == 123456  # kept
    with library_memory.library_bytes(device, quantised=True) as measured:
        assert measured() == 0


@pytest.mark.parametrize("enough", [True, False])
def test_checkpointing_is_left_out_where_what_a_pass_keeps_fits(
    wide: Path, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = read_basis(recipe(wide, "causal_lm", "lora", "data.max_length=256"))
    setting, work, _ = estimating._setting(basis, basis.recipe, 1)
    counted = simulate(setting, work)
    need = Need(1, 1, counted.size("kept"), 12 * counted.size("trainable"), 0)
    free = counted.size("base") + int((need.activations * BESIDE + need.states) / SHARE)
    monkeypatch.setattr(estimating, "free_bytes", lambda *_: free + (1000 if enough else -1000))
    assert counted.size("kept") > 1e6 and estimate(basis).recomputes is not enough


def test_nothing_is_run_to_decide_on_checkpointing_where_the_weights_do_not_fit(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "free_bytes", lambda *_: 1000)
    monkeypatch.setattr(simulated_run, "_count_forward", None)
    assert estimate(read_basis(recipe(wide, "causal_lm"))).recomputes


@pytest.mark.parametrize("method", ["lora", "full"])
def test_passes_that_are_left_out_of_a_loss_change_nothing(
    method: str, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig.from_pretrained(wide)
    config.vocab_size, config.num_hidden_layers = 9000, 13
    config.save_pretrained(wide)
    few = dict(estimated(wide, "causal_lm", method, "data.max_length=512").devices[0].parts)
    monkeypatch.setattr(live_tensors, "passes_that_show_memory", nullcontext)
    every = dict(estimated(wide, "causal_lm", method, "data.max_length=512").devices[0].parts)
    fragments = [parts.pop("fragments") for parts in (few, every)]
    assert few == every
    assert fragments[0] == pytest.approx(fragments[1], rel=0.05)  # what lies between live blocks depends on the order


def test_a_config_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        read_basis(recipe(tmp_path, "causal_lm"))


def test_an_adapter_beside_weights_that_lie_in_their_files_counts_once(wide: Path) -> None:
    given = ("method.target_modules=all-linear", "training.gradient_checkpointing=false")
    low, high = (estimated(wide, "causal_lm", "lora", f"method.r={r}", *given).devices[0].parts for r in (8, 128))
    if not low["fragments"]:
        pytest.skip("the C library is another one than glibc")
    assert high["fragments"] - low["fragments"] < 0.5 * (high["adapter"] - low["adapter"])


def test_a_divided_base_counts_what_a_process_holds_of_it(wide: Path) -> None:
    def parts(method: str, *changes: str, processes: int = 4) -> dict[str, int]:
        basis = read_basis(recipe(wide, "causal_lm", method, "distributed.strategy=fsdp", *changes))
        return estimate(basis, processes=processes).devices[0].parts

    whole, few = parts("lora", processes=1), parts("lora")
    kept = parts("lora", "distributed.reshard_after_forward=false")
    assert few["weights"] < whole["weights"] and few["optimizer"] == whole["optimizer"]
    assert kept["weights"] == whole["weights"] + round(whole["weights"] / 4)  # its share, and all that is gathered
    whole, few = parts("full", processes=1), parts("full")
    assert few["optimizer"] == round(whole["optimizer"] / 4) and few["gradients"] == round(whole["gradients"] / 4)


def test_shares_that_wait_in_the_memory_of_the_host_take_none_of_the_device(wide: Path) -> None:
    basis = read_basis(recipe(wide, "causal_lm"))
    setting, work, _ = estimating._setting(basis, basis.recipe, 4)
    counted = simulate(setting, work)
    here, there = (
        estimating._device(counted, setting, 0, Strategy("fsdp", cpu_offload=offload), 4).parts["weights"]
        for offload in (False, True)
    )
    assert here - there == round(counted.own_base / 4)


def test_compiled_blocks_compute_with_the_weights_themselves(wide: Path) -> None:
    plain, compiled = (
        estimated(wide, "causal_lm", "lora", "training.bf16=true", f"training.torch_compile={on}").devices[0].parts
        for on in ("false", "true")
    )
    assert plain["weights"] > compiled["weights"]


def test_a_family_that_does_not_recompute_is_estimated_without(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object) -> None:
        raise UserError("it does not")

    monkeypatch.setattr(estimating, "free_bytes", lambda *_: 1000)
    monkeypatch.setattr(simulated_run, "enable_checkpointing", refuse)
    assert not estimate(read_basis(recipe(wide, "causal_lm"))).recomputes
