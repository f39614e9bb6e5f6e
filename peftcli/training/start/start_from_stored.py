"""What a new run's method takes from the unquantised weights of its base; a run that goes on has it already."""

from __future__ import annotations

from peftcli.models.weights.stored_weights import StoredWeights
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.record.train_state import TrainState
from peftcli.training.watch.reporting import Reporter


def start_from_stored(
    recipe: Recipe, spec: ModelSpec, attachment: Attachment, state: TrainState, reporter: Reporter
) -> None:
    """Let the method of a new run start from the weights in the checkpoint's files; tell what it did.

    A run that goes on, and one that starts from an earlier adapter (`method.init_from`), have theirs.

    Args:
        spec: of the base.

    Raises:
        UserError: the method needs them, and the files hold none.
    """
    if state.step or recipe.method.init_from is not None:
        return
    weights = StoredWeights(spec, recipe.task)
    attachment.start_from_stored(weights)
    for note in weights.notes:
        reporter.note(note)
