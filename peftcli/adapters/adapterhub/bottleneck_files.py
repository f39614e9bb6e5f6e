"""Bottleneck adapters and Compacter in AdapterHub's format, both ways.

What the options mean there, for a branch that gives h to a residual sum h + r and a norm:
serial: h + s f(h), or with original_ln_before h + s f(norm(h + r)) (without a norm: f(h + r)), then the sum and norm;
parallel: h + s f(r). Here a serial adapter of `pfeiffer` sees the normed sum where a norm follows, else h; all others
see h; a parallel one sees the branch's input, which is r unless a norm precedes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from peftcli.adapters.adapterhub.hub_places import NAME, check_family, place, refuse_set
from peftcli.adapters.base_shape import Base
from peftcli.adapters.format import AdapterMeta
from peftcli.errors import UserError
from peftcli.methods.adapter import AdapterParams
from peftcli.methods.compacter import CompacterParams
from peftcli.methods.parallel_adapter import ParallelAdapterParams
from peftcli.models.anatomy import Anatomy, BlockRole
from peftcli.recipe.method_params import MethodParams

# Every option of AdapterHub's BnConfig, with the value under which it does nothing.
_PLAIN: dict[str, Any] = {
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "use_gating": False,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "leave_out": [],
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_bias": True,
}
_TRAINING: dict[str, Any] = {
    "init_weights": "bert",
    "init_weights_seed": None,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "stochastic_depth": 0.0,
}
_LINEAR = {"weight": "weight", "bias": "bias"}
_PHM = {"s": "W_left", "t": "W_right", "bias": "b"}
_RULE = "compacter.phm_rule"
_KINDS = {
    "adapter": {"houlsby": ("attn", "cross_attn", "ffn"), "pfeiffer": ("ffn",)},
    "parallel_adapter": {"ffn": ("ffn",), "attn": ("attn", "cross_attn"), "both": ("attn", "cross_attn", "ffn")},
    "compacter": {"both": ("attn", "ffn"), "ffn": ("ffn",)},
}
Params = AdapterParams | ParallelAdapterParams | CompacterParams


def write_bottlenecks(
    params: MethodParams, state: Mapping[str, Tensor], _meta: AdapterMeta, base: Base, where: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return AdapterHub's inner config and tensors; see `HubFormat`.

    Raises:
        UserError: trained norms, a parallel adapter behind a norm, or a family whose places are not known.
    """
    assert isinstance(params, Params)  # the table's methods
    check_family(base.anatomy)
    blocks = _blocks(params, base)
    names = _names(params, blocks, base, NAME)
    extra = [key for key in state if key not in names]
    if extra:
        raise UserError(
            f"{where}: {params.name} trained {len(extra)} tensors of the base too ({', '.join(extra[:2])}), and "
            "AdapterHub's files have no place for them",
            suggestion="train with method.train_layer_norm: false to export it",
        )
    if isinstance(params, ParallelAdapterParams):
        _refuse_prenorm(blocks, base)
    if isinstance(params, AdapterParams) and not params.norm_before and _post_norm(blocks):
        raise UserError(
            f"{where}: AdapterHub has no adapter on the residual sum before its norm (norm_before: false)",
            suggestion="train with method.norm_before: true to export it",
        )
    return _config(params, state, blocks, base.anatomy), {names[key]: tensor for key, tensor in state.items()}


def _config(params: Params, state: Mapping[str, Tensor], blocks: list[BlockRole], anatomy: Anatomy) -> dict[str, Any]:
    kinds = {block.kind for block in blocks}
    width, size = blocks[0].width, len(state[f"{_own(params, blocks[0])}.down.bias"])
    # the library computes int(width // factor); half a step keeps that from falling below the size
    factor = width / size if width // (width / size) == size else width / (size + 0.5)
    pfeiffer = isinstance(params, AdapterParams) and params.placement == "pfeiffer"
    phm = params if isinstance(params, CompacterParams) else CompacterParams()
    return {
        **_PLAIN,
        **_TRAINING,
        "mh_adapter": "attn" in kinds,
        "output_adapter": "ffn" in kinds,
        "cross_adapter": "cross_attn" in kinds,
        "reduction_factor": factor,
        "non_linearity": _activation(params),
        "original_ln_before": pfeiffer and _post_norm(blocks),
        "is_parallel": isinstance(params, ParallelAdapterParams),
        "scaling": params.scaling_in(anatomy) if isinstance(params, ParallelAdapterParams) else 1.0,
        "dropout": params.dropout,
        "phm_layer": isinstance(params, CompacterParams),
        "phm_dim": phm.phm_dim,
        "phm_rank": phm.phm_rank,
    }


def _activation(params: Params) -> str:
    if params.non_linearity is not None:
        return params.non_linearity
    return "gelu" if isinstance(params, AdapterParams) and params.placement == "houlsby" else "relu"


def _blocks(params: Params, base: Base) -> list[BlockRole]:
    kinds = _KINDS[params.name][params.placement]
    return [block for block in base.anatomy.blocks if block.kind in kinds]


def _post_norm(blocks: list[BlockRole]) -> bool:
    return any(block.post_norm is not None for block in blocks)


def _own(params: Params, block: BlockRole) -> str:
    return f"{block.exit}.{params.name}"


