"""The roles of the projections of one block: whole linears by their names, and parts of fused ones by their widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from peftcli.layers.base_linear import linear_widths
from peftcli.models.families.family_row import AttentionRow, FusedRow
from peftcli.models.module_view import ModuleView, module_kind
from peftcli.models.structure.projection_names import (
    FUSED_ATTENTION_NAMES,
    GATE_AND_UP_NAMES,
    UNKNOWN_LAYOUT,
    in_attention,
    role_of,
)

_NO_ROLE = "its name and shape suggest no role; target it by its name"


@dataclass
class BlockRoles:
    """What the linears of one block are. Paths are relative to the block.

    Args:
        linears: role to the path of a whole module.
        fused: path of a module to the roles that it holds.
        left_out: path to the reason why a module has no role.
        attentions: the modules that hold queries or keys.
    """

    linears: dict[str, str] = field(default_factory=dict)
    fused: dict[str, FusedRow] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    attentions: list[AttentionRow] = field(default_factory=list)

    def paths(self) -> dict[str, str]:
        """Return each role with the module that holds it, alone or beside others."""
        return {**self.linears, **{role: path for path, row in self.fused.items() for role in row.roles}}


def block_roles(
    view: ModuleView, block: str, spec: str, hidden: int, layout: FusedRow | None = None, *, stream: int | None = None
) -> BlockRoles:
    """Return the roles of a block's projections; of several for one role the first has it.

    Args:
        block: full path of the block.
        spec: path of its list, whose name counts, too: XLM has a list of attentions and one of feed-forwards.
        hidden: width at which the block computes.
        layout: of a fused query, key and value projection, where the family's is known.
        stream: width of the residual stream, where that is another: values may be made from it.
    """
    found = BlockRoles()
    name = spec.removesuffix(".*").rpartition(".")[2]
    reader = _Roles(view.modules[block], name, hidden, found, {hidden, stream or hidden})
    reader.read(layout)
    return found


class _Roles:
    def __init__(self, block: nn.Module, list_name: str, hidden: int, found: BlockRoles, entering: set[int]) -> None:
        self._block = block
        self._list = list_name
        self._hidden = hidden
        self._found = found
        self._entering = entering
        self._modules = dict(block.named_modules())

    def read(self, layout: FusedRow | None) -> None:
        """Fill in what was found."""
        found = self._found
        candidates: dict[str, list[str]] = {}
        for path, module in self._projections():
            role = self._role(path, module)
            if role is None or role == "fused":
                found.left_out[path] = _NO_ROLE if role is None else UNKNOWN_LAYOUT
            else:
                candidates.setdefault(role, []).append(path)
        self._choose(candidates)
        self._drop_doubtful()
        for prefix in ("attn", "cross_attn"):
            holder = found.linears.get(f"{prefix}.k") or found.linears.get(f"{prefix}.q")
            parent = holder.rpartition(".")[0] if holder else ""
            if parent:
                found.attentions.append(AttentionRow(parent, "self" if prefix == "attn" else "cross"))
        self._divide_queries()
        self._divide_joint(layout)
        self._divide_compressed()
        self._divide_gate_and_up()

    def _choose(self, candidates: Mapping[str, list[str]]) -> None:
        """Give each role to the first of its candidates; gate and up to those beside the last projection, if any are.

        A router may be called `gate`, too, and come before a shared expert's projections.
        """
        down = next(iter(candidates.get("ffn.down", [])), "")
        for role, paths in candidates.items():
            beside = [path for path in paths if path.rpartition(".")[0] == down.rpartition(".")[0]]
            chosen = beside[0] if role in ("ffn.gate", "ffn.up") and beside else paths[0]
            self._found.linears[role] = chosen
            reason = f"{chosen} is {role} already; target it by name"
            self._found.left_out.update({path: reason for path in paths if path != chosen})

    def _projections(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the block's linears in order, without those of single experts."""
        for path, module in self._modules.items():
            if path and module_kind(module) in ("linear", "conv1d"):
                around = [self._modules[".".join(path.split(".")[:end])] for end in range(1, path.count(".") + 1)]
                names = path.split(".")
                experts = any(
                    name == "experts" and isinstance(parent, nn.ModuleList | nn.ModuleDict)
                    for name, parent in zip(names, around, strict=False)
                )
                if not experts:
                    yield path, module

    def _role(self, path: str, module: nn.Module) -> str | None:
        names = path.split(".")[:-1]
        around = [type(self._modules[".".join(names[: end + 1])]).__name__ for end in range(len(names))]
        attention = in_attention(".".join([self._list, *names]), around)
        return role_of(path, *linear_widths(module), self._hidden, attention=attention, entering=self._entering)

    def _drop_doubtful(self) -> None:
        """Remove doubtful roles: keys and values without a query, a gate or an `up` that does not fit the `down`."""
        linears = self._found.linears
        for prefix in ("attn", "cross_attn"):
            if f"{prefix}.q" not in linears:
                for letter in "kv":
                    self._drop(f"{prefix}.{letter}", "attention without a query projection; target it by name")
        if "ffn.down" not in linears:
            return
        inner = self._widths(linears["ffn.down"])[0]
        if "ffn.up" in linears and self._widths(linears["ffn.up"])[1] == 2 * inner:
            self._drop("ffn.up", UNKNOWN_LAYOUT)
        if "ffn.gate" in linears and self._widths(linears["ffn.gate"])[1] != inner:
            self._drop("ffn.gate", _NO_ROLE)

    def _drop(self, role: str, reason: str) -> None:
        path = self._found.linears.pop(role, None)
        if path is not None:
            self._found.left_out[path] = reason

    def _divide_queries(self) -> None:
        """Divide a query projection that is twice as wide as what the output takes: each head has a gate behind it."""
        linears = self._found.linears
        query, out = linears.get("attn.q"), linears.get("attn.o")
        if query is None or out is None or "attn.k" not in linears:
            return
        head = getattr(self._modules[query.rpartition(".")[0]], "head_dim", None)
        if isinstance(head, int) and self._widths(query)[1] == 2 * self._widths(out)[0]:
            self._found.fused[linears.pop("attn.q")] = FusedRow(("attn.q", "attn.gate"), "per_head", (head, head))

    def _divide_joint(self, layout: FusedRow | None) -> None:
        """Divide the projection that makes queries, keys and values, in the layout of the family."""
        if layout is None or "attn.q" in self._found.paths():
            return
        for path in [*self._found.left_out]:
            names = path.split(".")
            if names[-1].lower() in FUSED_ATTENTION_NAMES and in_attention(".".join(names[:-1]), ()):
                self._found.fused[path] = layout
                self._found.attentions.append(AttentionRow(path.rpartition(".")[0]))
                del self._found.left_out[path]
                return

    def _divide_compressed(self) -> None:
        """Give the roles of multi-head latent attention (DeepSeek), whose keys and values are made from few numbers."""
        for path, module in self._modules.items():
            nope, value = (getattr(module, name, None) for name in ("qk_nope_head_dim", "v_head_dim"))
            joint = f"{path}.kv_b_proj"
            if not (isinstance(nope, int) and isinstance(value, int) and joint in self._modules):
                continue
            if "attn.v" in self._found.linears or self._widths(joint)[1] % (nope + value):
                continue
            self._found.fused[joint] = FusedRow(("attn.k", "attn.v"), "per_head", (nope, value))
            self._found.left_out.pop(joint, None)
            self._found.attentions.clear()
            wide = f"{path}.q_b_proj"
            if wide in self._modules and "attn.q" not in self._found.linears:
                self._found.linears["attn.q"] = wide
                self._found.left_out.pop(wide, None)
            gated, rope = f"{path}.q_gate_proj", getattr(module, "qk_rope_head_dim", None)
            if gated in self._modules and isinstance(rope, int) and "attn.q" not in self._found.linears:  # A.X K2
                self._found.fused[gated] = FusedRow(("attn.q", "attn.gate"), "per_head", (nope + rope, value))
                self._found.left_out.pop(gated, None)
            return

    def _divide_gate_and_up(self) -> None:
        """Divide a projection that is as wide as gate and up together, where its name tells their order."""
        down = self._found.linears.get("ffn.down")
        if down is None or "ffn.up" in self._found.linears:
            return
        parent = down.rpartition(".")[0]
        for path in [*self._found.left_out]:
            same = path.rpartition(".")[0] == parent and path.lower().rpartition(".")[2] in GATE_AND_UP_NAMES
            if same and self._widths(path) == (self._hidden, 2 * self._widths(down)[0]):
                self._found.fused[path] = FusedRow(("ffn.gate", "ffn.up"))
                del self._found.left_out[path]
                return

    def _widths(self, path: str) -> tuple[int, int]:
        return linear_widths(self._modules[path])
