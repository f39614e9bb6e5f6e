"""Load a base model for a task: its config, its shape on the meta device, its weights. Safetensors and GGUF only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.distributed.memory_errors import memory_for
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.installed_versions import installed_versions
from peftcli.layers.quantised.quantised_weights import logical_numbers
from peftcli.layers.seeded import seeded
from peftcli.models.load.checkpoint_report import check_loading
from peftcli.models.load.config_errors import config_error
from peftcli.models.load.config_limits import CONFIG, checked_config, config_file
from peftcli.models.load.dtypes import choose_dtype, dtype_name
from peftcli.models.load.generation_settings import check_generation_config
from peftcli.models.load.head_rows import head_rows
from peftcli.models.load.heads import (
    Labels,
    compute_head_in_float32,
    configure_head,
    head_parameters,
    held_labels,
    keep_head_rows,
    start_anew,
)
from peftcli.models.load.identity import BaseIdentity, both_fingerprints, fingerprint, tensors_fingerprint
from peftcli.models.load.load_errors import explain_load_errors
from peftcli.models.load.meta_model import build_meta, label_parameters
from peftcli.models.load.model_files import ModelSource, find_source
from peftcli.models.model_tasks import auto_class, check_task, whole_loader
from peftcli.models.stored_quantised import partial_blocks, stored_method
from peftcli.models.weights.unread_weights import (
    UnreadWeights,
    each_process_loads,
    start_lacking,
    unread_weights,
    why_not_in_shares,
)
from peftcli.models.weights.weight_damage import check_weight_files, refuse_broken_numbers
from peftcli.models.weights.weight_index import check_hub_index
from peftcli.process_state import quiet_transformers
from peftcli.progress import stage
from peftcli.recipe.schema import ModelSpec, TaskName

_FOR_A_MODEL = "model.load_in_4bit: true, model.dtype: bfloat16, a smaller model, or a machine with more memory"


@dataclass
class Loaded:
    """A base model in memory.

    Args:
        model: on its device, in eval mode, nothing frozen yet.
        config: the model's own.
        identity: what a run stores of it.
        dtype: of the frozen weights (of the unquantised ones, if it is quantised).
        notes: what was decided or left unused, for the header and the log.
        head_note: what the rows of the task head start from, where that is to be told; an adapter that brings a head
            makes it untrue.
        label_parameters: names of the head's parameters that have one row for each label; empty without such a head.
        unread: what is still in the files, for a model on the meta device; None once there are values.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    identity: BaseIdentity
    dtype: torch.dtype
    notes: list[str] = field(default_factory=list)
    head_note: str | None = None
    label_parameters: list[str] = field(default_factory=list)
    unread: UnreadWeights | None = None

    @property
    def all_notes(self) -> list[str]:
        """The notes, with that on the head: for a use whose head is the base's own."""
        return [*self.notes, self.head_note] if self.head_note else list(self.notes)


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """Return the config of a base model; a directory that holds only a config.json is enough.

    Raises:
        UserError: the directory or file is missing, the hub cannot be reached, the config cannot be read, or the model
            type is unknown to transformers.
    """
    return _config_from(find_source(spec.name_or_path), spec)


