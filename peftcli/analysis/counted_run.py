"""A finished run to be counted: its recipe, with what training decided of the method's sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peftcli.adapters.adapter_files import SIDECAR
from peftcli.adapters.loading import run_adapter
from peftcli.adapters.sidecar import read_adapter_record
from peftcli.errors import UserError
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe


def counted_run(run: Path, trust_code: bool = False) -> LoadedRecipe:
    """Return a run's recipe with the method and the number of labels that its adapter's record has.

    Args:
        run: its directory, which is the path of what is returned.
        trust_code: let the Python code that comes with the model run.

    Raises:
        UserError: it is no finished run, or its files are damaged.
    """
    loaded = with_allowed_code(load_stored_recipe(stored_recipe(run), NAMES, trust_code=trust_code))
    recipe = loaded.recipe
    if registry.info(recipe.method.name).artifact == "adapter":
        adapter = run_adapter(run)
        if not (adapter / SIDECAR).is_file():
            raise UserError(f"{adapter / SIDECAR} is missing: the adapter's parameters are in it")
        record = read_adapter_record(adapter, registry)
        spec, labels = recipe.model, record.meta.label_spec
        if spec.num_labels is None and labels is not None and labels.names:
            spec = spec.model_copy(update={"num_labels": len(labels.names)})
        recipe = recipe.model_copy(update={"method": record.params, "model": spec})
    return replace(loaded, recipe=recipe, path=str(run))
