"""What training asks of a recipe, a machine and a model, beyond what every use of the model asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from peftcli.assembly.collect_problems import collecting
from peftcli.assembly.outline import FurtherChecks
from peftcli.assembly.precision import decide_precision
from peftcli.errors import Problem
from peftcli.models.load.quantization import divided_problems
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import Recipe
from peftcli.training.hub_upload import hub_problems
from peftcli.training.optim.optimizers import optimizer_problems
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.speed.compiled_blocks import compile_problems
from peftcli.training.watch.trackers import tracker_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrainingChecks(FurtherChecks):
    """Optimizer, trackers, hub, compiler, half precision, checkpointing and `lr_groups`, before data and weights."""

    trains = True

    def of_recipe(self, recipe: Recipe, device: torch.device) -> list[Problem]:
        """Return what this machine or installation lacks of what the recipe names."""
        training = recipe.training
        problems = [*optimizer_problems(training, device.type), *tracker_problems(training.report_to)]
        problems += hub_problems(training.push_to_hub)
        problems += compile_problems(training.torch_compile is True, device.type)
        if training.fp16 or recipe.model.dtype == "float16":
            weights = torch.float16 if recipe.model.dtype == "float16" else torch.float32
            with collecting(problems):
                decide_precision(training, weights, device, width=1)  # refuses float16 without a probe
        return problems

    def of_model(self, recipe: Recipe, meta: PreTrainedModel) -> list[Problem]:
        """Return that the family does not recompute activations, or the base cannot be divided, if the recipe demands
        it.
        """
        problems: list[Problem] = []
        if recipe.training.gradient_checkpointing is True:
            with collecting(problems):
                enable_checkpointing(meta)
        if recipe.distributed.strategy == "fsdp":
            problems += divided_problems(meta.config)
        return problems

    def of_parameters(self, recipe: Recipe, attachment: Attachment) -> list[Problem]:
        """Return the expressions of `lr_groups` that match no parameter."""
        problems: list[Problem] = []
        with collecting(problems):
            parameter_groups(attachment.trainable_parameters(), recipe.training, 1.0)
        return problems
