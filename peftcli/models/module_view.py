"""Look up the modules of a model by path, by kind and by pattern."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcli.errors import UserError
from peftcli.layers.added_modules import is_added
from peftcli.layers.quantised.quantised_weights import is_quantised

Kind = Literal["linear", "conv1d", "embedding", "experts"]


def module_kind(module: nn.Module) -> Kind | None:
    """Return the kind of a module that a low-rank change can be added to, or None.

    Layers of any quantiser are linears if they have `in_features`, `out_features` and a weight or its codes.
    """
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear"
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    wide = all(isinstance(width, int) for width in widths)
    return "linear" if wide and (hasattr(module, "weight") or is_quantised(module)) else None


def hidden_size(config: PretrainedConfig) -> int:
    """Return the width of the residual stream, which configs store under different names."""
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise UserError(f"the config of this {config.model_type} model does not tell the width of its blocks")


def block_width(config: PretrainedConfig) -> int:
    """Return the width at which blocks compute: that of the residual stream, but in MobileBERT, which narrows it."""
    narrowed = getattr(config, "true_hidden_size", None)
    return narrowed if isinstance(narrowed, int) else hidden_size(config)


def heads_of(config: PretrainedConfig, names: str) -> int | None:
    """Return the number of query heads: the first of the attributes `a|b` that the config has."""
    found = (getattr(config, name, None) for name in names.split("|"))
    return next((value for value in found if isinstance(value, int)), None)


class ModuleView:
    """The modules of one model by path, and the path of its base model.

    Args:
        model: a task model or a bare base model, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules(remove_duplicate=False) if not is_added(name)
        }
        self._first_names: dict[int, str] = {}
        for name, module in self.modules.items():
            self._first_names.setdefault(id(module), name)
        base = model.base_model
        self.base_path = next(name for name, module in self.modules.items() if module is base)

    def absolute(self, path: str) -> str:
        """Return the full path of a path within the base model."""
        return ".".join(part for part in (self.base_path, path) if part)

    def first(self, parent: str, spec: str | None) -> str | None:
        """Return the full path of the first alternative of `a|b` that exists in `parent`, or None."""
        for alternative in (spec or "").split("|"):
            path = f"{parent}.{alternative}" if parent else alternative
            if alternative and path in self.modules:
                return path
        return None

    def expand(self, spec: str) -> list[str]:
        """Return the full paths of the first alternative of `a.*.b.*|c.*` that exists in the base model, in order."""
        for alternative in spec.split("|"):
            pattern = re.compile(re.escape(self.absolute(alternative)).replace(r"\*", r"(\d+)"))
            found = [
                (tuple(map(int, match.groups())), name) for name in self.modules if (match := pattern.fullmatch(name))
            ]
            if found:
                return [name for _, name in sorted(found)]
        return []

    def is_first_name(self, path: str) -> bool:
        """Tell whether a path is the first of its module, which blocks may share."""
        return self._first_names[id(self.modules[path])] == path

    def in_base(self, path: str) -> bool:
        """Tell whether a full path is in the base model."""
        return not self.base_path or path == self.base_path or path.startswith(f"{self.base_path}.")
