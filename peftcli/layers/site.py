"""Sites: the places of a frozen model where methods add something, without touching its code.

A site is a small child module of the module it changes (its *host*) and holds an ordered list of parts. One forward
hook (or pre-hook) on the host runs them. The host keeps its class, its weights and its state-dict names; the parts'
parameters are registered below it, so that `.to`, `.train`, DDP and gradient checkpointing reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peftcli.layers.added_modules import ADDED, is_added
from peftcli.layers.part_device import device_beside

SITE_NAME = f"{ADDED}site"
"""Child name of a site at its host's output, under the host."""
SPAN_SITE_NAME = f"{ADDED}span_site"
"""The same where the site's input is that of another module."""
INPUT_SITE_NAME = f"{ADDED}input"
"""Child name of a site at its host's input."""

Made = TypeVar("Made", bound="nn.Module | tuple[nn.Module, ...]")

Scale = float | nn.Module
"""A constant, or a module that maps the site's input to a factor that broadcasts against the site's output."""


class Part(nn.Module):
    """What one method adds at one site.

    Attributes:
        scale: a float, or a module of the site's input (a gate); `compose` and UniPELT replace it.
        enabled: a disabled part passes its input through, so that adapters sharing a base can be switched.
        stage: parts at one site run by stage, then in the order they came: 0 changes the host's own output (low rank,
            IA3), 1 works on the finished branch (serial adapters), 2 replaces rows of it (prompts).
        exclusive: whether what the part does depends on its projection's whole weight (DoRA): no other stage-0 part may
            be there.
    """

    stage = 0
    exclusive = False

    def __init__(self, scale: Scale = 1.0) -> None:
        super().__init__()
        self.enabled = True
        self.scale: Any = scale

    def scale_of(self, x: Tensor) -> Tensor | float:
        """Return the factor for the site's input `x`: (..., d_in)."""
        factor: Tensor | float = self.scale(x) if isinstance(self.scale, nn.Module) else self.scale
        return factor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the site's new value.

        Args:
            x: the site's input, (..., d_in).
            y: what the site held before this part, (..., d_out).
        """
        raise TypeError(f"{type(self).__name__} does not define forward(x, y)")

    def gate_width(self) -> int | None:
        """Return the width of what a gate in place of `scale` would see, or None if this part takes no gate."""
        return None

    def fill_gate(self, weight: Tensor) -> None:
        """Initialise the weight (1, width) of a gate that is put in place of `scale`; by default as nn.Linear does."""
        nn.init.kaiming_uniform_(weight, a=5**0.5)

    def multiplicative(self) -> list[nn.Parameter]:
        """Return the trained numbers that multiply what is there; by default those of a gate in place of `scale`.

        Weight decay leaves them alone: zero, to which it draws, is not where they do nothing.
        """
        return list(self.scale.parameters()) if isinstance(self.scale, nn.Module) else []

    def start_from_base(self) -> None:
        """Set what depends on values of the base, such as DoRA's magnitudes; by default nothing does.

        Called once before a new training; on the meta device and before a load it is left out.
        """

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """Return (d_out, k) and (k, d_in) whose product, times `scale`, is the change of the weight; None otherwise.

        A magnitude beside the product (DoRA) is left out. This is what a spectrum is computed from.
        """
        return None

    def allotted_rank(self) -> int | None:
        """Return the rank that the part was made with, those that were pruned included; None without `low_rank`."""
        factors = self.low_rank()
        return None if factors is None else factors[1].shape[0]

    def learnt_magnitude(self) -> Tensor | None:
        """Return the magnitude beside the product of `low_rank`, one number for each row of the weight; None without.

        In a table it is one number for each column.
        """
        return None

    def forget(self) -> None:
        """Drop what was computed from the part's values and is kept between calls: they were given other ones."""

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are saved, by key suffix such as `lora_A.weight`; by default the parameters."""
        return dict(self.named_parameters())


class PartList(nn.ModuleList):
    """Parts in the order they run: `append` keeps them sorted by stage."""

    def append(self, module: nn.Module) -> PartList:
        """Put a part behind those of its own and earlier stages."""
        later = (index for index, part in enumerate(self) if _stage(part) > _stage(module))
        self.insert(next(later, len(self)), module)
        return self


def _stage(module: nn.Module) -> int:
    return module.stage if isinstance(module, Part) else 0


class Site(nn.Module):
    """The ordered parts at one host; calling it passes `y` through the enabled ones."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = PartList()
        self.entry: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for part in self.parts:
            if part.enabled:
                y = part(x, y)
        return y

    @property
    def active(self) -> bool:
        return any(part.enabled for part in self.parts)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a module's main input, given positionally or as `hidden_states`."""
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def _rows_as(x: Tensor, y: Tensor) -> Tensor:
    """Return the input with the output's leading sizes: a module of experts may return (rows * length, width)."""
    flattened = x.is_floating_point() and x.dim() > y.dim() and x.shape[:-1].numel() == y.shape[:-1].numel()
    return x.reshape(*y.shape[:-1], x.shape[-1]) if flattened else x


