"""A base on the meta device whose values are still in its files; each process reads its own share of them.

Peak memory of a process while it loads is its share, and besides it what one tensor needs that transformers joins from
several (a layer's experts: this process's own where they are divided by expert, else all of them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftcli.distributed.processes import World
from peftcli.distributed.shares import Region, allocate_, own_region
from peftcli.distributed.whole_tensors import is_share
from peftcli.errors import UserError
from peftcli.layers.seeded import seeded
from peftcli.models.load.model_files import ModelSource
from peftcli.models.weights.base_files import stored_tensors
from peftcli.models.weights.fillings import Filling, fillings
from peftcli.models.weights.tensor_source import Stored
from peftcli.models.weights.weight_damage import refuse_broken_numbers
from peftcli.process_state import environment_without

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class UnreadWeights:
    """What a model on the meta device still lacks, and where it is.

    Args:
        base: its name, for messages.
        fillings: what the files' tensors become.
        dtypes: of the loaded model's tensors by name; values are rounded to it, whatever type trains later.
    """

    base: str
    fillings: tuple[Filling, ...]
    dtypes: dict[str, torch.dtype]

    @property
    def names(self) -> set[str]:
        """The model's tensors that the files hold."""
        return {name for filling in self.fillings for name in filling.targets}

    def fill(self, model: PreTrainedModel, world: World) -> None:
        """Read this process's share of every tensor that is still on the meta device.

        Call it in every process, once the method is attached and the base divided; a tensor that is not divided is read
        whole. Embeddings that grew since get rows that are the mean of the old ones.

        Raises:
            UserError: a file ends too early, or some process read what is no number; every process raises it.
        """
        lacking = {id(parameter) for parameter in model.parameters() if parameter.is_meta}
        for parameter in model.parameters():
            waits_on_host = is_share(parameter) and world.strategy.cpu_offload
            allocate_([parameter], torch.device("cpu") if waits_on_host else world.device)
        lacking |= {id(buffer) for buffer in _allocate_buffers(model, world.device, lambda buffer: buffer.is_meta)}
        for filling in self.fillings:
            live = {name: model.get_parameter_or_buffer(name) for name in filling.targets}
            live = {name: tensor for name, tensor in live.items() if id(tensor) in lacking}
            if live:
                self._fill(model, filling, live)
                lacking -= {id(tensor) for tensor in live.values()}
        refuse_broken_numbers(model, self.base, world)

    def fill_whole(self, model: PreTrainedModel, names: Iterable[str], device: torch.device) -> None:
        """Read tensors at once, before anything is attached or divided: a task head, whose rows follow the labels.

        Args:
            names: those that the files do not hold are passed over.
        """
        wanted = self.names.intersection(names)
        allocate_([model.get_parameter(name) for name in wanted], device)
        for filling in self.fillings:
            live: dict[str, Tensor] = {name: model.get_parameter(name) for name in filling.targets if name in wanted}
            if live:
                self._fill(model, filling, live)

    @torch.no_grad()
    def _fill(self, model: PreTrainedModel, filling: Filling, live: dict[str, Tensor]) -> None:
        """Read what the files have for some of a filling's targets."""
        shares = {name: own_region(tensor) for name, tensor in live.items()}
        if filling.converter is None:
            _, source = filling.sources[0]
            for name, (part, region) in shares.items():
                if source.shape == tuple(live[name].shape):
                    source.read_into(part, region, self.dtypes[name])
                else:
                    is_table = any(live[name] is weight for weight in _tables(model))
                    _read_grown(source, part, region, self.dtypes[name], is_table=is_table)
            return
        if not any(part.numel() for part, _ in shares.values()):
            return
        dtype = self.dtypes[filling.name]
        for part, region in shares.values():
            rows = filling.only(region[0].start, region[0].stop)
            if rows is not None and part.shape[1:] == next(iter(live.values())).shape[1:]:
                part.copy_(rows.convert(model, [source.read(dtype) for _, source in rows.sources])[filling.targets[0]])
                return
        converted = filling.convert(model, [source.read(dtype) for _, source in filling.sources])
        for name, (part, region) in shares.items():
            part.copy_(converted[name][region])


def why_not_in_shares(source: ModelSource, quantised: bool) -> str | None:
    """Return why a base cannot be read in shares, as far as that shows before it is built; None if it can."""
    if source.kind == "gguf":
        return "GGUF weights are dequantised as a whole"
    return "its weights are quantised while they load" if quantised else None


