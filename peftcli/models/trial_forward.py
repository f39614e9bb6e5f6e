"""What a forward pass does with a model's linears and parameters, tried on a copy without values; names do not tell.

A low-rank change sits at a linear's call. One that chooses experts, whose weight is read without a call, or that a
forward pass of text never calls is no place for it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.layers.base_linear import linear_widths
from peftcli.layers.seeded import seeded
from peftcli.models.few_blocks import build_of
from peftcli.models.meta_answers import answered, computed, flat
from peftcli.models.module_view import module_kind

NOT_CALLED = "a forward pass of text does not call it"
_NO_GRADIENT = "no gradient reaches it"
_OTHER_LANGUAGE = "it serves another language than the config's default_language, which all texts are read as"
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
    return dict(_tried(model).passed_over)


def without_gradient(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that no gradient reaches: the norms of a part whose output only chooses.

    Empty where that cannot be tried.

    Args:
        model: as for `passed_over`.
    """
    return _tried(model).untouched


def other_states(model: nn.Module) -> frozenset[str]:
    """Return the paths of the blocks whose output is not (rows, tokens, width): one hidden state of each token.

    Some hand on several streams, tokens in front of the text, or fewer positions. Empty where that cannot be tried.

    Args:
        model: as for `passed_over`.
    """
    return _tried(model).other_states


@dataclass(frozen=True)
class _Found:
    """What a trial found: `passed_over`'s linears and reasons, parameters without a gradient, `other_states`."""

    passed_over: Mapping[str, str] = field(default_factory=dict)
    untouched: frozenset[str] = frozenset()
    other_states: frozenset[str] = frozenset()


def _tried(model: nn.Module) -> _Found:
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return _Found()
    kind = type(model)
    key = f"{kind.__module__}.{kind.__qualname__} {model.config.to_json_string(use_diff=False)}"
    if key not in _TRIED:
        _TRIED[key] = _try(kind, model.config)
    return _TRIED[key]


_TRIED: dict[str, _Found] = {}
"""Answers by class and config, for the life of the process: a run attaches its method several times."""


def _try(kind: type[PreTrainedModel], config: PretrainedConfig) -> _Found:
    try:
        with torch.device("meta"), seeded(0):
            copy = kind(type(config).from_dict(config.to_dict())).eval()
        if copy.config._experts_implementation is not None:
            copy.set_experts_implementation("batched_mm")  # the way that needs no values to share tokens out
    except Exception:  # whatever a model's own code raises for settings that were written and read
        return _Found()
    linears = _linears(copy)
    found = _with_one_block_of_each_kind(copy) or _with_all_blocks(copy, linears) or _Found()
    idle = _of_other_languages(copy)
    fixed = {
        name
        for name, each in copy.named_parameters()
        if not each.requires_grad or name.startswith(idle)  # routers' own balances
    }
    lost = {path: _OTHER_LANGUAGE for path in linears if path.startswith(idle)}
    over = {**_fused(copy, linears), **found.passed_over, **lost}
    return replace(found, passed_over=over, untouched=found.untouched | fixed)


