"""The lists of blocks that text passes through: the towers of images and sound take no part."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.models.module_view import ModuleView, module_kind

_TEXT_CONFIGS = ("text_config", "text_encoder", "encoder", "decoder", "generator")
"""The attributes of a config of several models that hold those of its text models."""


class TextPart:
    """The part of a model that text enters, which its config tells.

    Args:
        view: of the whole model.
    """

    def __init__(self, view: ModuleView) -> None:
        self._view = view
        self._types = set(_text_types(view.model.config))
        self._models = [name for name, module in view.modules.items() if isinstance(module, PreTrainedModel)]
        if not any(self._is_text(name) for name in self._models):  # the config does not tell
            self._types = {type(view.modules[name].config) for name in self._models}

    def holds(self, path: str) -> bool:
        """Tell whether a module is part of a text model, and not of another tower or of what connects the two."""
        around = [name for name in self._models if not name or path == name or path.startswith(f"{name}.")]
        return self._is_text(max(around, key=len))

    def _is_text(self, model: str) -> bool:
        return type(self._view.modules[model].config) in self._types


def _text_types(config: PretrainedConfig) -> Iterator[type]:
    """Yield the classes of the configs of a model's text models: its own, if it holds no other."""
    inner = [getattr(config, name, None) for name in _TEXT_CONFIGS]
    texts = [one for one in inner if isinstance(one, PretrainedConfig)]
    if not texts:
        yield type(config)
    for one in texts:
        yield from _text_types(one)


def block_lists(view: ModuleView) -> list[str]:
    """Return the paths within the base model of the outermost lists of blocks that text enters.

    The blocks of a list may be of several classes, as in models that alternate attention and state spaces.
    """
    text = TextPart(view)
    every = [name for name, module in view.modules.items() if view.in_base(name) and _is_block_list(module)]
    lists = [name for name in every if text.holds(name)] or every
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [name[len(view.base_path) :].lstrip(".") for name in outer]


def _is_block_list(module: nn.Module) -> bool:
    """Tell whether a module is a list of blocks: none is a single layer, and they have two linears each on average."""
    if not isinstance(module, nn.ModuleList) or not len(module):
        return False
    if any(module_kind(block) or not any(block.children()) or isinstance(block, nn.ModuleList) for block in module):
        return False
    linears = sum(module_kind(child) in ("linear", "conv1d") for block in module for child in block.modules())
    return linears >= 2 * len(module)
