"""Task heads: their labels in the config, and float32 for what is trained whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from peftcli.errors import Problem, UserError
from peftcli.layers.seeded import seeded
from peftcli.models.load.head_rows import HeadRows
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import head_modules
from peftcli.models.weights.base_files import stored_tensors
from peftcli.models.weights.checkpoint_names import CheckpointNames
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_info import LabelKind
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROBLEM_TYPES: dict[LabelKind, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Our name of a kind of label to transformers' `problem_type` in a config."""


class Labels(Protocol):
    """What loading asks of the data's labels: `data.LabelSpec` has it."""

    @property
    def problem(self) -> LabelKind:
        """The kind of label."""

    @property
    def names(self) -> Sequence[str]:
        """The labels in the order of the model's outputs."""


def held_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the labels that a checkpoint's config has, in the order of its head's rows."""
    names = config.id2label or {}
    return tuple(str(names[number]) for number in sorted(names))


def configure_head(config: PretrainedConfig, task: TaskName, labels: Labels | None, spec: ModelSpec) -> None:
    """Write the labels and the kind of problem into the config.

    Raises:
        UserError: `model.num_labels` contradicts the data.
    """
    info = task_info(task)
    if not info.has_labels:
        return
    problem = labels.problem if labels is not None else spec.problem_type
    if labels is not None and labels.names:
        if spec.num_labels is not None and spec.num_labels != len(labels.names):
            raise UserError(
                Problem(
                    f"the data has {len(labels.names)} labels, not {spec.num_labels}: {', '.join(labels.names[:10])}",
                    key="model.num_labels",
                    suggestion="leave it out: the labels are counted in the data",
                )
            )
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: number for number, name in config.id2label.items()}
    elif problem == "regression":
        if labels is not None and spec.num_labels not in (None, 1):
            raise UserError(
                Problem(
                    f"each row has one number, and the head would have {spec.num_labels}",
                    key="model.num_labels",
                    suggestion="leave it out, or write model.problem_type: single_label if the numbers are classes",
                )
            )
        config.num_labels = spec.num_labels or 1
        config.id2label = {i: "score" if config.num_labels == 1 else f"score_{i}" for i in range(config.num_labels)}
        config.label2id = {name: number for number, name in config.id2label.items()}
    elif spec.num_labels is not None and spec.num_labels != config.num_labels:
        config.num_labels = spec.num_labels
    if info.rows == "labelled":
        config.problem_type = PROBLEM_TYPES.get(problem, config.problem_type) if problem else config.problem_type


def keep_head_rows(
    model: PreTrainedModel,
    follows: Sequence[str],
    report: Mapping[str, Any],
    rows: HeadRows,
    directory: Callable[[], Path],
    seed: int,
) -> bool:
    """Put the rows of the checkpoint's head where the names of the data's labels want them; the others are new.

    Args:
        model: as transformers loaded it.
        follows: the head's parameters with one row for each label.
        report: transformers' loading info: missing and mismatched keys.
        rows: the data's labels matched with the checkpoint's.
        directory: returns where the checkpoint's files are; called if they must be read again.
        seed: of the new rows' values.

    Returns:
        Whether the checkpoint has such a head, and so whether `rows` says what became of it.
    """
    if any(name in report["missing_keys"] for name in follows):
        return False
    mismatched = {str(key) for key, *_ in report["mismatched_keys"]}
    if not mismatched.intersection(follows):
        if rows.unchanged:
            return True
        earlier = {name: model.get_parameter(name).detach().clone() for name in follows}
        if None in rows.rows:
            start_anew(model, follows, seed)
    elif rows.found:
        earlier = _stored(model, follows, directory())
    else:
        return False
    if any(len(earlier[name]) != len(rows.held) for name in follows):
        return False
    with torch.no_grad():
        for name in follows:
            parameter = model.get_parameter(name)
            parameter.copy_(rows.place(parameter, earlier[name]))
    return True


def start_anew(model: PreTrainedModel, names: Iterable[str], seed: int) -> None:
    """Give the layers that own these parameters the random values that the family gives new ones.

    They are drawn on the CPU, whatever the device: a seed means the same values everywhere.
    """
    wanted = {name.rpartition(".")[0] for name in names}
    with seeded(seed), torch.no_grad():
        for owner in [path for path, _ in model.named_modules() if path in wanted]:
            module = model.get_submodule(owner)
            devices = {parameter.device for parameter in module.parameters()}
            module.to("cpu")
            for parameter in module.parameters():
                vars(parameter).pop("_is_hf_initialized", None)  # transformers leaves marked ones as they are
            model._init_weights(module)
            for device in devices:
                module.to(device)


def _stored(model: PreTrainedModel, follows: Sequence[str], directory: Path) -> dict[str, Tensor]:
    """Return parameters of a checkpoint by the model's names, in float32; their shapes may be others than the model's.

    Raises:
        UserError: the files are damaged.
    """
    names = CheckpointNames(model)
    found = {}
    for file_name, stored in stored_tensors(directory).items():
        meaning = names.of_file(file_name)
        if meaning is not None and meaning.live_name in follows:
            found[meaning.live_name] = stored.read_float32()
    return found


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of the task head's parameters."""
    paths = tuple(f"{path}." for path in head_modules(ModuleView(model)))
    return [name for name, _ in model.named_parameters() if name.startswith(paths)]


def compute_head_in_float32(model: PreTrainedModel) -> None:
    """Hold the task head in float32 and feed it float32, whatever the frozen weights are.

    The head is trained whole: in bfloat16 its small updates would be rounded away.
    """
    view = ModuleView(model)
    for path in head_modules(view):
        head = view.modules[path]
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in head.parameters()):
            head.to(torch.float32)
            head.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)


def _inputs_to_float32(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(cast(value) for value in args), {key: cast(value) for key, value in kwargs.items()}
