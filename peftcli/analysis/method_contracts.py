"""What every method promises the rest of the program, each promise tried on tiny models: `peft methods --check`.

This project's own methods are held to the same list. Each contract is a function that returns None where it holds, and
else what was found.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from peftcli.analysis.contract_models import MODELS, ContractModel, Live, bare, batch_of, disturbed, live
from peftcli.analysis.output_effects import cache_effect, difference, padding_effect
from peftcli.errors import UserError
from peftcli.layers.added_modules import is_added
from peftcli.layers.seeded import seeded
from peftcli.layers.virtual_tokens.prompt import Prompt
from peftcli.merging.merge_plan import tied_groups
from peftcli.models.read_anatomy import read_anatomy
from peftcli.process_state import quiet_transformers
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.method import Method
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.tasks.task_table import task_info
from peftcli.training.speed.activation_checkpointing import enable_checkpointing

CLOSE = 2e-4
"""Largest difference of logits that counts as none, relative to the largest logit: float32 in another order."""
ROUNDING = 1e-6
"""Of the largest gradient: sums that cancel, such as a gate's, keep a rounding error of that size."""
STEPS = 4
LEARNING_RATE = 1e-2
FITS = "fits the model, or says why not"

Contract = Callable[[ContractModel, MethodParams], str | None]


@dataclass(frozen=True)
class Finding:
    """What became of one contract.

    Args:
        contract: the promise, as a sentence.
        model: on which it was tried; None for those that need no model.
        problem: what was found instead; None where it holds.
        skipped: why it was not tried.
    """

    contract: str
    model: str | None
    problem: str | None = None
    skipped: str | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return self.problem is None


def check_contracts(params: MethodParams) -> list[Finding]:
    """Try every contract of the method that these hyper-parameters belong to.

    Returns:
        A finding for each contract and model; a model that the method refuses has one finding that says so.
    """
    method = registry.method(params.name)
    findings = [Finding(text, None, contract(method)) for text, contract in _OF_THE_RECORD]
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' deprecations are none of the method's
        of_models = [finding for kind in MODELS for finding in _on_model(method, kind, params)]
    if all(finding.skipped for finding in of_models):
        findings.append(Finding("fits one of the models", None, "it refuses all of them"))
    return findings + of_models


def _on_model(method: Method[Any], kind: ContractModel, params: MethodParams) -> list[Finding]:
    """Return a finding for each contract on one model, or the one that the model does not fit."""
    try:
        reasons = _refusals(method, kind, params)
    except Exception as error:  # whatever the method's code raises
        return [Finding(FITS, kind.title, f"{type(error).__name__}: {error}")]
    if reasons:
        return [Finding(FITS, kind.title, skipped="; ".join(reasons))]
    return [Finding(text, kind.title, _tried(contract, kind, params)) for text, contract in _OF_A_MODEL]


def _refusals(method: Method[Any], kind: ContractModel, params: MethodParams) -> list[str]:
    if method.info.tasks and kind.task not in method.info.tasks:
        return [f"it serves {', '.join(sorted(method.info.tasks))}"]
    return method.check(read_anatomy(bare(kind, "meta")), params)


def _tried(contract: Contract, kind: ContractModel, params: MethodParams) -> str | None:
    """Return what a contract finds; an error of the method is a finding, too."""
    try:
        return contract(kind, params)
    except Exception as error:  # whatever the method's code raises
        return f"{type(error).__name__}: {error}"


def _record(method: Method[Any]) -> str | None:
    """The record is whole."""
    info = method.info
    wrong = [name for name in ("name", "summary", "paper") if not str(getattr(info, name)).strip()]
    if wrong:
        return f"info.{wrong[0]} is empty"
    if not info.learning_rate > 0:
        return f"info.learning_rate is {info.learning_rate}"
    if info.params.model_fields["name"].default != info.name:
        return f"the default of {info.params.__name__}.name is not {info.name!r}"
    return None


def _described(method: Method[Any]) -> str | None:
    """Each hyper-parameter has a sentence that `peft methods NAME` shows."""
    fields = method.info.params.model_fields
    bare_fields = [name for name, field in fields.items() if name != "name" and not (field.description or "").strip()]
    return f"no sentence stands below {', '.join(bare_fields)}" if bare_fields else None


