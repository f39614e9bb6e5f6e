"""The sources that defaults and recommendations rest on, by id: `sources.yaml` as typed records."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict


class Source(BaseModel):
    """One source.

    Args:
        title: of the paper, page or measurement.
        who: authors, year, number.
        where: its address, or the file of this project that holds it.
        read: year and month in which it was read.
        checked: whether its figures were read in the source itself, not in second hand.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    who: str
    where: str
    read: str
    checked: bool


@cache
def sources() -> dict[str, Source]:
    """Return the sources by id, in the order of the file."""
    found = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
    return {name: Source.model_validate(entry) for name, entry in found.items()}
