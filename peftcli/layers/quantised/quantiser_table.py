"""The quantisers that a checkpoint can name in its config.json: what each needs, and how its weights are held here.

Facts are those of transformers 5.24. A row is data: libraries' names are in this room only. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GPU = ("cuda",)
GPU_OR_CPU = ("cuda", "cpu", "xpu")

_NO_GRADIENT = "transformers says that its layers pass no gradient"
OWN = "cpu, in an environment of its own"
_UNREAD = "transformers reads no checkpoint of it"


@dataclass(frozen=True)
class Quantiser:
    """What a checkpoint of one quantiser needs, and what can be done with it.

    Args:
        title: as its authors write it.
        held: `dequantised`: each weight becomes a plain 16- or 32-bit one while it is read, so that the base is a plain
            model from then on. `packed`: it stays as stored, and its layers compute by themselves.
        packages: what must be installed, by the name to import: the name to install.
        devices: where its layers compute; None is everywhere.
        hub_code: whether its layers run code that is fetched from the hub while the model loads.
        not_trained: why no adapter trains on it; None where one does.
        not_loaded: why it does not load at all.
        tried: where tests train on it: `cpu`, `cpu, in an environment of its own`, or empty.
        backends: by device the `backend` under which its library makes layers that pass a gradient and stay so. Its own
            choice on a GPU passes none; that on a CPU passes none after a first call without one.
    """

    title: str
    held: Literal["dequantised", "packed"] = "packed"
    packages: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] | None = None
    hub_code: bool = False
    not_trained: str | None = None
    not_loaded: str | None = None
    tried: str = ""
    backends: Mapping[str, str] = field(default_factory=dict)


def _gptqmodel(plain: str) -> dict[str, str]:
    return {"cuda": "auto_trainable", "cpu": plain, "xpu": plain}


_GPTQ_PACKAGES = (("gptqmodel", "gptqmodel"), ("optimum", "optimum"))

QUANTISERS: dict[str, Quantiser] = {
    "bitsandbytes": Quantiser("bitsandbytes", "packed", (("bitsandbytes", "bitsandbytes"),), GPU_OR_CPU, tried="cpu"),
    "compressed-tensors": Quantiser(
        "compressed-tensors", "dequantised", (("compressed_tensors", "compressed-tensors"),), tried="cpu"
    ),
    "fp8": Quantiser("fine-grained FP8 (DeepSeek)", "dequantised", tried="cpu"),
    "mxfp8": Quantiser("MXFP8", "dequantised"),
    "mxfp4": Quantiser("MXFP4 (gpt-oss)", "dequantised", tried="cpu"),
    "metal": Quantiser("Metal", "dequantised"),
    "torchao": Quantiser("torchao", "packed", (("torchao", "torchao"),), tried=OWN),
    "gptq": Quantiser("GPTQ", "packed", _GPTQ_PACKAGES, GPU_OR_CPU, backends=_gptqmodel("torch"), tried=OWN),
    "awq": Quantiser(
        "AWQ", "packed", (("gptqmodel", "gptqmodel"),), GPU_OR_CPU, backends=_gptqmodel("torch_awq"), tried=OWN
    ),
    "quanto": Quantiser("quanto", "packed", (("optimum.quanto", "optimum-quanto"),), GPU_OR_CPU),
    "aqlm": Quantiser("AQLM", "packed", (("aqlm", "aqlm[gpu,cpu]"),), GPU_OR_CPU),
    "eetq": Quantiser("EETQ", "packed", (("kernels", "kernels"),), GPU, hub_code=True),
    "hqq": Quantiser("HQQ", not_loaded=_UNREAD),
    "nvfp4": Quantiser("NVFP4", not_loaded=_UNREAD),
    "auto-round": Quantiser("AutoRound", packages=(("auto_round", "auto-round"),), not_trained=_NO_GRADIENT),
    "bitnet": Quantiser("BitNet", not_trained=_NO_GRADIENT),
    "fbgemm_fp8": Quantiser(
        "FBGEMM FP8", packages=(("fbgemm_gpu", "fbgemm-gpu"),), devices=GPU, not_trained=_NO_GRADIENT
    ),
    "fouroversix": Quantiser("Four Over Six", packages=(("fouroversix", "fouroversix"),), not_trained=_NO_GRADIENT),
    "fp_quant": Quantiser("FP-Quant", packages=(("fp_quant", "fp_quant"),), devices=GPU, not_trained=_NO_GRADIENT),
    "gemma": Quantiser("Gemma's own", not_trained=_NO_GRADIENT),
    "higgs": Quantiser("HIGGS", packages=(("flute", "flute-kernel"),), devices=GPU, not_trained=_NO_GRADIENT),
    "quark": Quantiser("Quark", packages=(("quark", "amd-quark"),), not_trained=_NO_GRADIENT),
    "sinq": Quantiser("SINQ", packages=(("sinq", "sinq"),), devices=GPU_OR_CPU),
    "spqr": Quantiser("SpQR", packages=(("spqr_quant", "spqr_quant"),), devices=GPU, not_trained=_NO_GRADIENT),
    "vptq": Quantiser("VPTQ", packages=(("vptq", "vptq"),), devices=GPU, not_trained=_NO_GRADIENT),
}
"""By `quantization_config.quant_method`."""


def quantiser_facts() -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of a table for readers: how weights are held, what they need, what is tested."""
    rows = []
    for method, row in QUANTISERS.items():
        refused = row.not_loaded or row.not_trained
        packages = ", ".join(f"`{name}`" for _module, name in row.packages)
        devices = ", ".join(row.devices or ("every device",))
        held = [f"refused: {refused}", "", ""] if refused else [row.held, packages, devices]
        rows.append([f"`{method}`", row.title, *held, row.tried])
    return ["quant_method", "quantiser", "its weights here", "packages", "devices", "tested"], rows
