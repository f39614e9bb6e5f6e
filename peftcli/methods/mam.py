"""MAM, the mix-and-match adapter (He et al. 2021, arXiv:2110.04366; code jxhe/unify-parameter-efficient-tuning).

Prefix tuning on every attention and a scaled parallel adapter beside the feed-forward, as in the official code: l =
30, a network of width 800, r = 512 at BART-large's d = 1024 (here: half the hidden size); norms stay frozen. Its BART
runs scale by s = 4, its RoBERTa runs by s = 2 (with l = 16, r = 16), and so does the default here: 4 in an encoder is
unsteady on the demo. A composition of `prefix_tuning` and `parallel_adapter`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftcli.methods.parallel_adapter import ParallelAdapterParams
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.protocol.composite_method import CompositeMethod
from peftcli.protocol.composition import CompositeParams, PartSpec
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.method_params import Positive


class MamParams(CompositeParams):
    """Hyper-parameters of MAM."""

    name: Literal["mam"] = "mam"
    num_virtual_tokens: Positive = 30
    """Learned keys and values in front of every attention."""
    prefix_projection: bool = True
    """Produce them by a network while training; it is dropped from the saved adapter."""
    encoder_hidden_size: Positive = 800
    """Width of that network."""
    projection_lr_ratio: Annotated[float, Field(gt=0.0)] = 0.1
    """Learning rate of the network over that of all else; 1 is the official code, with rates of 5e-5."""
    prefix_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the learned keys and values."""
    prefix_init: Literal["text", "random"] | None = None
    """What keys and values start from: the first tokens of the training rows, or random; null: text in decoders."""
    bottleneck_size: Positive | None = None
    """Width of the parallel adapter's bottleneck; null is half the hidden size."""
    scaling: Annotated[float, Field(gt=0.0)] | None = None
    """Factor on the parallel adapter's output; null is the official runs': 2 in encoder-only models, 4 in others."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout on the bottleneck's activations."""

    def idle_keys(self) -> dict[str, str]:
        """Return the keys of the network, where there is none."""
        without = "prefix_projection is false, so there is no network"
        return {} if self.prefix_projection else {"encoder_hidden_size": without, "projection_lr_ratio": without}

    @property
    def specs(self) -> list[PartSpec]:
        """The two parts."""
        prefix = PrefixTuningParams(
            num_virtual_tokens=self.num_virtual_tokens,
            prefix_projection=self.prefix_projection,
            encoder_hidden_size=self.encoder_hidden_size,
            projection_lr_ratio=self.projection_lr_ratio,
            prefix_dropout=self.prefix_dropout,
            prefix_init=self.prefix_init,
        )
        adapter = ParallelAdapterParams(
            bottleneck_size=self.bottleneck_size,
            reduction_factor=None if self.bottleneck_size else 2.0,
            scaling=self.scaling,
            dropout=self.dropout,
        )
        return [PartSpec("prefix", prefix), PartSpec("parallel_adapter", adapter)]


METHOD = CompositeMethod(
    MethodInfo(
        name="mam",
        family="hybrid",
        summary="Prefix tuning on every attention and a scaled parallel adapter beside the feed-forward.",
        paper="He et al. 2021, arXiv:2110.04366",
        params=MamParams,
        learning_rate=1e-3,  # measured on the demo, at this scaling: at 4 it is unsteady, and slow at half the rate
        unmergeable="neither learned keys and values nor a parallel adapter are a change of weights; keep the adapter "
        "beside its base, or use lora if it must be folded in",
    )
)
