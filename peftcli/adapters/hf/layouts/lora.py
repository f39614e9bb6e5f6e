"""LoRA in HF peft's layout, read and written; PiSSA becomes a pair of twice the rank."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter, SavedTarget, recorded_params
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFiles, HfFormat, State
from peftcli.adapters.hf.hf_token_rows import read_rows
from peftcli.adapters.hf.layouts.lora_experts import (
    dora_of_experts,
    file_names,
    pattern_key,
    read_experts,
    some_experts,
    whole_experts,
)
from peftcli.adapters.hf.layouts.lora_slices import pad_pairs
from peftcli.adapters.hf.taken_for_experts import taken_for_experts, targets_of_config
from peftcli.adapters.initial_pairs import one_pair, split_initial, stack_initial
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams

_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")

# Options of HF's LoraConfig that change the forward pass in a way that LoraParams has no word for.
_UNREADABLE = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "use_bdlora",
    "use_qalora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Initialisations that rewrite the base; an adapter saved so belongs to a base that is not on disk.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraFormat(HfFormat[LoraParams]):
    """LoRA and QLoRA; the variants of LoRA are options of one config."""

    peft_type = "LORA"
    holds_rows = True

    def why_not(self, params: LoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return that HF peft knows no slices of fused projections, no DoRA of experts, and changes all of them."""
        return dora_of_experts(params, meta) or hf_files.sliced(meta) or some_experts(params, meta)

    def config(self, params: LoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json: the keys that every version of HF peft since 0.6 reads without a warning."""
        factor = 2 if params.starts_from_base else 1  # PiSSA is written as a pair of twice the rank
        ranks, alphas = _patterns(params, meta, factor)
        changes: dict[str, Any] = {
            "r": params.r * factor,
            "lora_alpha": _alpha_for(params, params.lora_alpha, factor),
            "lora_dropout": params.lora_dropout,
            "bias": params.bias,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "use_rslora": params.use_rslora,
            "use_dora": params.use_dora,
            "init_lora_weights": True,  # the tensors are in the file; anything else would change the base on loading
        }
        changes |= targets_of_config(meta)
        if "target_parameters" in changes:
            changes["lora_dropout"] = 0.0  # HF peft takes no other for parameters; it plays no part in use
        if meta.token_rows:
            changes["trainable_token_indices"] = {path: list(ids) for path, ids in meta.token_rows.items()}
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def to_file(self, state: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta) -> State:
        """Return the tensors by HF peft's keys; a targeted module's bias lies in what HF peft calls its base layer."""
        whole = stack_initial(state) if params.starts_from_base else dict(state)
        targeted = {f"{target.module}.bias" for target in meta.targets}
        named = {key: _below_base_layer(key) for key in targeted} | file_names(meta, whole)
        return hf_files.add_prefix({named.get(key, key): tensor for key, tensor in whole.items()})

    def for_export(self, state: Mapping[str, Tensor], params: LoraParams) -> State:
        """Return the state without LoftQ's initial pair, which only a merge of ours reads."""
        return dict(state) if params.starts_from_base else one_pair(state, params)

    def from_file(
        self, tensors: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta, config: Mapping[str, Any]
    ) -> State:
        """Return the tensors by our keys; the inverse of `to_file`."""
        own = hf_files.drop_prefix(tensors)
        of_experts = {theirs: ours for ours, theirs in file_names(meta, ()).items()}
        state = {re.sub(r"(\.base_layer)+\.", ".", of_experts.get(key, key)): tensor for key, tensor in own.items()}
        return split_initial(state) if params.starts_from_base else state

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a LoRA directory that HF peft wrote.

        Targets, ranks and scales are taken from the tensors and from HF's matching rules, and written as full paths:
        the same modules are changed, whatever the names in the config would match elsewhere.

        Raises:
            UserError: an option that has no equal here, an unknown task type, a base that was rewritten, or a foreign
                key.
        """
        _refuse_unreadable(config, where)
        renamed, experts = read_experts(hf_files.drop_prefix(tensors), config, where)
        state, notes = hf_files.own_keys(hf_files.add_prefix(renamed), where)
        rows = read_rows(config, state, where)
        state |= rows.state
        counts = {target.key: target.experts or 1 for target in experts}
        ranks = {key: _rank(state, key) // counts.get(key, 1) for key in _target_keys(state)}
        if not ranks:
            raise UserError(f"{where} is a LoRA adapter without a single lora_A")
        _refuse_other_ranks({key: rank for key, rank in ranks.items() if key not in counts}, config, where)
        others = [key for key in state if not key.endswith(_FACTORS) and key not in rows.state]
        biases = [key for key in others if key.endswith(".bias")] if config.get("bias", "none") != "none" else []
        whole = hf_files.whole_modules([key for key in others if key not in biases], config)
        kind = "conv1d" if config.get("fan_in_fan_out") else "linear"
        modules = tuple(
            SavedTarget(key, key, None, "embedding" if f"{key}.lora_embedding_A" in state else kind) for key in ranks
        )
        record = hf_files.foreign_record(config, where, targets=(*modules, *experts), whole=whole)
        params = recorded_params(_params(config, ranks, whole, list(counts)), rows.numbers)
        return SavedAdapter(params, state, replace(record, token_rows=rows.numbers), tuple(notes))

    def whole_module_files(self, params: LoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> HfFiles | None:
        """Return one pair for each fused module, or expert, of the ranks of its slices together."""
        if dora_of_experts(params, meta):
            return None
        experts = whole_experts(state, params, meta)
        padded = pad_pairs(experts.state, params, experts.meta)
        config = self.config(params, padded.meta, padded.state)
        config["rank_pattern"] |= padded.ranks | experts.ranks
        config["alpha_pattern"] |= padded.alphas | experts.alphas
        plain = params.model_copy(update={"init_lora_weights": True})  # PiSSA's initial pair is stacked already
        note = "slices of fused projections became one pair for the whole module: equivalent, but with a higher rank"
        return HfFiles(config, self.to_file(padded.state, plain, padded.meta), (note,))

    def as_lora(self, params: LoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> tuple[LoraParams, State]:
        """Return the adapter unchanged."""
        return params, dict(state)


def _patterns(params: LoraParams, meta: AdapterMeta, factor: int) -> tuple[dict[str, int], dict[str, float]]:
    """Return HF's rank_pattern and alpha_pattern by full path, because HF peft has no roles."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    by_weight = {target.key for target in taken_for_experts(meta)}
    for target in meta.targets:
        path = f"^{re.escape(target.module)}" + (r"(\.weight)?" if target.key in by_weight else "")
        rank = params.rank_of(target.role, target.key)
        alpha = params.alpha_of(target.role, target.key)
        if rank != params.r:
            ranks[path] = rank * factor
        if alpha != params.lora_alpha:
            alphas[path] = _alpha_for(params, alpha, factor)
    return ranks, alphas


def _alpha_for(params: LoraParams, alpha: float, factor: int) -> float:
    """Return the alpha that gives the same scale at `factor` times the rank."""
    return alpha if factor == 1 else alpha * (math.sqrt(factor) if params.use_rslora else factor)


def _below_base_layer(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{module}.base_layer.{parameter}"


def _params(config: Mapping[str, Any], ranks: Mapping[str, int], whole: list[str], experts: list[str]) -> LoraParams:
    """Return the hyper-parameters of an adapter that HF peft saved.

    Args:
        config: its adapter_config.json.
        ranks: the rank at each changed module.
        whole: the modules that were saved whole.
        experts: which of the keys of `ranks` are 3-D parameters of experts.
    """
    rank = int(config.get("r", 8))
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern") or {}
    alphas = {key: hf_files.first_match(patterns, pattern_key(config, key), alpha) for key in ranks}
    return LoraParams(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=float(config.get("lora_dropout") or 0.0),
        target_modules=[key for key in ranks if key not in experts],
        target_parameters=experts or None,
        bias=config.get("bias", "none"),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        rank_pattern={f"^{re.escape(key)}": value for key, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(key)}": value for key, value in alphas.items() if value != alpha},
        modules_to_save=whole or None,
    )


def _refuse_other_ranks(ranks: Mapping[str, int], config: Mapping[str, Any], where: Path) -> None:
    """Refuse pairs of another rank than the config's, which is what divides alpha.

    Args:
        ranks: of the pairs, by module.

    Raises:
        UserError: names the first one.
    """
    patterns, usual = config.get("rank_pattern") or {}, config.get("r", 8)
    for key, rank in ranks.items():
        named = hf_files.first_match(patterns, pattern_key(config, key), usual)
        if rank != named:
            raise UserError(
                f"{where / CONFIG} gives {key} the rank {named} by r and rank_pattern, and its pair has {rank}: the "
                "scale is not known",
                suggestion="save or download the adapter again",
            )


def _refuse_unreadable(config: Mapping[str, Any], where: Path) -> None:
    hf_files.refuse_options(config, _UNREADABLE, where)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        raise UserError(
            f"{where} was saved with init_lora_weights {init!r}: it belongs to a base that HF peft rewrote",
            suggestion="save it in HF peft with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )


def _target_keys(state: Mapping[str, Tensor]) -> list[str]:
    return [
        key.removesuffix(suffix)
        for key in state
        for suffix in (".lora_A.weight", ".lora_embedding_A")
        if key.endswith(suffix)
    ]


def _rank(state: Mapping[str, Tensor], key: str) -> int:
    first = state.get(f"{key}.lora_A.weight", state.get(f"{key}.lora_embedding_A"))
    assert first is not None  # `_target_keys` found one of them
    return len(first)
