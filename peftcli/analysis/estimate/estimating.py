"""`peft estimate`: the memory and the time of a recipe's run, from its config or its rows, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from peftcli.analysis.estimate.counted_bytes import Counted
from peftcli.analysis.estimate.fake_base import as_held
from peftcli.analysis.estimate.largest_batches import (
    evaluation_rows,
    largest,
    look_ahead_rows,
    shapes,
    step_sizes,
    target_lengths,
)
from peftcli.analysis.estimate.library_memory import library_bytes
from peftcli.analysis.estimate.memory_parts import PARTS, Device, Estimate
from peftcli.analysis.estimate.published_error import Tier
from peftcli.analysis.estimate.simulated_run import Setting, WholeModel, Work
from peftcli.analysis.estimate.step_rates import kept_rate
from peftcli.analysis.estimate.synthetic_rows import (
    CutRows,
    EqualRows,
    assumed_labels,
    first_of_stream,
    with_reference,
)
from peftcli.assembly.collect_problems import located
from peftcli.assembly.outline import method_problems, model_spec
from peftcli.assembly.positions_left import positions_left
from peftcli.assembly.precision import Precision, decide_precision
from peftcli.assembly.recipe_data import prepare_data
from peftcli.assembly.recipe_task import make_task
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.labels import LabelSpec
from peftcli.distributed.accelerate_engine import accelerate_state_kept
from peftcli.distributed.devices import free_bytes, pick_device
from peftcli.distributed.processes import World
from peftcli.distributed.strategy import Strategy, choose_strategy
from peftcli.errors import PeftCliError, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.dtypes import checkpoint_dtype, choose_dtype
from peftcli.models.load.load_model import load_config, shape_of
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.model_files import find_source
from peftcli.models.load.quantization import divided_problems
from peftcli.models.load.tokenizers import load_tokenizer_with_notes
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.stored_quantised import may_be_quantised, stored_bits, stored_packed, stored_settings
from peftcli.process_state import freed_memory_can_stay, libraries_quiet
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import DataSpec, Recipe
from peftcli.tasks.task_table import row_sequences, task_info
from peftcli.training.speed.fast_paths import AllowedPaths
from peftcli.training.speed.recomputation import Need
from peftcli.training.speed.sharing_prompts import may_share_prompts
from peftcli.training.step_plan import StepPlan, make_plan, token_limit

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Basis:
    """What an estimate starts from: a recipe's model and rows, looked at once.

    Args:
        train: rows to train on; of a stream, its first ones.
        rows: how many the run has.
        validation: rows that are evaluated; empty without an evaluation.
        notes: why no data was read, and what is not known of the base.
    """

    loaded: LoadedRecipe
    tier: Tier
    device: torch.device
    anatomy: Anatomy
    tokenizer: PreTrainedTokenizerBase
    train: RowSet
    rows: int
    validation: RowSet | None
    labels: LabelSpec | None
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @cached_property
    def config(self) -> PretrainedConfig:
        """The base's config, to be read; what builds a model from it loads its own."""
        return load_config(self.recipe.model)

    @property
    def weights_are_float32(self) -> bool:
        """Whether the frozen weights would be held in float32."""
        spec = model_spec(self.recipe)
        found, _ = choose_dtype(spec, self.config, find_source(spec.name_or_path), self.device)
        return found == torch.float32

    @property
    def packed_by_recipe(self) -> bool:
        """Whether the base is held in fewer bits, whatever the method."""
        spec = self.recipe.model
        return spec.load_in_4bit or spec.load_in_8bit or stored_packed(self.config)

    @property
    def packed(self) -> bool:
        """Whether the base is held in fewer bits, with this method."""
        return self.packed_by_recipe or model_spec(self.recipe).load_in_4bit

    @property
    def may_be_quantised(self) -> bool:
        """Whether the base can be loaded in fewer bits than its checkpoint has."""
        return may_be_quantised(self.config)

    @property
    def can_be_divided(self) -> bool:
        """Whether the base can be divided among processes."""
        return not divided_problems(self.config)

    @property
    def sequences(self) -> int:
        """Sequences of a row, each of max_length tokens at most."""
        return row_sequences(self.recipe)

    def with_rows_cut(self, length: int) -> Basis:
        """Return this with no sequence longer than so many tokens."""
        kind = task_info(self.recipe.task).rows
        held = None if self.validation is None else CutRows(self.validation, length, kind, self.sequences)
        return replace(self, train=CutRows(self.train, length, kind, self.sequences), validation=held)