def _names(params: Params, blocks: list[BlockRole], base: Base, name: str) -> dict[str, str]:
    """Return AdapterHub's key for each of ours."""
    phm = isinstance(params, CompacterParams)
    names = {}
    for block in blocks:
        theirs = f"{place(base.anatomy, block)}.{name}"
        for own, other in (_PHM if phm else _LINEAR).items():
            names[f"{_own(params, block)}.down.{own}"] = f"{theirs}.adapter_down.0.{other}"
            names[f"{_own(params, block)}.up.{own}"] = f"{theirs}.adapter_up.{other}"
    if phm:
        prefix = base.model.base_model_prefix
        below = f"{prefix}." if prefix and hasattr(base.model, prefix) else ""
        names[_RULE] = f"{below}shared_parameters.{name}.phm_rule"
    return names


def _refuse_prenorm(blocks: list[BlockRole], base: Base) -> None:
    if any(block.pre_norm is not None for block in blocks):
        raise UserError(
            f"in a {base.anatomy.family} model a parallel adapter reads the normalised input here, but the residual "
            "itself in AdapterHub's library: the two are not equivalent",
            suggestion="use it with peft predict, or train the method `adapter` for AdapterHub",
        )


def read_bottlenecks(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path, base: Base
) -> tuple[MethodParams, dict[str, Tensor], tuple[str, ...]]:
    """Read a bottleneck adapter or Compacter that AdapterHub's library saved.

    Args:
        config: adapter_config.json.
        tensors: adapter.safetensors.
        where: their directory.
        base: the base model.

    Raises:
        UserError: an option or place that has no counterpart here, or a key that does not belong.
    """
    check_family(base.anatomy)
    inner = config["config"]
    refuse_set(inner, _PLAIN, where)
    params = _params(inner, tensors, where, base)
    blocks = _blocks(params, base)
    _check_places(inner, params, blocks, where)
    names = {theirs: own for own, theirs in _names(params, blocks, base, str(config["name"])).items()}
    foreign = [key for key in tensors if key not in names]
    if foreign:
        raise UserError(
            f"{where}: unexpected {', '.join(foreign[:3])}", suggestion="name the model that it was trained on: --base"
        )
    notes = ("its dropout acts on the adapter's output there, here on the bottleneck",) if params.dropout else ()
    return params, {names[key]: tensor for key, tensor in tensors.items()}, notes


def _params(inner: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path, base: Base) -> Params:
    attention, ffn = bool(inner.get("mh_adapter")), bool(inner.get("output_adapter"))
    sizes = {len(t) for key, t in tensors.items() if key.endswith((".adapter_down.0.bias", ".adapter_down.0.b"))}
    if len(sizes) != 1:
        raise UserError(f"{where}: its bottlenecks have {len(sizes)} sizes, expected one")
    common: dict[str, Any] = {
        "bottleneck_size": sizes.pop(),
        "non_linearity": _own_activation(str(inner.get("non_linearity")), where),
        "dropout": float(inner.get("dropout") or 0.0),
    }
    scaling = inner.get("scaling", 1.0)
    if not isinstance(scaling, int | float):
        raise UserError(f"{where} uses scaling: {scaling!r} of AdapterHub, which has no counterpart here")
    if inner.get("is_parallel"):
        _refuse_prenorm([block for block in base.anatomy.blocks if block.kind in ("attn", "ffn")], base)
        where_to: Literal["both", "attn", "ffn"] = "both" if attention and ffn else "attn" if attention else "ffn"
        return ParallelAdapterParams(placement=where_to, scaling=float(scaling), **common)
    refuse_set(inner, {"scaling": 1.0}, where)
    if not ffn:
        raise UserError(f"{where} has serial adapters behind attention only, which has no counterpart here")
    if inner.get("phm_layer"):
        return CompacterParams(
            placement="both" if attention else "ffn",
            train_layer_norm=False,
            phm_dim=int(inner.get("phm_dim", 4)),
            phm_rank=int(inner.get("phm_rank", 1)),
            **common,
        )
    return AdapterParams(placement="houlsby" if attention else "pfeiffer", train_layer_norm=False, **common)


def _own_activation(name: str, where: Path) -> str:
    known = {"swish": "silu"}.get(name.lower(), name.lower())
    if known not in ("relu", "gelu", "gelu_new", "silu", "tanh"):
        raise UserError(f"{where} uses the activation {name!r} of AdapterHub, which is not known here")
    return known


def _check_places(inner: Mapping[str, Any], params: Params, blocks: list[BlockRole], where: Path) -> None:
    """Refuse adapters whose input would be another value here than in AdapterHub's library."""
    if isinstance(params, ParallelAdapterParams):
        return
    if any(block.kind == "cross_attn" for block in blocks) and not inner.get("cross_adapter"):
        raise UserError(
            f"{where} adapts attention and feed-forward but not cross-attention, which has no counterpart here",
            suggestion="train it there with cross_adapter: true",
        )
    sees_sum = bool(inner.get("original_ln_before"))
    pfeiffer = isinstance(params, AdapterParams) and params.placement == "pfeiffer"
    if sees_sum != (pfeiffer and _post_norm(blocks)):
        seen = "the residual sum (original_ln_before)" if sees_sum else "the branch alone (original_ln_before: false)"
        raise UserError(
            f"{where}: its adapters see {seen}, and {params.name} with placement {params.placement} sees something "
            "else in this model",
            suggestion="such an adapter cannot be imported; train it here instead",
        )