def _of_other_languages(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the beginnings of the paths of modules for languages other than that of all texts (X-MOD's adapters).

    The trial cannot tell them apart: which language a token has is a value.
    """
    every = {str(language) for language in getattr(model.config, "languages", None) or ()}
    chosen = getattr(model.config, "default_language", None)
    return tuple(
        f"{path}.{language}."
        for path, each in model.named_modules()
        if isinstance(each, nn.ModuleDict) and every and set(each) == every
        for language in each
        if language != chosen
    )


def _with_all_blocks(copy: PreTrainedModel, linears: Mapping[str, nn.Module]) -> _Found | None:
    """Return what is found with few tokens, and, where that does not reach everything, with many, too."""
    found = _Trial(copy, linears).run(_LENGTHS[0])
    if found is None or not (found.untouched or {NOT_CALLED, _NO_GRADIENT} & set(found.passed_over.values())):
        return found
    most = getattr(copy.config.get_text_config(), "max_position_embeddings", None) or _LENGTHS[1]
    longer = _Trial(copy, linears).run(min(_LENGTHS[1], most)) or _Found()
    kept = {path: why for path, why in found.passed_over.items() if path in longer.passed_over}
    return _Found(kept, found.untouched & longer.untouched, found.other_states)


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: live for name, live in model.named_modules() if module_kind(live) in ("linear", "conv1d")}


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in lists, by path."""
    for name, each in model.named_modules():
        if isinstance(each, nn.ModuleList):
            yield from ((f"{name}.{number}", block) for number, block in each.named_children())


def _with_one_block_of_each_kind(model: PreTrainedModel) -> _Found | None:
    """Return what is found with the first of the blocks that are alike: a deep model takes seconds.

    None where that cannot be run, or leaves a linear without a call or a gradient: then all blocks must be.
    """
    lists = {
        name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) > _DEEP
    }
    whole = {name: dict(each.named_children()) for name, each in lists.items()}
    places: dict[str, dict[str, str]] = {}  # of each list: a block's number, to that of the one that stands for it
    linears, parameters = list(_linears(model)), [name for name, _ in model.named_parameters()]
    blocks = [path for path, _ in _blocks(model)]
    try:
        for name, each in lists.items():
            first: dict[Any, str] = {}
            places[name] = {
                number: first.setdefault(build_of(block), str(len(first))) for number, block in whole[name].items()
            }
            kept = {place: number for number, place in reversed(places[name].items())}
            each._modules = {place: whole[name][kept[place]] for place in first.values()}
        found = _Trial(model, _linears(model)).run(_LENGTHS[0])
    finally:
        for name, each in lists.items():
            each._modules = dict(whole[name])
    if found is None or {NOT_CALLED, _NO_GRADIENT} & set(found.passed_over.values()):
        return None
    reasons = found.passed_over
    return _Found(
        {path: reasons[other] for path in linears if (other := _stand_in(path, places)) in reasons},
        frozenset(name for name in parameters if _stand_in(name, places) in found.untouched),
        frozenset(path for path in blocks if _stand_in(path, places).rstrip(".") in found.other_states),
    )


def _stand_in(path: str, places: Mapping[str, Mapping[str, str]]) -> str:
    """Return the path in the block that stands for that of a linear or a parameter; a list may lie within a block."""
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
        self.other_states: set[str] = set()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors too: an id is free again with its object

    def run(self, tokens: int) -> _Found | None:
        """Return where a change would be lost, and which parameters have no gradient; None if it cannot run."""
        hooks = [hook for path, module in self.linears.items() for hook in self._hooks(path, module)]
        hooks += [
            block.register_forward_hook(partial(self._see_states, path, tokens)) for path, block in _blocks(self.model)
        ]
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        inputs: dict[str, Any] = {"input_ids": ids}
        if "decoder_input_ids" in inspect.signature(self.model.forward).parameters:
            inputs["decoder_input_ids"] = ids
        try:
            with torch.enable_grad(), torch.device("meta"), self:
                output = self.model(**inputs)[0]
        except Exception:  # a model's own code refuses tensors without values in its own ways
            return None
        finally:
            for hook in hooks:
                hook.remove()
        untouched = self._without_gradient(output)
        lost = {id(self.model.get_parameter(name)) for name in untouched}
        for path in self.linears:
            if path in self.read:
                self.found.setdefault(path, "its weight is read without a call, so that a change of its output is lost")
            elif path not in self.called:
                self.found.setdefault(path, NOT_CALLED)
            elif id(self.linears[path].weight) in lost:
                self.found.setdefault(path, _NO_GRADIENT)
        return _Found(self.found, untouched, frozenset(self.other_states))

    def _without_gradient(self, output: Tensor) -> frozenset[str]:
        """Return the parameters that a backward pass does not reach; none of them where that cannot be tried."""
        own = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        try:
            gradients = torch.autograd.grad(output.sum(), list(own.values()), allow_unused=True)
            untouched = frozenset(name for name, gradient in zip(own, gradients, strict=True) if gradient is None)
        except Exception:  # a step of the model has no gradient without values (XLNet's)
            connected = _connected(output)
            untouched = frozenset(name for name, each in own.items() if id(each) not in connected)
        reached = sum(f"{path}.weight" in own and f"{path}.weight" not in untouched for path in self.linears)
        # a step with a backward pass of its own may hide most of the model: then nothing is known
        return untouched if 2 * reached >= len(self.called) else frozenset()

    def _hooks(self, path: str, module: nn.Module) -> Iterator[Any]:
        def begin(_module: nn.Module, _args: Any) -> None:
            self.running.append(path)

        def end(_module: nn.Module, args: Any, output: Any) -> None:
            self.running.remove(path)
            self.called.add(path)
            widths = tuple(each.shape[-1] for each in (*args[:1], output) if isinstance(each, Tensor))
            if len(widths) == 2 and widths != linear_widths(module):
                self.found[path] = "its code takes or gives other features than its weight has"
            if isinstance(output, Tensor):
                self.outputs[id(output)] = (path, output)

        yield module.register_forward_pre_hook(begin)
        yield module.register_forward_hook(end)

    def _see_states(self, path: str, tokens: int, _block: nn.Module, _args: Any, output: Any) -> None:
        """Note a block whose first output is no state of each token; the last one may compute some tokens only."""
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor) and (first.dim() != 3 or first.shape[0] != 1 or first.shape[1] > tokens):
            self.other_states.add(path)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what is done with a linear's weight and output; compute, or answer where values are asked for."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        known, answer = answered(func, name, args, kwargs)
        result = answer if known else computed(func, args, kwargs)
        tensors = [value for value in flat(result) if isinstance(value, Tensor)]
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
        for value in flat((args[:1] if name in _LIKE else args, kwargs)):
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


def _connected(output: Tensor) -> set[int]:
    """Return the ids of the parameters that an output was computed from, as its graph tells."""
    waiting, seen, found = [output.grad_fn], set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        waiting += [each for each, _ in node.next_functions]
    return found