def read_basis(loaded: LoadedRecipe) -> Basis:
    """Look at a recipe's config, and at its rows where they are there.

    Raises:
        UserError: the model has no config, cannot do the task, or the method does not fit it.
    """
    recipe = loaded.recipe
    device = pick_device(recipe.training.device)
    config = load_config(recipe.model)
    spec = model_spec(recipe)
    meta = build_meta(config, recipe.task, spec.num_labels or 2, trust_remote_code=spec.trust_remote_code)
    anatomy = read_anatomy(meta, recipe.model.anatomy)
    if problems := method_problems(registry.info(recipe.method.name), recipe.task, spec, config):
        raise UserError(located(loaded, problems))
    apply_method(meta, anatomy, recipe.method, train_head=recipe.training.train_head)
    notes = _of_base(config)
    tokenizer: Any = None
    kind = task_info(recipe.task).rows
    evaluates = recipe.training.eval_strategy != "no"
    try:
        tokenizer, _ = load_tokenizer_with_notes(spec)
        if recipe.data is not None:
            return basis_of_rows(loaded, tokenizer, anatomy, prepare_data(loaded, tokenizer, anatomy, World(device)))
    except UserError as error:
        notes.append(f"no rows were read: {error.problems[0].message}")
    labels = assumed_labels(recipe.task, spec)
    data_spec = recipe.data or DataSpec()
    room = positions_left(anatomy, recipe.method)
    length = data_spec.max_length if room is None else min(data_spec.max_length, room)
    count = recipe.training.per_device_train_batch_size * min(2, recipe.training.gradient_accumulation_steps)
    evaluates = evaluates and bool(data_spec.val_set_size or data_spec.validation)
    eval_rows = EqualRows(recipe.training.per_device_eval_batch_size, length, kind, row_sequences(recipe), labels)
    held_out = with_reference(eval_rows, recipe) if evaluates else None
    rows = with_reference(EqualRows(count, length, kind, row_sequences(recipe), labels), recipe)
    notes.append(
        f"every {'row' if row_sequences(recipe) == 1 else 'answer with its prompt'} is taken to have {length:,} tokens"
    )
    tokenizer = tokenizer or _stand_in()
    return Basis(loaded, "config", device, anatomy, tokenizer, rows, len(rows), held_out, labels, tuple(notes))


def basis_of_rows(
    loaded: LoadedRecipe, tokenizer: PreTrainedTokenizerBase, anatomy: Anatomy, data: PreparedData
) -> Basis:
    """Return what an estimate starts from where the rows are prepared already."""
    recipe = loaded.recipe
    evaluates = recipe.training.eval_strategy != "no"
    held = [rows for rows in data.validation.values() if len(rows) and evaluates]
    longest = max(held, key=lambda rows: int(rows.lengths.max()), default=None)
    first, notes = first_of_stream(data.train)
    train, rows = with_reference(first, recipe), len(data.train)
    held_out = None if longest is None else with_reference(longest, recipe)
    device, notes = pick_device(recipe.training.device), [*_of_base(load_config(recipe.model)), *notes]
    return Basis(loaded, "data", device, anatomy, tokenizer, train, rows, held_out, data.labels, tuple(notes))


def _of_base(config: PretrainedConfig) -> list[str]:
    """Return notes: what is not known of a base from its config."""
    if stored_packed(config) and stored_bits(config) is None:
        return ["the base is stored packed, but its config does not say in how many bits: it is counted as unquantised"]
    return []


def _stand_in() -> Any:
    """Return a tokenizer that knows its padding, for a model that comes without one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def estimate(basis: Basis, changed: Mapping[str, Any] | None = None, *, processes: int = 1) -> Estimate:
    """Return the memory of each device, and the time where a rate was measured.

    Args:
        changed: keys of the recipe that differ, by dotted key (of the blocks model, training and distributed, and
            `data.max_length`); `method` is a whole method's hyper-parameters.
        processes: how many share the work.

    Raises:
        UserError: the model's code asks for values that only weights have.
    """
    changed = changed or {}
    recipe = _with(basis.recipe, changed)
    if "data.max_length" in changed:
        basis = basis.with_rows_cut(int(changed["data.max_length"]))
    strategy = choose_strategy(recipe.distributed, processes, basis.device.type)
    with libraries_quiet(), accelerate_state_kept():
        with _explained():
            setting, work, plan = _setting(basis, recipe, processes)
        quantised = setting.model.load_in_4bit or setting.model.load_in_8bit
        with library_bytes(basis.device, quantised=quantised) as libraries:
            with _explained():
                setting, counted = _counted(setting, work, processes)
            device = _device(counted, setting, libraries(), strategy, processes)
    seconds = None
    if basis.tier == "data":
        rate = kept_rate(recipe, basis.device, shape_of(setting.config()), setting.recomputes)
        tokens = float(basis.train.lengths.mean()) * basis.rows * plan.epochs
        seconds = None if rate is None else tokens / rate / processes
    return Estimate(basis.tier, [device] * processes, seconds, setting.recomputes, list(basis.notes))


def _with(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values, by dotted key."""
    for key, value in changed.items():
        block, _, name = key.partition(".")
        if not name:
            recipe = recipe.model_copy(update={block: value})
            continue
        inner = getattr(recipe, block)
        if inner is not None:
            recipe = recipe.model_copy(update={block: inner.model_copy(update={name: value})})
    return recipe


