"""LayerNorm tuning: train the normalisation layers only (Zhao et al. 2023, arXiv:2312.11420).

Every normalisation layer of the base, scale and, where it has one, bias; by default all of them, the last one before
the head and the norms of queries and keys included (HF peft's `LNTuningConfig` has a list of its own for each family:
the same for Llama, T5 and GPT-2; without the norm of the embeddings in BART). The paper's `LayerNorm-simp.`; its
`LayerNorm` also trains the connector and the embeddings, which `modules_to_save` does here.

The norms are trained in place and saved under their own names. In contrast to `freeze` with `trainable: norms`, what is
saved is a small adapter, and the base may be quantised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from peftcli.errors import Problem, UserError
from peftcli.protocol.folding import replacing
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import MethodParams, names_something
from peftcli.suggestions import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class LNTuningParams(MethodParams):
    """Hyper-parameters of LayerNorm tuning."""

    name: Literal["ln_tuning"] = "ln_tuning"
    target_modules: list[str] | str | None = None
    """Normalisation layers: names of modules, or one regular expression; null is all of the base's."""
    exclude_modules: list[str] | str | None = None
    """Names of modules, or one regular expression, to leave out of what `target_modules` matches."""

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_something(cls, value: list[str] | str | None) -> list[str] | str | None:
        return names_something(value, "names of normalisation layers, or a pattern")


class LNTuningMethod(Method[LNTuningParams]):
    """LayerNorm tuning."""

    info = MethodInfo(
        name="ln_tuning",
        family="selective",
        summary="Trains the normalisation layers, their scales and biases, and nothing else.",
        paper="Zhao et al. 2023, arXiv:2312.11420",
        params=LNTuningParams,
        hf_type="LN_TUNING",
        learning_rate=4e-3,  # as for BitFit, whose vectors are of the same kind
        trains="vectors",
    )

    def check(self, anatomy: Anatomy, params: LNTuningParams) -> list[str]:
        """Return why this model cannot be trained by its norms: it has none."""
        if anatomy.norms:
            return []
        return [f"no normalisation layers were found in this {anatomy.family} model; use lora or bitfit"]

    def attach(self, model: nn.Module, anatomy: Anatomy, params: LNTuningParams) -> Attachment:
        """Let the chosen norms train.

        Raises:
            UserError: an entry matches no norm, or `exclude_modules` leaves none.
        """
        from peftcli.protocol.attachment import Attachment

        chosen = _chosen(anatomy, params)
        names = [f"{norm}.{name}" for norm in chosen for name, _ in model.get_submodule(norm).named_parameters()]
        for name in names:
            model.get_parameter(name).requires_grad_(True)
        return Attachment(model, unfrozen=names)

    def merge_rules(
        self, anatomy: Anatomy, params: LNTuningParams, state: Mapping[str, Tensor]
    ) -> dict[str, MergeRule]:
        """Return each trained tensor in place of the base's."""
        norms = set(anatomy.norms)
        return replacing(anatomy, {name: value for name, value in state.items() if name.rpartition(".")[0] in norms})


def _chosen(anatomy: Anatomy, params: LNTuningParams) -> list[str]:
    """Return the paths of the norms to train, in the model's order."""
    problems: list[Problem] = []
    chosen = _named(anatomy, params.target_modules, "target_modules", problems)
    left_out = _named(anatomy, params.exclude_modules, "exclude_modules", problems)
    if problems:
        raise UserError(problems)
    wanted = set(anatomy.norms if params.target_modules is None else chosen) - set(left_out)
    if not wanted:
        raise UserError(Problem("exclude_modules leaves no norm", key="method.exclude_modules"))
    return [norm for norm in anatomy.norms if norm in wanted]


def _named(anatomy: Anatomy, entries: list[str] | str | None, key: str, problems: list[Problem]) -> list[str]:
    """Return the norms that the entries name; an entry that names none is a problem."""
    if isinstance(entries, str):
        pattern = re.compile(entries)
        found = {entries: [norm for norm in anatomy.norms if pattern.fullmatch(norm)]}
    else:
        found = {entry: [norm for norm in anatomy.norms if f".{norm}".endswith(f".{entry}")] for entry in entries or []}
    names = sorted({norm.rpartition(".")[2] for norm in anatomy.norms})
    for entry, norms in found.items():
        if not norms:
            near = nearest(entry, names, most=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}? norms" if near else "norms"
            problems.append(
                Problem(
                    f"{entry!r} matches no normalisation layer of this {anatomy.family} model",
                    key=f"method.{key}",
                    suggestion=f"{remedy} of this model: {', '.join(names)}",
                )
            )
    return [norm for norms in found.values() for norm in norms]


METHOD = LNTuningMethod()
