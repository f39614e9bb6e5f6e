"""What a run's adapter says of itself: with the finished one, and with every checkpoint."""

from __future__ import annotations

from peftcli.adapters.format import AdapterMeta, describe
from peftcli.training.session import Session
from peftcli.training.summarise import versions


def adapter_record(session: Session) -> AdapterMeta:
    """Return the record of the session's adapter; it is the same at every step."""
    labels = session.data.labels
    return describe(
        session.attachment,
        session.anatomy,
        task=session.recipe.task,
        base=session.base.identity,
        labels=labels.as_dict() if labels is not None else None,
        versions=versions(),
        texts=session.leaving.texts.as_dict(),
    )
