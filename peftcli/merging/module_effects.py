"""What an adapter does at single projections, and whether the written weights do it, too.

The outputs of a whole model do not show that one projection of many lost its change where half precision hides more
than that. Here each projection that a merge changes gets the same random inputs, alone and in float32: in the base, in
base + adapter, and in the merged model. That costs a product of its weight with a few rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import is_transposed, linear_widths
from peftcli.layers.part_device import device_beside
from peftcli.merging.carried_effect import LEAST, MOST
from peftcli.merging.merge_plan import MergedTensor

_ROWS = 8
"""Random inputs of a projection."""
_SILENT = 2e-5
"""A change up to this share of what a projection gives is too near to float32's own rounding."""
_ERRORS = 4.0
"""So many standard errors must lie between a share and the limit that it is beyond."""


@dataclass(frozen=True)
class ModuleEffects:
    """What projections give for the same inputs, (1, rows, d_out), float32, on the CPU, by the path of the module.

    Args:
        plain: of the base.
        adapted: of base + adapter.
    """

    plain: Mapping[str, Tensor]
    adapted: Mapping[str, Tensor]

    def lost_in(self, merged: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the projections that have another change than the adapter's, with the share of it that they have."""
        shares = {name: self.share(name, found) for name, found in merged.items() if name in self.plain}
        return {name: share for name, share in shares.items() if share is not None and not LEAST <= share <= MOST}

    def share(self, name: str, merged: Tensor) -> float | None:
        """Return what of the adapter's change at a projection a merged one has: 0 for the base's, 1 for all of it.

        Returns:
            None where rounding leaves open whether it is within the limits of a merge, or nothing changes.
        """
        plain = self.plain[name].double()
        change, found = self.adapted[name].double() - plain, merged.double() - plain
        size = float(change.norm())
        if not size > _SILENT * float(plain.norm()) or found.shape != change.shape:
            return None
        share = float((found * change).sum()) / size**2
        error = _ERRORS * float((found - share * change).norm()) / found.numel() ** 0.5 / size
        within = LEAST <= share <= MOST
        return share if within or share + error < LEAST or share - error > MOST else None


def changed_projections(model: nn.Module, rules: Iterable[str]) -> list[str]:
    """Return the paths of the projections whose weight or bias a merge changes.

    Args:
        model: the live base.
        rules: names of the parameters that change.
    """
    paths = dict.fromkeys(name.rpartition(".")[0] for name in rules)
    hosts = {path: model.get_submodule(path) for path in paths}
    return [path for path, host in hosts.items() if isinstance(host, nn.Linear) or is_transposed(host)]


@torch.no_grad()
def module_outputs(
    model: nn.Module, paths: Iterable[str], instead: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return what projections give for random inputs, with the parts of an adapter that are at them.

    Args:
        model: live, in evaluation mode.
        paths: of the projections; those that this model lacks are left out.
        instead: values of their parameters in place of the live ones, by name.
    """
    modules = dict(model.named_modules())
    found = {}
    for path in paths:
        host = modules.get(path)
        if host is None:
            continue
        values = {name: value.detach().float() for name, value in host.named_parameters(recurse=False)}
        values |= {name: instead[f"{path}.{name}"] for name in values if instead and f"{path}.{name}" in instead}
        device = device_beside(next(host.parameters(recurse=False)))
        own: dict[str, Tensor] = {
            name: nn.Parameter(value.to(device), requires_grad=False) for name, value in values.items()
        }
        width, _ = linear_widths(host)
        inputs = torch.randn(1, _ROWS, width, generator=torch.Generator().manual_seed(0))
        found[path] = torch.func.functional_call(host, own, (inputs.to(device),)).float().cpu()
    return found


@dataclass(frozen=True)
class LostChanges:
    """Projections of a merged model that have less than half, or more than one and a half, of the adapter's change.

    Args:
        rounded: those whose change was right before it was rounded to the type of the weights, with the share left.
        wrong: the others, with the share that they have.
        compared: how many projections were looked at.
    """

    rounded: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, float] = field(default_factory=dict)
    compared: int = 0


def lost_changes(effects: ModuleEffects, merged: nn.Module, planned: Iterable[MergedTensor]) -> LostChanges:
    """Return which projections of a merged model lost their change, and whether rounding took it.

    Args:
        effects: of the adapter.
        merged: the merged model.
        planned: its tensors; what was to be written is computed again for those that lost their change.
    """
    lost = effects.lost_in(module_outputs(merged, effects.plain))
    outputs = {output.live_name: output for output in planned if output.live_name} if lost else {}
    rounded = {path: share for path, share in lost.items() if _rounding_did_it(path, effects, merged, outputs)}
    wrong = {path: share for path, share in lost.items() if path not in rounded}
    return LostChanges(rounded, wrong, len(effects.plain))


def _rounding_did_it(path: str, effects: ModuleEffects, merged: nn.Module, outputs: Mapping[str, MergedTensor]) -> bool:
    """Tell whether a projection has what was planned for it, and that was right before it was rounded."""
    exact: dict[str, Tensor] = {}
    for name, value in merged.get_submodule(path).named_parameters(recurse=False):
        output = outputs.get(f"{path}.{name}")
        if output is None or output.rule is None:
            continue
        exact[f"{path}.{name}"] = before = output.rule.apply(output.read_base())
        if not torch.equal(before.to(output.planned.dtype).float(), value.detach().float().cpu()):
            return False
    share = effects.share(path, module_outputs(merged, [path], exact)[path]) if exact else None
    return share is not None and LEAST <= share <= MOST