@contextmanager
def each_process_loads() -> Iterator[None]:
    """Let transformers load in every process, whatever Accelerate's launcher set.

    With `fsdp_cpu_ram_efficient_loading` it would leave zeros for computed buffers and new heads in all but the first.
    """
    with environment_without(("FSDP_CPU_RAM_EFFICIENT_LOADING",)):
        yield


def unread_weights(
    model: PreTrainedModel, directory: Path, report: Mapping[str, Any], base: str
) -> tuple[UnreadWeights | None, str | None]:
    """Return where the values of a model are that transformers loaded onto the meta device, or why that is not known.

    Tensors that the model ties although the files hold each are tied if their values are equal, as transformers does.

    Args:
        directory: of the checkpoint's files.
        report: transformers' loading info; what has another shape in the files counts as lacking there.
        base: its name, for messages.

    Raises:
        UserError: the files are damaged.
    """
    wrong = {str(key) for key, *_ in report["mismatched_keys"]}
    try:
        found = fillings(model, stored_tensors(directory))
    except UserError:
        raise
    except Exception as error:  # whatever a family's conversion raises that looks at values
        return None, f"transformers converts its tensors by their values ({type(error).__name__})"
    kept = [replace(filling, targets=tuple(n for n in filling.targets if n not in wrong)) for filling in found]
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    unread = UnreadWeights(base, tuple(filling for filling in kept if filling.targets), dtypes)
    unknown = _of_unknown_origin(model, unread.names | wrong | set(report["missing_keys"]))
    if unknown:
        return None, f"its files' names do not tell where {unknown[0]} comes from"
    _tie_equal(model, unread)
    return unread, None


def start_lacking(model: PreTrainedModel, unread: UnreadWeights, seed: int, device: torch.device) -> None:
    """Give a model on the meta device what the files do not hold, whole and equal in every process.

    That is a new head, drawn from the seed as `from_pretrained` draws it, and buffers that are computed (rotary
    frequencies); all else stays on the meta device.
    """
    held = unread.names
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read = {id(parameters[name]) for name in held if name in parameters}
    allocate_((parameter for parameter in parameters.values() if id(parameter) not in read), device)
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    _allocate_buffers(model, device, lambda buffer: names[id(buffer)] not in held)
    for tensor in parameters.values():
        tensor._is_hf_initialized = tensor.is_meta  # transformers' mark: leave it alone
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    with seeded(seed, [device]):
        model.initialize_weights()


def _allocate_buffers(model: nn.Module, device: torch.device, wanted: Callable[[Tensor], bool]) -> list[Tensor]:
    """Give the wanted buffers memory without values, and return them."""
    found = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if wanted(buffer):
                fresh = torch.empty_like(buffer, device=device)
                module._buffers[name] = fresh
                found.append(fresh)
    return found


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Return the weights of the input and output embeddings."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight for module in modules if module is not None]


def _read_grown(source: Stored, part: Tensor, region: Region, dtype: torch.dtype, *, is_table: bool) -> None:
    """Read a share of a tensor that is larger than the file's: new rows of a table are the mean, all else is zero."""
    part.zero_()
    old = tuple(slice(cut.start, min(cut.stop, size)) for cut, size in zip(region, source.shape, strict=True))
    if all(cut.start < cut.stop for cut in old):
        within = tuple(slice(0, cut.stop - cut.start) for cut in old)
        source.read_into(part[within], old, dtype)
    rows = source.shape[0]
    if is_table and region[0].stop > rows:
        part[max(rows - region[0].start, 0) :] = source.read(dtype).float().mean(0).to(dtype)


def _of_unknown_origin(model: PreTrainedModel, known: set[str]) -> list[str]:
    """Return the parameters that transformers did not miss, although none of their names is among the known ones."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(parameter) for name, parameter in parameters.items() if name in known}
    may_lack = model._keys_to_ignore_on_load_missing or ()
    return [
        name
        for name, parameter in parameters.items()
        if id(parameter) not in found and not any(re.search(pattern, name) for pattern in may_lack)
    ]


def _tie_equal(model: PreTrainedModel, unread: UnreadWeights) -> None:
    """Decide on tensors that the config ties and the files hold one by one: on the meta device transformers cannot."""
    sources = {name: filling for filling in unread.fillings for name in filling.targets if filling.converter is None}
    tied: dict[str, str] = model.all_tied_weights_keys
    for name, other in list(tied.items()):
        if model.get_parameter(name) is model.get_parameter(other) or not {name, other} <= sources.keys():
            continue
        if _equal(sources[name].sources[0][1], sources[other].sources[0][1]):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, model.get_parameter(other))
        else:
            tied.pop(name)


def _equal(a: Stored, b: Stored) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return all(torch.equal(left, right) for left, right in zip(a.chunks(), b.chunks(), strict=True))