def _light(method: Method[Any]) -> str | None:
    """Importing the module imports no torch."""
    heavy = "any(name in sys.modules for name in ('torch', 'transformers'))"
    code = f"import sys, {type(method).__module__}; sys.exit({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 1 and not done.stderr:
        return "importing it imports torch or transformers, so that `peft validate` takes seconds"
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def _attaches_on_meta(kind: ContractModel, params: MethodParams) -> str | None:
    """The same tensors are made on the meta device, where parameters are counted."""
    model = bare(kind, "meta")
    meta = apply_method(model, read_anatomy(model), params)
    ours, theirs = (
        {name: tuple(parameter.shape) for name, parameter in each.trainable_parameters().items()}
        for each in (live(kind, params).attachment, meta)
    )
    if ours != theirs:
        return f"trained tensors differ: {sorted(set(ours.items()) ^ set(theirs.items()))[:3]}"
    return None


def _leaves_the_base(kind: ContractModel, params: MethodParams) -> str | None:
    """Attaching changes no value of the base, and training none that it does not list."""
    found = live(kind, params, initialise=False)
    if changed := _changed(found, set()):
        return f"attaching changed {changed[0]}"
    found = live(kind, params)
    started = _changed(found, set())  # what `initialise` moves is the method's own affair: PiSSA takes the base apart
    listed = {name for name, parameter in _named(found.model) if parameter.requires_grad}
    optimizer = torch.optim.AdamW(found.attachment.trainable_parameters().values(), lr=LEARNING_RATE)
    found.train(batch_of(kind), range(1, STEPS + 1), STEPS, optimizer)
    if changed := _changed(found, listed | set(started)):
        return f"training changed {changed[0]}, which is not among its trainable parameters"
    return None


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if not is_added(name)]


def _changed(found: Live, allowed: set[str]) -> list[str]:
    now = dict(_named(found.model))
    return [
        name
        for name, before in found.base.items()
        if name in now and name not in allowed and not torch.equal(before, now[name].detach())
    ]


def _starts(kind: ContractModel, params: MethodParams) -> str | None:
    """A fresh adapter gives the base's outputs, or the method says why it does not."""
    if registry.method(params.name).why_not_identity(params) is not None:
        return None
    found, batch = live(kind, params), batch_of(kind)
    with torch.no_grad():
        expected = bare(kind)(**batch).logits
    off = difference(expected, found.outputs(batch))
    return f"it differs from the base by {off:.1e}, and why_not_identity says nothing" if off > CLOSE else None


def gradients(kind: ContractModel, params: MethodParams) -> str | None:
    """Every trained tensor has a gradient.

    That of a tensor of the base may be zero, where a text meets it by certain tokens only; which experts tokens meet is
    chance. Nothing is asked of a part at a module on whose weight the bare model's loss does not depend, nor of virtual
    tokens at the input where tokens do not reach each other.
    """
    found = live(kind, params)
    parameters = found.attachment.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE)
    batch, steps = batch_of(kind, padded=False), range(1, STEPS + 1)
    moved = found.train(batch, steps, STEPS, optimizer, until_all_moved=True)
    still = [name for name in found.attachment.trainable_parameters() if name not in moved | found.reached]
    still = [name for name in still if name not in found.base or ".experts." not in name]
    if still and kind.tokens_apart:
        virtual = {id(each.embeddings) for each in found.model.modules() if isinstance(each, Prompt)}
        still = [name for name in still if id(parameters[name]) not in virtual]
    if still:
        without = tuple(f"{name.removesuffix('weight')}" for name in kind.without_effect if name.endswith(".weight"))
        still = [name for name in still if not name.rpartition(":")[2].startswith(without)]
    return f"{len(still)} of {len(parameters)} have none in {STEPS} steps, such as {still[0]}" if still else None


