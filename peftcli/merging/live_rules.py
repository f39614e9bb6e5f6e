"""Fold merge rules into a live model: what a merge writes, in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from peftcli.merging.merge_plan import tied_groups
from peftcli.protocol.method import MergeRule


@torch.no_grad()
def fold_rules(model: PreTrainedModel, rules: Mapping[str, MergeRule]) -> None:
    """Apply rules to the parameters of a model in place, each computed in float32 and rounded to the parameter's type.

    Args:
        model: the live base, without parts.
        rules: by name of the parameter; one of kind `untie` gives its parameter storage of its own.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    tied = tied_groups(model)
    alone = [name for name in rules if rules[name].kind == "untie" and name in tied]
    for name in alone:  # first: the others of the group change or stay, and this one starts from the base's values
        module, _, parameter = name.rpartition(".")
        own = nn.Parameter(live[name].detach().clone(), requires_grad=False)
        model.get_submodule(module).register_parameter(parameter, own)
        live[name] = own
    for name, rule in rules.items():
        base = None if rule.kind == "add" else live[name].detach().to("cpu", torch.float32, copy=True)
        live[name].copy_(rule.apply(base))