def _config_from(source: ModelSource, spec: ModelSpec) -> PretrainedConfig:
    keywords = source.keywords(revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    with explain_load_errors(source, spec):
        file = config_file(source, spec.revision)
        settings = {} if file is None else checked_config(file)
        try:
            config: PretrainedConfig = transformers.AutoConfig.from_pretrained(source.location(), **keywords)
        except Exception as error:
            found = config_error(str(file), "transformers cannot read it", settings, _read_config, error)
            raise error if found is None else found from error
    return config


def _read_config(settings: dict[str, Any]) -> None:
    """Read a config that differs from a base's file, to find what is wrong with it."""
    with TemporaryDirectory() as directory:
        (Path(directory) / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def saved_model_spec(spec: ModelSpec, directory: Path) -> ModelSpec:
    """Return the model block that loads a complete model which a run left.

    Args:
        spec: of the run's recipe.
        directory: of the complete model; its vocabulary holds the recipe's new tokens already.
    """
    changes: dict[str, Any] = {"name_or_path": str(directory), "revision": None, "new_special_tokens": []}
    return spec.model_copy(update=changes)


@stage("loading the model")
@memory_for("while the base model was loaded", _FOR_A_MODEL)
def load_model(
    spec: ModelSpec,
    task: TaskName,
    labels: Labels | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    *,
    world: World | None = None,
    in_shares: bool = False,
) -> Loaded:
    """Load the weights of a base model for a task.

    Args:
        spec: of the recipe; 4 and 8 bits, dtype and attention code come from it.
        labels: of a classification task; None takes `spec.num_labels`, else the checkpoint's own.
        device: where the model ends up.
        seed: of a head that the checkpoint lacks; the caller's random state is left as it was.
        world: the processes that load it together; the main one computes the fingerprints.
        in_shares: leave the model on the meta device, so that each process of `world` reads its share once the model is
            divided (`Loaded.unread.fill`); where its files do not allow that, it is loaded whole, and a note says so.

    Raises:
        UserError: the model is missing, cannot do the task, holds pickles only, lacks weights other than the task head,
            has weights that are no numbers or files that are no weights, or cannot be quantised.
    """
    device = torch.device(device)
    source = find_source(spec.name_or_path)
    config = _config_from(source, spec)
    check_task(config, task)
    check_weight_files(source)
    if source.kind == "directory" and source.path is not None:
        check_generation_config(source.path)
    held, stored = held_labels(config), stored_method(config)
    configure_head(config, task, labels, spec)
    dtype, note = choose_dtype(spec, config, source, device)
    notes = [*([note] if note else []), *_refuse_or_note_gguf(spec, source)]
    keywords = _loading_keywords(spec, source) | {"dtype": dtype, "config": config}
    quantised = _add_placement(keywords, spec, task, config, dtype, device, world)
    whole_for = why_not_in_shares(source, quantised)
    model, report, unread, why = _read(source, spec, task, keywords, seed, device, in_shares and whole_for is None)
    if in_shares and unread is None:
        notes.append(f"each process reads the whole base before it is sharded: {whole_for or why}")
    found = check_loading(model, report, spec.name_or_path)
    follows = label_parameters(model, task, trust_remote_code=spec.trust_remote_code)
    head_note = _head_by_label(
        model, follows, report, labels, held, partial(_directory, source, spec), seed, found.head
    )
    quantization = None
    if quantised:
        from peftcli.models.load.quantization import finish_quantised

        quantization, more = finish_quantised(model, spec, stored)
        notes += more
    elif unread is None and not _placed_by_transformers(keywords):
        model.to(device)
    refuse_broken_numbers(model, spec.name_or_path)
    compute_head_in_float32(model)
    model.eval()
    identity = identify(source, model, dtype, quantization, spec, world)
    return Loaded(model, model.config, identity, dtype, [*notes, *found.others], head_note, follows, unread)


def _head_by_label(
    model: PreTrainedModel,
    follows: list[str],
    report: Mapping[str, Any],
    labels: Labels | None,
    held: tuple[str, ...],
    directory: Callable[[], Path],
    seed: int,
    note: str | None,
) -> str | None:
    """Put the head's rows where the data's labels want them; return the note on the head, `note` if that holds."""
    if labels is None or not labels.names or not follows:
        return note
    rows = head_rows(labels.names, held)
    kept = keep_head_rows(model, follows, report, rows, directory, seed)
    return rows.note("the checkpoint") if kept else note


def _read(
    source: ModelSource,
    spec: ModelSpec,
    task: TaskName,
    keywords: Mapping[str, Any],
    seed: int,
    device: torch.device,
    in_shares: bool,
) -> tuple[PreTrainedModel, Mapping[str, Any], UnreadWeights | None, str | None]:
    """Read the files, or with `in_shares` their names and shapes alone.

    Returns:
        The model, transformers' loading info, what was left unread, and why nothing was although it was wanted.
    """
    config = keywords["config"]
    shape = partial(build_meta, config, task, trust_remote_code=spec.trust_remote_code)
    load = partial(auto_class(config, task).from_pretrained, source.location())
    why_whole = None
    with quiet_transformers(), explain_load_errors(source, spec, shape), each_process_loads(), partial_blocks(config):
        if source.kind == "hub":
            check_hub_index(source, spec.revision)
        if in_shares:
            model, report = load(**{**keywords, "device_map": {"": torch.device("meta")}})
            unread, why_whole = unread_weights(model, _directory(source, spec), report, spec.name_or_path)
            if unread is not None:
                start_lacking(model, unread, seed, device)
                unread.fill_whole(model, head_parameters(model), device)  # its rows follow the labels, below
                return model, report, unread, None
        with seeded(seed, [device]):
            model, report = load(**keywords)
        if device.type != "cpu":  # transformers has drawn them on the device
            start_anew(model, report["missing_keys"], seed)
    return model, report, None, why_whole


def _loading_keywords(spec: ModelSpec, source: ModelSource) -> dict[str, Any]:
    keywords = source.keywords(revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    keywords |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if spec.attn_implementation != "auto":
        keywords["attn_implementation"] = spec.attn_implementation
    if source.kind != "gguf":
        keywords["use_safetensors"] = True
    return keywords


def _refuse_or_note_gguf(spec: ModelSpec, source: ModelSource) -> list[str]:
    """GGUF weights are dequantised while they load; nothing in transformers quantises them again."""
    if source.kind != "gguf":
        return []
    if spec.load_in_4bit or spec.load_in_8bit:
        raise UserError(
            Problem(
                "a GGUF file is dequantised on loading and cannot be quantised again",
                key="model.load_in_4bit" if spec.load_in_4bit else "model.load_in_8bit",
                suggestion="leave it out, or name the original safetensors model",
            )
        )
    return ["GGUF weights are dequantised on loading: what is trained and merged is the dequantised model"]


def _add_placement(
    keywords: dict[str, Any],
    spec: ModelSpec,
    task: TaskName,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    world: World | None,
) -> bool:
    """Add to `keywords` what a quantised model, or one on an accelerator, needs; tell whether it will be quantised."""
    if spec.load_in_4bit or spec.load_in_8bit or stored_method(config) is not None:
        from peftcli.models.load.quantization import quantisation_keywords

        meta = build_meta(config, task, trust_remote_code=spec.trust_remote_code)
        divided = world is not None and world.strategy.sharded
        keywords |= quantisation_keywords(spec, config, meta, dtype, device, divided=divided)
        return True
    if device.type == "cuda":  # weights go straight to the device, without a copy of the model in main memory
        keywords["device_map"] = {"": device}
    return False


def _placed_by_transformers(keywords: Mapping[str, Any]) -> bool:
    return "device_map" in keywords


def identify(
    source: ModelSource,
    model: PreTrainedModel,
    dtype: torch.dtype,
    quantization: str | None,
    spec: ModelSpec,
    world: World | None = None,
) -> BaseIdentity:
    """Return the identity of a loaded base; among the processes of `world`, the main one reads the files for it."""

    def prints() -> tuple[str, str | None]:
        files = _files(source, spec)
        return fingerprint(files), tensors_fingerprint(files)

    of_files, of_tensors = prints() if world is None else world.from_main(prints)
    commit = getattr(model.config, "_commit_hash", None)
    return BaseIdentity(
        name=spec.name_or_path,
        revision=commit if source.kind == "hub" else None,
        fingerprint=of_files,
        quantization=quantization,
        dtype=dtype_name(dtype),
        model_type=model.config.model_type,
        versions={
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **installed_versions("peftcli", "bitsandbytes"),
        },
        shape=shape_of(model.config),
        source="gguf" if source.kind == "gguf" else "safetensors",
        tensors=of_tensors,
        loader=whole_loader(model),
    )


def shape_of(config: PretrainedConfig) -> dict[str, int]:
    """Return the sizes that an adapter depends on, as `BaseIdentity.shape` holds them; no weights are needed."""
    text = config.get_text_config()
    sizes = {
        "hidden_size": getattr(text, "hidden_size", None),
        "layers": getattr(text, "num_hidden_layers", None),
        "vocab_size": getattr(text, "vocab_size", None),
    }
    return {key: int(value) for key, value in sizes.items() if value is not None}


def base_fingerprint(spec: ModelSpec) -> str | None:
    """Return both fingerprints of a base whose files are on this machine; None of one on the hub, not loaded yet.

    Raises:
        UserError: there is no such model.
    """
    source = find_source(spec.name_or_path)
    if source.kind == "hub":
        return None
    files = _files(source, spec)
    return both_fingerprints(fingerprint(files), tensors_fingerprint(files))


def _files(source: ModelSource, spec: ModelSpec) -> Path:
    return source.path if source.kind == "gguf" and source.path else _directory(source, spec)


def _directory(source: ModelSource, spec: ModelSpec) -> Path:
    """Return the directory of a model that was loaded: its own, or the hub's cached copy."""
    if source.path is not None:
        return source.path.parent if source.kind == "gguf" else source.path
    from transformers.utils import cached_file

    config = cached_file(source.name, "config.json", revision=spec.revision or "main", local_files_only=True)
    return Path(config).parent


def count_parameters(model: nn.Module) -> int:
    """Return the numbers in a model's parameters, shared ones once; a quantised weight counts what it stands for."""
    return sum(logical_numbers(model).values())
