"""The torch half of prefix tuning: how prefixes reach the attentions of a model, and the networks that produce them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import UserError
from peftcli.layers.added_modules import ADDED
from peftcli.layers.site import device_of, made_on
from peftcli.layers.virtual_tokens.positions import shift_positions
from peftcli.layers.virtual_tokens.prefix import (
    Prefix,
    PrefixNetwork,
    PrefixShape,
    PrefixSite,
    find_prefix_site,
    prefix_site,
)
from peftcli.models.anatomy import Anatomy, AttentionRole
from peftcli.protocol.attachment import Attachment
from peftcli.tasks.training_rows import TrainingRows

_NETWORKS = f"{ADDED}prefix_networks"


@dataclass(frozen=True)
class PrefixStart:
    """Where the first keys and values come from: a text, or else training rows, or else random numbers."""

    text: str | None = None
    from_rows: bool = False


@dataclass
class PrefixAttachment(Attachment):
    """Prefixes, and while training the networks that produce them.

    `load_state_dict` loads keys and values and drops the networks: what is saved is flat. `load_training_state`, called
    after it, brings them back, so that a resumed run goes on with the same parameters.

    Args:
        networks: by kind of attention, such as `decoder_self`; empty for flat prefixes.
        ratio: learning rate of the networks over that of everything else.
        start: where the first keys and values come from.
        dropped: the last layers that `load_state_dict` put aside, by part.
        left_out: what of its text the prefix is too short for, for the user.
    """

    networks: dict[str, PrefixNetwork] = field(default_factory=dict)
    ratio: float = 1.0
    start: PrefixStart = PrefixStart()
    dropped: list[tuple[Prefix, PrefixNetwork, nn.Linear]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def _named_trainable(self) -> Iterable[tuple[str, nn.Parameter]]:
        yield from super()._named_trainable()
        if not self.dropped:
            for kind, network in self.networks.items():
                for name, parameter in network.named_parameters():
                    yield f"prefix_network.{kind}.{name}", parameter

    def prefixes(self) -> list[tuple[str, Prefix]]:
        """Return the prefixes by key."""
        return [(placed.key, placed.part) for placed in self.placed if isinstance(placed.part, Prefix)]

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved keys and values into place and drop the networks; strict, as `Attachment.load_state_dict`."""
        self.flatten()
        super().load_state_dict(state)

    def flatten(self) -> None:
        """Hold the prefixes as parameters from here on, without the networks that produced them."""
        for _, part in self.prefixes():
            network = part.network
            up = part.flatten()
            if up is not None and network is not None:
                self.dropped.append((part, network, up))

    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Start the prefixes from the text of the recipe, if it names one."""
        super().initialise(model, tokenizer=tokenizer, labels=labels)
        if self.start.text is None:
            return
        if tokenizer is None:
            raise UserError("prefix_init_text needs a tokenizer", suggestion="leave it out, or use prefix_init: random")
        ids = torch.tensor(tokenizer(self.start.text)["input_ids"], dtype=torch.long)
        if not len(ids):
            raise UserError("method.prefix_init_text has no tokens", suggestion="write some text, or leave it out")
        count, training = self._length(), model.training
        if len(ids) > count:
            told = f"the prefix starts from the first {count} of {len(ids)} tokens of prefix_init_text"
            self.left_out.append(f"{told}: num_virtual_tokens is {count} ({len(ids)} would take all)")
        self.enable(False)
        model.eval()
        with torch.no_grad():
            self._start_from(model, ids.repeat(-(-count // len(ids)))[:count].unsqueeze(0))
        model.train(training)
        self.enable()

    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Start the prefixes from the keys and values of the first tokens of the training rows."""
        rows.notes.extend(self.left_out)
        if self.start.text is not None or not self.start.from_rows:
            return
        ids = rows.first_tokens(self._length())
        if ids is not None:
            self._start_from(model, ids)
            rows.notes.append(
                f"the prefix starts from the keys and values of the first {self._length()} tokens of the training rows "
                "(prefix_init: random draws it)"
            )

    def _length(self) -> int:
        return self.prefixes()[0][1].shape.length

    def _start_from(self, model: nn.Module, ids: Tensor) -> None:
        """Set every prefix to the keys and values that the base has for these tokens, (1, length)."""
        device = device_of(model, model)
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids, device=device)}
        if getattr(model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = inputs["input_ids"]
        else:
            inputs["use_cache"] = False
        sites = {key: _site_of(model, key) for key, _ in self.prefixes()}
        for site in sites.values():
            site.seen = []
        try:
            model(**inputs)
            for key, part in self.prefixes():
                part.start_from(*_stacked(sites[key].seen or [], part.shape))
        finally:
            for site in sites.values():
                site.seen = None

    def learning_rate_ratios(self) -> dict[str, float]:
        """Return the networks' share of the learning rate."""
        if self.ratio == 1.0:
            return {}
        own = {id(parameter) for parameter in self._network_parameters().values()}
        return {name: self.ratio for name, parameter in self.trainable_parameters().items() if id(parameter) in own}

    def training_state(self) -> dict[str, Any]:
        """Return the networks' parameters; the adapter file has none of them."""
        if self.dropped or not self.networks:
            return {}
        return {name: parameter.detach().clone() for name, parameter in self._network_parameters().items()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Bring the networks back as they were. Call it after `load_state_dict`.

        Raises:
            UserError: the state is of a run with another network.
        """
        if not state:
            return
        for part, network, up in self.dropped:
            part.produce(network, up)
        self.dropped = []
        own = self._network_parameters()
        if set(own) != set(state) or any(own[name].shape != state[name].shape for name in own):
            raise UserError(
                "the checkpoint's prefix network does not fit this recipe",
                suggestion="resume with the num_virtual_tokens, prefix_projection and encoder_hidden_size of the run",
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def _network_parameters(self) -> dict[str, nn.Parameter]:
        found = {f"{kind}.{n}": p for kind, network in self.networks.items() for n, p in network.named_parameters()}
        for key, part in self.prefixes():
            if part.up is not None:
                found.update({f"{key}.up.{name}": parameter for name, parameter in part.up.named_parameters()})
        return found


def attach_prefixes(
    model: nn.Module,
    anatomy: Anatomy,
    *,
    length: int,
    mid: int | None,
    dropout: float,
    ratio: float,
    shift: bool,
    start: PrefixStart,
) -> PrefixAttachment:
    """Put a prefix before every attention.

    Args:
        length: virtual tokens.
        mid: width of the producing network; None for flat prefixes.
        dropout: on the learned keys and values.
        ratio: learning rate of the network over that of everything else.
        shift: count the decoder's positions from `length`.
        start: where the first keys and values come from.
    """
    attachment = PrefixAttachment(model, ratio=ratio, start=start)
    if mid is not None:
        _add_networks(attachment, anatomy, length, mid)
    for role in anatomy.attentions:
        attention = model.get_submodule(role.module)
        shape = PrefixShape(role.depths, role.kv_heads, role.head_dim, length, _entry(anatomy, role))
        network = attachment.networks.get(_kind(role))
        part = made_on(device_of(attention, model), partial(Prefix, shape, dropout, network))
        site = _connected_site(attention, role, anatomy.prefix_route)
        attachment.place(f"{role.module}.prefix", part, site.parts)
        if role.depths > 1:
            _count_depths(model, role, site)
    if anatomy.prefix_route == "interface":
        _refuse_own_attention(model, anatomy)
        attachment.undo.append(_use_attention_function(model))
    if shift:
        _shift(attachment, anatomy)
    return attachment


def _entry(anatomy: Anatomy, role: AttentionRole) -> int:
    """Return the width of an attention's input: that of its queries' projection, which MobileBERT narrows."""
    name = "attn.q" if role.kind == "self" else "cross_attn.q"
    place = (role.stack, role.layer, name)
    found = (each.in_features for each in anatomy.linears if (each.stack, each.layer, each.role) == place)
    return next(found, anatomy.hidden_size)


def _site_of(model: nn.Module, key: str) -> PrefixSite:
    site = find_prefix_site(model.get_submodule(key.removesuffix(".prefix")))
    assert site is not None  # `attach_prefixes` made it
    return site


def _stacked(seen: list[tuple[Tensor, Tensor]], shape: PrefixShape) -> tuple[Tensor, Tensor]:
    """Return keys and values, each (depths, kv_heads, length, head_dim), from those of every depth in order."""
    both = []
    for states in zip(*seen, strict=True):
        each = torch.stack([tensor[0] for tensor in states]).float()
        # some families repeat grouped heads before they hand keys and values over
        both.append(each[:, :: each.shape[1] // shape.kv_heads])
    return both[0], both[1]


def _kind(role: AttentionRole) -> str:
    return f"{role.stack}_{role.kind}"


def _add_networks(attachment: PrefixAttachment, anatomy: Anatomy, length: int, mid: int) -> None:
    """Register one network per kind of attention below the model, so that `.to` and DDP reach it once."""
    model = attachment.model
    for role in anatomy.attentions:
        if _kind(role) not in attachment.networks:
            make = partial(PrefixNetwork, length, anatomy.hidden_size, mid)
            attachment.networks[_kind(role)] = made_on(device_of(model, model), make)
    taken = [name for name, _ in model.named_children() if name.startswith(_NETWORKS)]
    name = f"{_NETWORKS}_{len(taken)}"
    model.add_module(name, nn.ModuleDict(attachment.networks))
    attachment.undo.append(lambda: delattr(model, name))


def _connected_site(attention: nn.Module, role: AttentionRole, route: str | None) -> PrefixSite:
    existing = find_prefix_site(attention)
    if existing is not None:
        return existing
    site = prefix_site(attention, role.depths)
    if route == "cache_view":
        from peftcli.layers.virtual_tokens.prefix_hooks import connect_cache_view

        connect_cache_view(attention, site)
    elif route == "padded_rows":
        from peftcli.layers.virtual_tokens.prefix_hooks import connect_padded_rows

        connect_padded_rows(attention, site)
    return site


def _count_depths(model: nn.Module, role: AttentionRole, site: PrefixSite) -> None:
    """Let depths count from 0 whenever the module around the shared blocks starts."""
    around = stack_path(role.module)
    model.get_submodule(around).register_forward_pre_hook(lambda _module, _args: site.restart())


def stack_path(path: str) -> str:
    """Return the module around a list of blocks: `model.encoder` for `model.encoder.layers.0.self_attn`."""
    parts = path.split(".")
    first_index = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: first_index - 1])


def _use_attention_function(model: nn.Module) -> Callable[[], None]:
    """Switch the model to the registered attention function; return what switches it back once no prefix is left."""
    from peftcli.layers.virtual_tokens.prefix_interface import register

    live: Any = model
    sites = [module for module in model.modules() if isinstance(module, PrefixSite)]
    before = live.config._attn_implementation
    name = register(before)
    if before != name:
        live.set_attn_implementation(name)
        if live.config._attn_implementation != name:
            raise UserError(
                f"{type(model).__name__} does not take an attention function of its own, so a prefix cannot reach it",
                suggestion="use prompt_tuning, or lora on attn.k and attn.v",
            )
        for site in sites:
            site.implementation_before = before

    def restore() -> None:
        if not any(len(site.parts) for site in sites):
            live.set_attn_implementation(sites[0].implementation_before)

    return restore


def _refuse_own_attention(model: nn.Module, anatomy: Anatomy) -> None:
    """Refuse a model with attentions that do not leave everything to the function that is registered."""
    from peftcli.layers.virtual_tokens.prefix_interface import calls_interface, hides_by_name

    for role in anatomy.attentions:
        attention = model.get_submodule(role.module)
        reason: str | None = None
        if not calls_interface(type(attention)):
            reason = "computes its attention in code of its own, so a prefix cannot reach it"
        elif hides_by_name(attention):
            reason = "chooses the keys that a query sees in code of its own, which a prefix would switch off"
        if reason is not None:
            raise UserError(f"{role.module} {reason}", suggestion="use prompt_tuning, or lora on attn.k and attn.v")


def _shift(attachment: PrefixAttachment, anatomy: Anatomy) -> None:
    stack = attachment.model.get_submodule(stack_path(anatomy.layers["decoder"][0]))
    parts = [part for _, part in attachment.prefixes()]
    handle = shift_positions(stack, lambda: parts[0].shape.length if parts[0].enabled else 0)
    if handle is not None:
        attachment.undo.append(handle.remove)
