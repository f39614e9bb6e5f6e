"""What a recommendation is for: the model, the task, the rows and the memory, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from peftcli.analysis.advice.memory_bound import Shapes, memory_needs
from peftcli.assembly.collect_problems import located
from peftcli.assembly.positions_left import positions_left
from peftcli.assembly.recipe_data import prepare_data
from peftcli.data.store.data_report import DataReport
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import count_parameters, load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.rates.default_rate import model_kind
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import DataSpec
from peftcli.tasks.task_info import ModelKind
from peftcli.tasks.task_table import row_sequences, task_info


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
    shapes = Shapes(
        numbers=now.numbers,
        linear_numbers=sum(rows * columns for rows, columns in linears),
        adapter_numbers=16 * now.rank_numbers,
        width=now.width,
        blocks=sum(map(len, anatomy.layers.values())),
        row_tokens=min(known.longest, most) if known else most,
    )
    rows, needs = memory_needs(shapes, memory)
    return replace(now, micro_rows=rows, needs=needs)


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
