"""The methods that HF peft has. A new one needs a file in `layouts/` and one line here.

Facts about the layout (read in its sources and checked by running it, 0.21): keys are
`base_model.model.<path>.<parameter>`, the adapter's name never appears, a key that it does not expect is ignored in
silence, and a missing one only warns. So a file written here is complete, and names modules by endings or paths that
match exactly those that were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.hf.hf_format import HfFormat
from peftcli.adapters.hf.layouts.adalora import AdaLoraFormat
from peftcli.adapters.hf.layouts.hira import HiraFormat
from peftcli.adapters.hf.layouts.ia3 import IA3Format
from peftcli.adapters.hf.layouts.ln_tuning import LNTuningFormat
from peftcli.adapters.hf.layouts.lokr import LoKrFormat
from peftcli.adapters.hf.layouts.lora import LoraFormat
from peftcli.adapters.hf.layouts.miss import MissFormat
from peftcli.adapters.hf.layouts.oft import OftFormat
from peftcli.adapters.hf.layouts.prefix_tuning import PrefixTuningFormat
from peftcli.adapters.hf.layouts.prompt_tuning import PromptTuningFormat
from peftcli.adapters.hf.layouts.shira import ShiraFormat
from peftcli.adapters.hf.layouts.vera import VeraFormat
from peftcli.errors import UserError

FORMATS: Mapping[str, HfFormat[Any]] = {
    "lora": LoraFormat(),
    "qlora": LoraFormat(),
    "adalora": AdaLoraFormat(),
    "vera": VeraFormat(),
    "ia3": IA3Format(),
    "ln_tuning": LNTuningFormat(),
    "oft": OftFormat(),
    "miss": MissFormat(),
    "hira": HiraFormat(),
    "lokr": LoKrFormat(),
    "shira": ShiraFormat(),
    "prefix_tuning": PrefixTuningFormat(),
    "prompt_tuning": PromptTuningFormat(),
}
"""Method name to its layout; a method that is not here is saved in ours."""


def format_of_type(config: Mapping[str, Any], where: Path) -> HfFormat[Any]:
    """Return the layout of an adapter_config.json's `peft_type`.

    Raises:
        UserError: a kind of adapter that cannot be read.
    """
    kinds = {known.peft_type: known for known in FORMATS.values()}
    kind = str(config.get("peft_type"))
    if kind not in kinds:
        raise UserError(
            f"{where / CONFIG}: an adapter of peft_type {config.get('peft_type')!r} cannot be imported",
            suggestion=f"these can be imported: {', '.join(sorted(kinds))}",
        )
    return kinds[kind]