def _saves(kind: ContractModel, params: MethodParams) -> str | None:
    """What it saves gives the same outputs on a fresh base; a missing and an unexpected tensor are refused."""
    trained, fresh, batch = live(kind, params), live(kind, params, initialise=False), batch_of(kind)
    trained.disturb()
    state = {key: tensor.clone() for key, tensor in trained.attachment.state_dict().items()}
    fresh.attachment.load_state_dict(state)
    if (off := difference(trained.outputs(batch), fresh.outputs(batch))) > CLOSE:
        return f"loaded again it gives other outputs (largest difference {off:.1e})"
    first = next(iter(state))
    for what, changed in (
        ("missing", {key: tensor for key, tensor in state.items() if key != first}),
        ("unexpected", {**state, "nothing.of.this.method": state[first]}),
    ):
        try:
            fresh.attachment.load_state_dict(changed)
        except UserError:
            continue
        return f"a state with {what} tensors is loaded without an error"
    return None


def _goes_on(kind: ContractModel, params: MethodParams) -> str | None:
    """Two steps, its state into a fresh attachment, and two more are the same bits as four steps."""
    whole, first, second, batch = live(kind, params), live(kind, params), live(kind, params), batch_of(kind)

    def optimizer_of(one: Live) -> torch.optim.Optimizer:
        return torch.optim.SGD(one.attachment.trainable_parameters().values(), lr=LEARNING_RATE)

    with seeded(11):
        whole.train(batch, range(1, STEPS + 1), STEPS, optimizer_of(whole))
    half = STEPS // 2
    with seeded(11):
        first.train(batch, range(1, half + 1), STEPS, optimizer_of(first))
        second.attachment.load_state_dict(first.attachment.state_dict())
        second.attachment.load_training_state(first.attachment.training_state())
        trained = first.attachment.trainable_parameters()
        with torch.no_grad():
            for name, parameter in second.attachment.trainable_parameters().items():
                parameter.copy_(trained[name])
        second.train(batch, range(half + 1, STEPS + 1), STEPS, optimizer_of(second))
    theirs = second.attachment.state_dict()
    wrong = [key for key, tensor in whole.attachment.state_dict().items() if not torch.equal(tensor, theirs[key])]
    return f"{wrong[0]} differs: training_state lacks something" if wrong else None


def _comes_off(kind: ContractModel, params: MethodParams) -> str | None:
    """Detached, it leaves the base's outputs, unless it trains tensors of the base itself."""
    found, batch = live(kind, params, initialise=False), batch_of(kind)
    found.disturb()
    found.attachment.detach()
    _put_back_(found)
    with torch.no_grad():
        expected = bare(kind)(**batch).logits
        got = found.model.eval()(**batch).logits
    return None if torch.equal(expected, got) else "the outputs differ from the base's after detach()"


def _switches_off(kind: ContractModel, params: MethodParams) -> str | None:
    """Switched off, it leaves the base's outputs, unless it trains tensors of the base; switched on again, its own."""
    found, batch = live(kind, params, initialise=False), batch_of(kind)
    found.disturb()
    _put_back_(found)
    own = found.outputs(batch)
    found.attachment.enable(False)
    with torch.no_grad():
        expected = bare(kind)(**batch).logits
    if (off := difference(expected, found.outputs(batch))) > CLOSE:
        return f"switched off, it differs from the base by {off:.1e}"
    found.attachment.enable()
    off = difference(own, found.outputs(batch))
    return f"switched on again, its outputs differ by {off:.1e}" if off > CLOSE else None


def _put_back_(found: Live) -> None:
    """Give the base's own tensors their values again: trained ones keep theirs when a method goes, by the protocol."""
    with torch.no_grad():
        for name, parameter in _named(found.model):
            parameter.copy_(found.base[name])


def ignores_padding(kind: ContractModel, params: MethodParams) -> str | None:
    """A row gives the same outputs alone and padded beside a longer one."""
    found = disturbed(kind, params)
    off = padding_effect(kind, found.outputs)
    return f"padding changes the outputs by {off:.1e}" if off > CLOSE else None


def uses_cache(kind: ContractModel, params: MethodParams) -> str | None:
    """It generates the same with and without a cache of keys and values."""
    if not task_info(kind.task).generates:
        return None
    found = disturbed(kind, params)
    off = cache_effect(kind, found.model.eval(), found.attachment.prepare_inputs)
    return f"generation with a cache differs by {off:.1e}" if off > CLOSE else None


