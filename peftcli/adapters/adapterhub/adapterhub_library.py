"""AdapterHub's library (the package `adapters`, 1.3): what its directories look like, and which methods it has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.adapters.library import Library
from peftcli.errors import UserError

if TYPE_CHECKING:
    from peftcli.adapters.base_shape import BaseName
    from peftcli.adapters.format import SavedAdapter


class AdapterHub(Library):
    """The adapters that AdapterHub's library saves as safetensors. Mapping its keys to modules needs the base model."""

    name = "adapterhub"
    title = "AdapterHub's `adapters`"
    files = "those of AdapterHub's `adapters` (safetensors)"
    lacks = "AdapterHub's `adapters` saves only adapter, parallel_adapter, compacter and lora as safetensors"

    def methods(self) -> Collection[str]:
        """Return the methods of all `HUB_FORMATS`."""
        from peftcli.adapters.adapterhub.hub_format import HUB_FORMATS

        return [name for known in HUB_FORMATS for name in known.methods]

    def recognises(self, directory: Path) -> bool:
        """Tell whether there is an adapter_config.json with an inner `config` and a `model_type`."""
        if not (directory / CONFIG).is_file():
            return False
        config = read_json(directory / CONFIG)
        return "peft_type" not in config and "config" in config and "model_type" in config

    def base_of(self, directory: Path) -> BaseName:
        """Return the base that adapter_config.json names."""
        from peftcli.adapters.adapterhub.hub_config import read_hub_config
        from peftcli.adapters.base_shape import BaseName

        return BaseName(read_hub_config(directory).get("model_name"), file=directory / CONFIG)

    def read(self, directory: Path, base: BaseName | None) -> SavedAdapter:
        """Read an adapter and its task head; this always needs the base model."""
        from peftcli.adapters.adapterhub.adapterhub_files import read
        from peftcli.adapters.sidecar import explained_params

        if base is None:
            raise UserError(
                f"{directory} is an adapter of AdapterHub's library, which cannot be read without its base model",
                suggestion=f"first turn it into ours: peft import {directory} -o DIR --base MODEL",
            )
        with explained_params(directory / CONFIG):
            return read(directory, base)

    def write(
        self, saved: SavedAdapter, source: Path, output: Path, *, base: str | None, instead: str | None
    ) -> tuple[str, ...]:
        """Write what the library loads with `use_safetensors=True`."""
        from peftcli.adapters.adapterhub.adapterhub_files import write

        return write(saved, source, output, base)