def output_site(host: nn.Module, entry: nn.Module | None = None) -> Site:
    """Return the site at `host`'s output, made on the first call.

    Args:
        host: module whose (first) output the parts change.
        entry: module whose input is the site's `x`; by default the host itself. An entry that is another module must
            run before the host within the same block (a feed-forward's first and last projection, say).
    """
    name = SITE_NAME if entry is None or entry is host else SPAN_SITE_NAME
    existing = host._modules.get(name)
    if isinstance(existing, Site):
        return existing
    site = Site()
    host.add_module(name, site)
    if entry is not None and entry is not host:
        entry.register_forward_pre_hook(_remember_entry(site), with_kwargs=True)
    host.register_forward_hook(_apply(site, spans=name != SITE_NAME), with_kwargs=True)
    return site


def output_parts(host: nn.Module) -> list[Part]:
    """Return the parts at `host`'s output, in order."""
    site = host._modules.get(SITE_NAME)
    return [part for part in site.parts if isinstance(part, Part)] if isinstance(site, Site) else []


def _remember_entry(site: Site) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if site.active:
            site.entry = first_tensor(args, kwargs)

    return hook


def _apply(site: Site, *, spans: bool) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not site.active:
            return output
        x = site.entry if spans else first_tensor(args, kwargs)
        site.entry = None  # under checkpointing the entry runs again before the host does
        several = isinstance(output, tuple | list)  # the blocks of some models return a list
        first: Tensor = output[0] if several else output
        changed = site(x if x is None else _rows_as(x, first), first)
        if isinstance(output, list):
            return [changed, *output[1:]]
        if hasattr(output, "_fields"):  # a named tuple: the code behind it asks for its fields
            return output._replace(**{output._fields[0]: changed})
        return (changed, *output[1:]) if several else changed

    return hook


def input_site(host: nn.Module) -> Site:
    """Return the site at `host`'s first input, made on the first call: its parts see `x` and `y` equal."""
    existing = host._modules.get(INPUT_SITE_NAME)
    if isinstance(existing, Site):
        return existing
    site = Site()
    host.add_module(INPUT_SITE_NAME, site)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not site.active:
            return None
        if args:
            return (site(args[0], args[0]), *args[1:]), kwargs
        value = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": site(value, value)}

    host.register_forward_pre_hook(hook, with_kwargs=True)
    return site


def base_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the base model's own parameters by name: everything that no method added, shared tensors once."""
    return {name: parameter for name, parameter in model.named_parameters() if not is_added(name)}


def device_of(module: nn.Module, model: nn.Module) -> torch.device:
    """Return where a part for `module` belongs: on the module's own device, or the model's.

    Raises:
        ValueError: neither has a parameter.
    """
    for owner in (module, model):
        for parameter in owner.parameters():
            return device_beside(parameter)
    raise ValueError("the model has no parameters")


def made_on(device: torch.device, make: Callable[[], Made]) -> Made:
    """Return the module, or modules, that `make` makes, on `device`.

    Random values are drawn on the CPU, whatever the device: a seed means the same adapter everywhere. On the meta
    device nothing is drawn.
    """
    with torch.device("meta" if device.type == "meta" else "cpu"):
        made = make()
    for module in made if isinstance(made, tuple) else (made,):
        module.to(device)
    return made
