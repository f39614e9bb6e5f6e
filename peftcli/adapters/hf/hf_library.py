"""HF peft (the package `peft`, 0.21) as a library: what its directories look like, and which methods it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftcli.adapters.adapter_files import CONFIG, WEIGHTS, read_json, read_tensors
from peftcli.adapters.library import PLAIN_LORA, Library, RunFiles, RunLayout
from peftcli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from peftcli.adapters.base_shape import BaseName
    from peftcli.adapters.format import AdapterMeta, SavedAdapter
    from peftcli.recipe.method_params import MethodParams


class HfRunLayout(RunLayout):
    """HF peft's files beside peftcli.json."""

    name = "hf_peft"

    def files(self, params: MethodParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> RunFiles | None:
        """Return HF peft's files of a run's adapter, if it can hold it as it is."""
        from peftcli.adapters.hf.hf_files import hf_use
        from peftcli.adapters.hf.hf_table import FORMATS

        found = FORMATS.get(params.name)
        if found is None or found.why_not_whole(params, meta, state) is not None:
            return None
        return RunFiles(found.config(params, meta, state), found.to_file(state, params, meta), hf_use(meta, found.note))

    def state(
        self, directory: Path, tensors: Mapping[str, Tensor], params: MethodParams, meta: AdapterMeta
    ) -> dict[str, Tensor]:
        """Return the tensors of a run's adapter by our keys."""
        from peftcli.adapters.hf.hf_config import read_hf_config
        from peftcli.adapters.hf.hf_table import FORMATS

        found = FORMATS.get(params.name)
        if found is None:
            raise UserError(
                f"{directory}: {params.name} was saved in HF peft's layout, which this version does not read"
            )
        return found.from_file(tensors, params, meta, read_hf_config(directory))


class HfPeft(Library):
    """HF peft. A run's adapter is saved in its layout where HF peft has the method, so that it loads `RUN/adapter`."""

    name = "hf-peft"
    title = "HF peft"
    files = "HF peft's"
    lacks = "HF peft has no such method"
    instead: ClassVar[Mapping[str, str]] = {PLAIN_LORA: "Convert AdaLoRA to an equivalent plain LoRA."}
    run_layout = HfRunLayout()

    def methods(self) -> Collection[str]:
        """Return the methods in `FORMATS`."""
        from peftcli.adapters.hf.hf_table import FORMATS

        return FORMATS.keys()

    def recognises(self, directory: Path) -> bool:
        """Tell whether there is an adapter_config.json with a `peft_type`."""
        return (directory / CONFIG).is_file() and "peft_type" in read_json(directory / CONFIG)

    def base_of(self, directory: Path) -> BaseName:
        """Return the base that adapter_config.json names."""
        from peftcli.adapters.base_shape import BaseName
        from peftcli.adapters.hf.hf_config import read_hf_config

        config = read_hf_config(directory)
        return BaseName(config.get("base_model_name_or_path"), config.get("revision"), file=directory / CONFIG)

    def read(self, directory: Path, base: BaseName | None) -> SavedAdapter:
        """Read an adapter by its `peft_type`; a prefix or a prompt needs the base, since its file names no module."""
        from peftcli.adapters.hf.hf_config import read_hf_config, unknown_keys
        from peftcli.adapters.hf.hf_table import format_of_type
        from peftcli.adapters.sidecar import explained_params

        config = read_hf_config(directory)
        found = format_of_type(config, directory)
        tensors = read_tensors(directory / WEIGHTS)
        if found.needs_base and base is None:
            raise UserError(
                f"{directory} holds an adapter of peft_type {found.peft_type!r}, whose file names no modules: reading "
                "it needs its base model",
                suggestion=f"first turn it into ours: peft import {directory} -o DIR --base MODEL",
            )
        with explained_params(directory / CONFIG):
            saved = found.read(config, tensors, directory, base)
        return replace(saved, notes=(*saved.notes, *unknown_keys(config, directory)))

    def write(
        self, saved: SavedAdapter, source: Path, output: Path, *, base: str | None, instead: str | None
    ) -> tuple[str, ...]:
        """Write what HF peft loads; the base is not read."""
        from peftcli.adapters.hf.hf_export import write

        return write(saved, source, output, instead)