def _recomputes(kind: ContractModel, params: MethodParams) -> str | None:
    """Gradients are the same under gradient checkpointing."""
    plain, checkpointed, batch = live(kind, params), live(kind, params), batch_of(kind)
    enable_checkpointing(checkpointed.model)
    for one in (plain, checkpointed):
        one.disturb()
        with seeded(5):
            torch.autograd.backward(one.loss(batch))
    theirs = checkpointed.attachment.trainable_parameters()
    largest = max(float(each.grad.abs().max()) for each in theirs.values() if each.grad is not None)
    for name, parameter in plain.attachment.trainable_parameters().items():
        mine, other = parameter.grad, theirs[name].grad
        if (mine is None) != (other is None):
            return f"{name} has a gradient only {'without' if other is None else 'with'} checkpointing"
        if mine is None or other is None or float((mine - other).abs().max()) <= ROUNDING * largest:
            continue
        if (off := difference(mine, other)) > CLOSE:
            return f"the gradient of {name} differs by {off:.1e}"
    return None


def merges(kind: ContractModel, params: MethodParams) -> str | None:
    """Where it says that it merges, the merged base gives the outputs of base and method."""
    method = registry.method(params.name)
    if method.info.artifact == "model" or method.why_not_mergeable(params) is not None:
        return None  # of `full` and `freeze` the complete model is saved
    found, batch = _loaded(kind, params, disturbed(kind, params)), batch_of(kind)
    state = found.attachment.state_dict()
    own = {key: tensor for key, tensor in state.items() if key not in found.attachment.head}
    merged = bare(kind)
    tied = tied_groups(merged)
    for name, rule in method.merge_rules(found.anatomy, params, own).items():
        before = found.base.get(name)
        value = nn.Parameter(rule.apply(None if before is None or rule.kind == "add" else before.clone().float()))
        for each in (name,) if rule.kind == "untie" else tied.get(name, (name,)):
            place, _, last = each.rpartition(".")
            setattr(merged.get_submodule(place), last, value)
    with torch.no_grad():
        for name in found.attachment.head:
            merged.get_parameter(name).copy_(state[name])
        off = difference(found.outputs(batch), merged.eval()(**batch).logits)
    return f"the merged model's outputs differ by {off:.1e}" if off > CLOSE else None


def _loaded(kind: ContractModel, params: MethodParams, trained: Live) -> Live:
    """Return the method as a merge sees it: what was saved, on the base as it lies on the disk."""
    fresh = live(kind, params, initialise=False)
    fresh.attachment.load_state_dict(trained.attachment.state_dict())
    return fresh


def _combines(kind: ContractModel, params: MethodParams) -> str | None:
    """It trains beside bottleneck adapters in a composition, or says why it cannot."""
    if registry.info(params.name).artifact == "model":
        return None
    parts = [params.model_dump(exclude_none=True), {"name": "parallel_adapter", "bottleneck_size": 8}]
    try:
        both = registry.info("compose").params.model_validate({"parts": parts})
        found = live(kind, both)
    except (UserError, ValidationError):
        return None  # a composition within one, a choice of base, the same place
    optimizer = torch.optim.AdamW(found.attachment.trainable_parameters().values(), lr=LEARNING_RATE)
    moved = found.train(batch_of(kind, padded=False), range(1, STEPS + 1), STEPS, optimizer)
    still = [name for name in found.attachment.trainable_parameters() if name not in moved]
    return f"beside an adapter {still[0]} has no gradient" if still else None


_OF_THE_RECORD: tuple[tuple[str, Callable[[Method[Any]], str | None]], ...] = (
    ("its record is whole", _record),
    ("each hyper-parameter has a sentence", _described),
    ("importing it imports no torch", _light),
)
_OF_A_MODEL: tuple[tuple[str, Contract], ...] = (
    ("makes the same tensors on the meta device", _attaches_on_meta),
    ("changes nothing of the base that it does not list", _leaves_the_base),
    ("starts as the base, or says why not", _starts),
    ("every trained tensor has a gradient", gradients),
    ("what it saves is all there is, and strict", _saves),
    ("continues from its state bit for bit", _goes_on),
    ("comes off without a trace", _comes_off),
    ("switched off, it is the base", _switches_off),
    ("ignores padding", ignores_padding),
    ("generates the same with and without a cache", uses_cache),
    ("has the same gradients under checkpointing", _recomputes),
    ("merges as it says", merges),
    ("trains beside an adapter in a composition, or says why not", _combines),
)