@contextmanager
def _explained() -> Iterator[None]:
    """Say what helps where a model's code fails without weights.

    Raises:
        UserError: in place of whatever it raises.
    """
    try:
        yield
    except PeftCliError:
        raise
    except Exception as error:
        raise UserError(
            f"the memory of this model cannot be counted without its weights: {type(error).__name__}: {error}",
            suggestion="measure it: peft estimate RECIPE --measure",
        ) from error


def _counted(setting: Setting, work: Work, processes: int) -> tuple[Setting, Counted]:
    """Simulate, with checkpointing where the recipe leaves it open and activations would not fit."""
    left_open = setting.recipe.training.gradient_checkpointing == "auto"
    free = free_bytes(setting.world.device, processes) if left_open else None

    def fits(counted: Counted) -> bool:
        left = (free or 0) - counted.size("base")
        return Need(1, 1, counted.size("kept"), 12 * counted.size("trainable"), left).fits

    whole = WholeModel(setting)
    if free is not None and not whole.can_be_kept(setting, work, fits):
        recomputing = replace(setting, recomputes=True)
        with suppress(UserError):  # a family that does not do it; the run then goes on without
            return recomputing, whole.simulate(recomputing, work)
    return setting, whole.simulate(setting, work)


def _setting(basis: Basis, recipe: Recipe, processes: int) -> tuple[Setting, Work, StepPlan]:
    world, training = World(basis.device), recipe.training
    config, source = load_config(recipe.model), find_source(recipe.model.name_or_path)
    spec = as_held(model_spec(recipe), config)
    dtype, _ = choose_dtype(spec, config, source, basis.device)
    stored = checkpoint_dtype(config, source)
    precision: Precision = decide_precision(training, dtype, basis.device, width=basis.anatomy.hidden_size)
    info = task_info(recipe.task)
    allowed = AllowedPaths.of(recipe, basis.device)
    by_document = bool(info.reads == "text" and allowed.by_document and not training.neftune_noise_alpha)
    joined = by_document and not (recipe.data is not None and recipe.data.packing)
    plan = make_plan(training, basis.rows, processes)
    limit = token_limit(training, basis.device.type, basis.anatomy.hidden_size)
    task = make_task(recipe, basis.tokenizer, basis.labels, train=basis.train if basis.tier == "data" else None)
    collator = Collator(basis.tokenizer, task)
    lengths = collator.lengths(basis.train, joined=joined)
    steps = step_sizes(recipe, basis.train, lengths, plan, limit, joined)
    _, batches = largest(lengths, steps, joined, target_lengths(basis.train))
    held, held_ahead = evaluation_rows(recipe, basis.validation, collator, basis.device.type)
    on_cpu = basis.device.type == "cpu"
    plain = not (spec.load_in_4bit or spec.load_in_8bit or stored_settings(config)) and source.kind == "directory"
    setting = Setting(
        recipe=recipe,
        model=spec,
        config=lambda: load_config(spec),
        tokenizer=basis.tokenizer,
        task=task,
        labels=basis.labels,
        world=world,
        precision=precision,
        by_document=by_document,
        shares_prompts=joined and may_share_prompts(recipe, config, allowed),
        last_block=allowed.last_block and info.rows == "labelled",
        recomputes=training.gradient_checkpointing is True,
        mapped=on_cpu and plain and stored == dtype,
        heap_keeps=training.fast_paths.allocator and freed_memory_can_stay() if on_cpu else None,
    )
    ahead = look_ahead_rows(recipe, basis.train, steps, limit)
    return setting, Work(basis.train, batches, held, ahead, held_ahead, shapes(lengths, steps, joined)), plan


def _device(counted: Counted, setting: Setting, libraries: int, strategy: Strategy, processes: int) -> Device:
    """Return the peak of one device and its parts; a base that is divided counts its share and what is gathered."""
    parts = dict.fromkeys(PARTS, 0) | counted.parts | {"libraries": libraries}
    if counted.size("heap"):
        beside = counted.own_base if setting.mapped else 0
        parts["fragments"] = max(0, counted.size("heap") - (counted.peak - beside))
    if strategy.sharded:
        base = counted.own_base
        gathered = min(base, 2 * counted.size("largest_block") + counted.size("outside"))
        gathered = gathered if strategy.reshard_after_forward else base
        share = 0 if strategy.cpu_offload else 1 / processes  # what is offloaded is in the memory of the host
        parts["weights"] += round(share * base) + gathered - base
        if registry.info(setting.recipe.method.name).artifact == "model":  # else what trains is whole in each process
            parts |= {part: round(share * parts[part]) for part in ("gradients", "optimizer")}
    return Device(sum(parts.values()), parts | {"evaluation": counted.size("evaluation")})
