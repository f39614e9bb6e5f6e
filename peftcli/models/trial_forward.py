"""What a forward pass does with a model's linears, tried on a copy without values; names do not tell.

A low-rank change sits at a linear's call. One that chooses experts, whose weight is read without a call, or that a
forward pass of text never calls is no place for it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.layers.seeded import seeded
from peftcli.models.module_view import module_kind

NOT_CALLED = "a forward pass of text does not call it"
_NO_GRADIENT = "no gradient reaches it"
_LENGTHS = (8, 512)
"""Tokens of the forward pass, and of a second one where the first did not reach everything: parts of a model that sum
up many tokens have nothing to do with few."""
_DEEP = 4
"""Blocks of a list up to which all of them are run at once."""
_PRODUCTS = ("linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "addmm", "baddbmm", "mm", "einsum")
_CHOICES = ("topk", "argmax", "argsort", "sort")
_LIKE = ("to", "type_as")
"""Methods that look at another tensor's type only."""
_NO_KERNEL = ("isinstance", "init.", "nn.init.", "torch.nn.init.")
"""Beginnings of calls that take a weight and compute nothing of the forward pass with it."""


def passed_over(model: nn.Module) -> dict[str, str]:
    """Return the linears at which a change of their output would be lost or break the model: path to reason.

    Empty where the copy cannot be run without values; so the answer depends on the config alone, not on the device.

    Args:
        model: the task model, on any device, meta included; left as it is.
    """
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return {}
    kind = type(model)
    key = f"{kind.__module__}.{kind.__qualname__} {model.config.to_json_string(use_diff=False)}"
    if key not in _TRIED:
        _TRIED[key] = _try(kind, model.config)
    return dict(_TRIED[key])


_TRIED: dict[str, dict[str, str]] = {}
"""Answers by class and config, for the life of the process: a run attaches its method several times."""


def _try(kind: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, str]:
    try:
        with torch.device("meta"), seeded(0):
            copy = kind(type(config).from_dict(config.to_dict())).eval()
        if copy.config._experts_implementation is not None:
            copy.set_experts_implementation("batched_mm")  # the way that needs no values to share tokens out
    except Exception:  # whatever a model's own code raises for settings that were written and read
        return {}
    linears = _linears(copy)
    short = _with_one_block_of_each_kind(copy)
    if short is not None:
        return {**_fused(copy, linears), **short}
    found = _Trial(copy, linears).reasons(_LENGTHS[0])
    if found is None:
        return _fused(copy, linears)
    if {NOT_CALLED, _NO_GRADIENT} & set(found.values()):
        most = getattr(config.get_text_config(), "max_position_embeddings", None) or _LENGTHS[1]
        longer = _Trial(copy, linears).reasons(min(_LENGTHS[1], most)) or {}
        found = {path: why for path, why in found.items() if path in longer}
    return {**_fused(copy, linears), **found}


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: live for name, live in model.named_modules() if module_kind(live) in ("linear", "conv1d")}


def _with_one_block_of_each_kind(model: PreTrainedModel) -> dict[str, str] | None:
    """Return the reasons, found with the first of the blocks that are alike: a deep model takes seconds.

    None where that cannot be run, or leaves something without a call or a gradient: then all blocks must be.
    """
    lists = {
        name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) > _DEEP
    }
    whole = {name: dict(each.named_children()) for name, each in lists.items()}
    places: dict[str, dict[str, str]] = {}  # of each list: a block's number, to that of the one that stands for it
    linears = list(_linears(model))
    try:
        for name, each in lists.items():
            first: dict[Any, str] = {}
            places[name] = {
                number: first.setdefault(_kind_of(block), str(len(first))) for number, block in whole[name].items()
            }
            kept = {place: number for number, place in reversed(places[name].items())}
            each._modules = {place: whole[name][kept[place]] for place in first.values()}
        found = _Trial(model, _linears(model)).reasons(_LENGTHS[0])
    finally:
        for name, each in lists.items():
            each._modules = dict(whole[name])
    if found is None or {NOT_CALLED, _NO_GRADIENT} & set(found.values()):
        return None
    return {path: found[other] for path in linears if (other := _stand_in(path, places)) in found}


