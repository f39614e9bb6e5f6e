"""What a recommendation is for: the model, the task, the rows and the memory, as far as they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from peftcli.analysis.advice.memory_bound import NF4_BYTES, Shapes, memory_needs
from peftcli.assembly.collect_problems import located
from peftcli.assembly.positions_left import positions_left
from peftcli.assembly.recipe_data import prepare_data
from peftcli.data.store.data_report import DataReport
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.layers.chunked_loss import CHUNK_BYTES
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.dtypes import checkpoint_dtype, dtype_named
from peftcli.models.load.load_model import count_parameters, load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.model_files import find_source
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.stored_quantised import may_be_quantised, stored_bits
from peftcli.protocol.rates.default_rate import model_kind
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import DataSpec, Recipe
from peftcli.tasks.language_model import ROWS_ON_A_DEVICE
from peftcli.tasks.task_info import ModelKind
from peftcli.tasks.task_table import row_sequences, task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Situation:
    """What a recommendation is for.

    Args:
        model, task: as in the recipe.
        kind, width: of the model.
        labels: whether the task has a head for labels.
        numbers: of the base.
        rank_numbers: what one rank of LoRA on all linears adds.
        largest_rank: the smaller side of the narrowest linear.
        rows, supervised_tokens: to train on, in one epoch; None where the rows could not be read.
        why_no_rows: why not.
        memory: bytes that were given; None if not.
        micro_rows: rows that fit into a micro-batch; None where nothing fits, 16 without a given memory.
        needs: what the memory asks for: `4bit`, `checkpointing`.
        loss_type: of preference tuning; None is its default.
    """

    model: str
    task: str
    kind: ModelKind
    width: int
    labels: bool
    numbers: int
    rank_numbers: int
    largest_rank: int
    rows: int | None = None
    supervised_tokens: int | None = None
    why_no_rows: str | None = None
    memory: int | None = None
    micro_rows: int | None = 16
    needs: frozenset[str] = field(default_factory=frozenset)
    loss_type: str | None = None

    @property
    def rank_for_tokens(self) -> int:
        """The smallest power of two whose adapter has as many numbers as there are tokens to learn, 8 to 256."""
        wanted = (self.supervised_tokens or 0) / max(1, self.rank_numbers)
        rank = 1 << math.ceil(math.log2(max(8.0, wanted)))
        return max(1, min(rank, 256, self.largest_rank))


def look_at(loaded: LoadedRecipe, memory: int | None) -> Situation:
    """Return the situation of a recipe: of the model only its config is read; the rows are prepared if they are there.

    Args:
        memory: bytes of one device; None if nobody said.

    Raises:
        UserError: there is no such model, or it cannot do the task.
    """
    recipe = loaded.recipe
    spec = recipe.model
    try:
        config = load_config(spec)
        meta = build_meta(config, recipe.task, spec.num_labels or 2, trust_remote_code=spec.trust_remote_code)
        anatomy = read_anatomy(meta, spec.anatomy)
    except UserError as error:
        raise UserError(located(loaded, error.problems)) from error
    report = _report_or_reason(loaded, anatomy)
    known = report if isinstance(report, DataReport) else None
    linears = [(linear.in_features, linear.out_features) for linear in anatomy.linears]
    now = Situation(
        model=spec.name_or_path,
        task=recipe.task,
        kind=model_kind(anatomy),
        width=anatomy.hidden_size,
        labels=task_info(recipe.task).has_labels,
        numbers=count_parameters(meta),
        rank_numbers=sum(map(sum, linears)),
        largest_rank=min(map(min, linears), default=1),
        rows=known.train_rows if known else None,
        supervised_tokens=known.supervised_tokens if known else None,
        why_no_rows=report if isinstance(report, str) else None,
        memory=memory,
        loss_type=recipe.training.loss_type,
    )
    if memory is None:
        return now
    most = _limit(recipe.data) * row_sequences(recipe)
    tokens = min(known.longest, most) if known else most
    rows, needs = memory_needs(_shapes(recipe, config, anatomy, now, tokens), memory)
    return replace(now, micro_rows=rows, needs=needs)


def _shapes(recipe: Recipe, config: PretrainedConfig, anatomy: Anatomy, now: Situation, row_tokens: int) -> Shapes:
    """Return what the memory of a LoRA on all linears depends on, of the highest rank that would be recommended."""
    spec, generates = recipe.model, task_info(recipe.task).generates
    stored = checkpoint_dtype(config, find_source(spec.name_or_path))
    size = float((stored if spec.dtype == "auto" else dtype_named(spec.dtype)).itemsize)
    bits = 4 if spec.load_in_4bit else 8 if spec.load_in_8bit else stored_bits(config)
    vocabulary = int(config.get_text_config().vocab_size) if generates else 0
    chunk = max(ROWS_ON_A_DEVICE, CHUNK_BYTES // (4 * max(1, vocabulary)))
    return Shapes(
        numbers=now.numbers,
        linear_numbers=sum(linear.in_features * linear.out_features for linear in anatomy.linears),
        adapter_numbers=max(16, now.rank_for_tokens) * now.rank_numbers,
        width=now.width,
        blocks=sum(map(len, anatomy.layers.values())),
        row_tokens=row_tokens,
        number_bytes=size,
        linear_bytes=size if bits is None else NF4_BYTES * max(4, bits) / 4,
        can_quantise=bits is None and may_be_quantised(config),
        vocabulary=vocabulary,
        logit_tokens=chunk if recipe.training.fast_paths.head_loss else None,
    )


def _limit(data: DataSpec | None) -> int:
    return data.max_length if data is not None else DataSpec.model_fields["max_length"].default


def _report_or_reason(loaded: LoadedRecipe, anatomy: Anatomy) -> DataReport | str:
    """Return what the preparation of the rows counted, or why they cannot be prepared."""
    data = loaded.recipe.data
    if data is None:
        return "the recipe has no data block"
    if data.streaming:
        return "the rows are streamed (data.streaming)"
    try:
        tokenizer = load_tokenizer(loaded.recipe.model)
        positions_left(anatomy, loaded.recipe.method)
        return prepare_data(loaded, tokenizer, anatomy, World(torch.device("cpu"))).report
    except UserError as error:
        return error.problems[0].message
