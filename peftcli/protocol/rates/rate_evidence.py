"""What learning-rate defaults rest on: `rate_evidence.yaml` as typed records."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from peftcli.tasks.task_info import ModelKind

EvidenceKind = Literal["measured", "published", "extrapolated"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RatePoint(_Record):
    """The exemplar's rate on models of one width.

    Args:
        width: hidden size.
        rate: peak learning rate with AdamW.
        kind: how it is known; `extrapolated` where nobody measured it.
        source: id in `sources.yaml`.
        scope: what was measured there.
    """

    width: int = Field(ge=1)
    rate: float = Field(gt=0)
    kind: EvidenceKind
    source: str
    scope: str


class RateGroup(_Record):
    """The methods that train one kind of parameter: the exemplar, its rate on the demo, and points by kind of model."""

    exemplar: str
    demo_rate: float
    encoder: tuple[RatePoint, ...]
    decoder: tuple[RatePoint, ...]
    encoder_decoder: tuple[RatePoint, ...]


class RateSetting(_Record):
    """What a hyper-parameter does to the rate: times factor * value ** exponent.

    Args:
        kinds: of the models where it holds; empty for all.
        says: the change in words, after the rate.
    """

    factor: float = 1.0
    exponent: float = 0.0
    source: str
    kind: EvidenceKind
    scope: str
    kinds: tuple[ModelKind, ...] = ()
    says: str

    def holds_on(self, kind: ModelKind) -> bool:
        """Return whether it holds on this kind of model."""
        return not self.kinds or kind in self.kinds


class RateEvidence(_Record):
    """The whole file."""

    demo_width: int
    groups: dict[str, RateGroup]
    settings: dict[str, RateSetting]


@cache
def rate_evidence() -> RateEvidence:
    """Return the evidence."""
    text = Path(__file__).with_name("rate_evidence.yaml").read_text(encoding="utf-8")
    return RateEvidence.model_validate(yaml.safe_load(text))


def points_for(group: RateGroup, kind: ModelKind) -> tuple[RatePoint, ...]:
    """Return a group's points for a kind of model, in the order of their widths."""
    by_kind = {"encoder": group.encoder, "decoder": group.decoder, "encoder_decoder": group.encoder_decoder}
    return by_kind[kind]