def _kind_of(block: nn.Module) -> tuple[Any, ...]:
    """Return what blocks that are alike have in common: the classes of their modules, the shapes of their weights."""
    shapes = [(name, tuple(each.shape)) for name, each in block.named_parameters()]
    return (*((name, type(each)) for name, each in block.named_modules()), *shapes)


def _stand_in(path: str, places: Mapping[str, Mapping[str, str]]) -> str:
    """Return the path of a linear in the block that stands for its own; a list may lie within a block."""
    for name in sorted(places, key=len, reverse=True):
        if path.startswith(f"{name}."):
            number, _, rest = path[len(name) + 1 :].partition(".")
            path = f"{name}.{places[name][number]}.{rest}"
    return path


def _fused(model: nn.Module, linears: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the linears whose weight the code of their owner hands to another function than their own."""
    found = {}
    owners = {path: type(model.get_submodule(path.rpartition(".")[0])) for path in linears}
    handed_on = {kind: _handed_on(kind) for kind in set(owners.values())}
    for path, kind in owners.items():
        kernel = handed_on[kind].get(path.rpartition(".")[2])
        if kernel is not None:
            found[path] = f"its weight goes to {kernel}, which computes without calling it where that kernel is there"
    return found


def _handed_on(kind: type[nn.Module]) -> Mapping[str, str]:
    """Return the children of a module whose weights its methods pass to functions: name to function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # made while running, or without its source
        return {}
    found: dict[str, str] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        if function.startswith(_NO_KERNEL):
            continue
        for given in (*call.args, *(keyword.value for keyword in call.keywords)):
            text = ast.unparse(given) if isinstance(given, ast.Attribute) else ""
            if text.startswith("self.") and text.endswith(".weight") and text.count(".") == 2:
                found[text.split(".")[1]] = function
    return found


class _Trial(TorchFunctionMode):
    """Watches one forward pass on the meta device.

    Questions for values are answered with zero, and with every place where places are asked for: which way a model
    then goes does not matter to what it calls.
    """

    def __init__(self, model: PreTrainedModel, linears: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.linears = model, linears
        shared = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}  # tied heads
        self.owners: dict[int, list[str]] = {}
        for path, live in linears.items():
            if id(live.weight) not in shared:
                self.owners.setdefault(id(live.weight), []).append(path)
        self.running: list[str] = []
        self.called: set[str] = set()
        self.found: dict[str, str] = {}
        self.read: set[str] = set()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors too: an id is free again with its object

    def reasons(self, tokens: int) -> dict[str, str] | None:
        """Return why which linears are no place for a change; None if the model cannot be run like this."""
        hooks = [hook for path, module in self.linears.items() for hook in self._hooks(path, module)]
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        words: dict[str, Any] = {"input_ids": ids}
        if "decoder_input_ids" in inspect.signature(self.model.forward).parameters:
            words["decoder_input_ids"] = ids
        try:
            with torch.enable_grad(), torch.device("meta"), self:
                output = self.model(**words)[0]
        except Exception:  # a model's own code refuses tensors without values in its own ways
            return None
        finally:
            for hook in hooks:
                hook.remove()
        reached = self._reached(output)
        for path in self.linears:
            if path in self.read:
                self.found.setdefault(path, "its weight is read without a call, so that a change of its output is lost")
            elif path not in self.called:
                self.found.setdefault(path, NOT_CALLED)
            elif path not in reached:
                self.found.setdefault(path, _NO_GRADIENT)
        return self.found

    def _reached(self, output: Tensor) -> set[str]:
        """Return the linears that a backward pass reaches; all of them where that cannot be tried."""
        try:
            weights = [live.get_parameter("weight") for live in self.linears.values()]
            gradients = torch.autograd.grad(output.sum(), weights, allow_unused=True)
        except Exception:  # a step of the model has no gradient without values
            return set(self.linears)
        reached = {path for path, gradient in zip(self.linears, gradients, strict=True) if gradient is not None}
        # a step with a backward pass of its own may hide most of the model: then nothing is known
        return reached if 2 * len(reached) > len(self.called) else set(self.linears)

    def _hooks(self, path: str, module: nn.Module) -> Iterator[Any]:
        def begin(_module: nn.Module, _args: Any) -> None:
            self.running.append(path)

        def end(_module: nn.Module, _args: Any, output: Any) -> None:
            self.running.remove(path)
            self.called.add(path)
            if isinstance(output, Tensor):
                self.outputs[id(output)] = (path, output)

        yield module.register_forward_pre_hook(begin)
        yield module.register_forward_hook(end)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what is done with a linear's weight and output; compute, or answer where values are asked for."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        known, answer = _answered(func, name, args, kwargs)
        result = answer if known else _computed(func, args, kwargs)
        tensors = [value for value in _flat(result) if isinstance(value, Tensor)]
        if given and id(given[0]) in self.outputs:
            path = self.outputs[id(given[0])][0]
            if name in _CHOICES or (len(tensors) == 2 and path in self.running):  # `max`: the largest and its place
                self.found[path] = "it chooses experts (a router)"
        self._see_weights(name, args, kwargs, tensors)
        if name not in _PRODUCTS:
            self._follow(given, tensors)
        return result

    def _see_weights(self, name: str, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        """Note whose weight a function computes with: its owner, while that runs, or somebody else."""
        if not made or not torch.is_grad_enabled():
            return
        for value in _flat((args[:1] if name in _LIKE else args, kwargs)):
            owners = self.owners.get(id(value), [])
            inside = [path for path in owners if path in self.running]
            if owners and not inside:
                self.read.update(owners)
            for path in inside if name == "linear" else ():
                self.outputs[id(made[0])] = (path, made[0])

    def _follow(self, given: list[Tensor], made: list[Tensor]) -> None:
        """Note that tensors are a linear's output in another form: as many numbers, one for one."""
        for path, source in [self.outputs[id(value)] for value in given if id(value) in self.outputs]:
            for tensor in made:
                if tensor.numel() == source.numel():
                    self.outputs.setdefault(id(tensor), (path, tensor))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Call a function; places, which have values, lose them where it takes no tensors of two devices."""
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        places = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor) and not value.is_meta]
        if not places:
            raise
        args, kwargs = _without_values((args, kwargs))
        return func(*args, **kwargs)


def _without_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_values(each) for each in value)
    return value.to("meta") if isinstance(value, Tensor) else value


def _answered(func: Any, name: str, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Return whether a function asks for values that a tensor on the meta device lacks, and an answer."""
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if first is None or not first.is_meta:
        return False, None
    plain = {"item": 0, "__bool__": False, "__int__": 0, "__index__": 0, "__float__": 0.0, "__contains__": False}
    if name in plain:
        return True, plain[name]
    if name == "tolist":
        return True, torch.zeros(first.shape, dtype=first.dtype, device="cpu").tolist()
    if name == "nonzero" or (name == "where" and len(args) + len(kwargs) == 1):
        places = _everywhere(first)
        return True, places if name == "where" or kwargs.get("as_tuple") else torch.stack(places, 1)
    if "unique_consecutive" in name:
        return True, first.new_empty(1)
    if name in ("__getitem__", "__setitem__"):
        chosen = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(isinstance(each, Tensor) and each.dtype == torch.bool for each in chosen):
            return True, func(first, tuple(_by_place(chosen)), *args[2:])
    return False, None


def _by_place(chosen: tuple[Any, ...]) -> Iterator[Any]:
    for each in chosen:
        if isinstance(each, Tensor) and each.dtype == torch.bool:
            yield from _everywhere(each)
        else:
            yield each


def _everywhere(mask: Tensor) -> tuple[Tensor, ...]:
    """Return the places of a mask that is true everywhere, as `nonzero(as_tuple=True)` does."""
    return torch.ones(mask.shape, dtype=torch.bool, device="cpu").nonzero(as_tuple=True)
