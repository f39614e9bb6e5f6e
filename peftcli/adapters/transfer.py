"""Move adapters between this project's runs and other libraries' files: what `peft export` and `peft import` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli import __version__
from peftcli.adapters.adapter_files import CONFIG, SIDECAR
from peftcli.adapters.base_shape import BaseName, fit, known_task
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.label_names import labels_or_placeholders, names_of_base, with_label_names, write_label_names
from peftcli.adapters.library import Library, other_use
from peftcli.adapters.library_table import LIBRARIES, library_named, library_of
from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.sidecar import refuse_changed_carried
from peftcli.atomic import new_directory, write_text
from peftcli.deliverables.carried_files import TEMPLATE_FILE, TOKENIZER_CONFIG, copy_files, tokenizer_files
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.errors import UserError, about
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.run_paths import IMPORTED
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.recipe.stored_recipe import stored_recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from peftcli.tasks.task_table import task_info
from peftcli.write_errors import OTHER_OUTPUT


@dataclass(frozen=True)
class Transfer:
    """What was written.

    Args:
        output: the new directory.
        kind: the library's name, or `run`.
        method: of the adapter.
        task: as in a recipe.
        base: the base model's name.
        tensors, numbers: how many were written.
        notes: what the user should know.
    """

    output: str
    kind: str
    method: str
    task: str
    base: str | None
    tensors: int
    numbers: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def export_run(run: Path, output: Path, *, to: str, instead: str | None = None, base: str | None = None) -> Transfer:
    """Write a run's adapter for another library.

    Args:
        run: a run directory, or an adapter directory.
        output: must not exist, or be empty.
        to: the library's name in `LIBRARIES`.
        instead: the method as which the library gets the adapter (`Library.instead`); None for its own.
        base: where the base lies now, for a library whose keys need its config.

    Raises:
        UserError: there is no adapter, the library cannot hold it, or the output is taken.
    """
    library = library_named(to)
    if instead is not None and instead not in library.instead:
        offered = [other.name for other in LIBRARIES.values() if instead in other.instead]
        remedy = "leave --as out"
        raise UserError(f"--as {instead} is for --to {' or '.join(offered) or 'no library'}", suggestion=remedy)
    check_free(output)
    directory = adapter_of(run)
    saved = load_adapter(directory)
    if saved.params.name not in library.methods():
        raise UserError(
            f"{directory}: {saved.params.name} cannot be exported: {library.lacks}",
            suggestion=_elsewhere(saved.params, library),
        )
    with new_directory(output, instead=OTHER_OUTPUT, replace=False) as partial:
        notes = library.write(saved, directory, partial, base=base, instead=instead)
        write_label_names(partial, saved.meta.labels)
        notes = (*notes, *carry_texts(directory, partial))
    return _report(output, to, saved, base or saved.meta.base.get("name"), notes)


def carry_texts(directory: Path, output: Path) -> list[str]:
    """Copy the tokenizer and the chat template that a run left beside its adapter, and say what they are for."""
    files = tokenizer_files(directory)
    refuse_changed_carried(directory, [file.as_posix() for file in files])
    copy_files(directory, files, output)
    return text_notes({file.name for file in files})


def text_notes(names: Collection[str]) -> list[str]:
    """Return what the tokenizer and the chat template beside an exported adapter are for.

    Args:
        names: of the files there.
    """
    if TOKENIZER_CONFIG in names:
        return [
            "the run added tokens to the vocabulary: its tokenizer is beside the adapter, and the base's embeddings "
            "need as many rows before the adapter loads (model.resize_token_embeddings(len(tokenizer)))"
        ]
    return [f"{TEMPLATE_FILE} is the chat template used in training"] if TEMPLATE_FILE in names else []


def _elsewhere(params: MethodParams, library: Library) -> str:
    """Return what the user can do with an adapter whose method the library lacks."""
    for other in LIBRARIES.values():
        if other is not library and params.name in other.methods():
            return f"export it for {other.title}: --to {other.name}"
    return other_use(params)


def import_adapter(source: Path, output: Path, *, base: str | None = None, trust_code: bool = False) -> Transfer:
    """Turn an adapter that another library saved into a finished run.

    Args:
        source: its directory.
        output: must not exist, or be empty.
        base: the base model, if the files do not name it or it lies elsewhere.
        trust_code: let the Python code that comes with the base run.

    Raises:
        UserError: the files are of no known library, cannot be expressed here, or do not fit the base.
    """
    check_free(output)
    if not source.is_dir():
        raise UserError(f"there is no directory {source}", suggestion="name the directory that holds the adapter")
    if (source / SIDECAR).is_file():
        raise UserError(
            f"{source} is an adapter of this project already", suggestion="use it as it is; method.init_from reads it"
        )
    library = library_of(source)
    name = replace(library.base_of(source) if base is None else BaseName(base), trust_code=trust_code)
    with about(source):
        saved = with_label_names(library.read(source, name), source)
    meta, notes = _on_base(saved, source, name, named=base is not None)
    if name.name is None:
        raise UserError(f"{source / CONFIG} does not name its base model", suggestion="name it with --base MODEL")
    labels, note = (meta.labels, None) if meta.labels else _labels(meta, saved.state, name)
    notes = (*notes, note) if note else notes
    meta = replace(meta, labels=labels, base={**meta.base, "name": name.name})
    saved = replace(saved, meta=meta)
    write_run(output, saved, trust_code=trust_code)
    return _report(output, "run", saved, name.name, (*saved.notes, *notes))


def _on_base(saved: SavedAdapter, where: Path, name: BaseName, *, named: bool) -> tuple[AdapterMeta, tuple[str, ...]]:
    """Return the record completed from the base model, after checking every key and shape against it, and notes."""
    meta = saved.meta
    if meta.family is not None:
        return meta, ()  # reading it needed the base, and checked it
    try:
        found = name.read(meta.task, saved.state)
    except UserError as error:
        if named or name.name is None:
            raise
        reason = error.problems[0].message
        return meta, (
            f"the base was not read, so the shapes were not checked ({reason}); --base MODEL says where it is",
        )
    made = fit(found, saved.params, saved.state, meta.task, where)
    return replace(made, versions=meta.versions, labels=meta.labels), ()


def _labels(
    meta: AdapterMeta, state: Mapping[str, Tensor], name: BaseName
) -> tuple[Mapping[str, Any] | None, str | None]:
    """Return labels for an adapter whose files hold no names: those of the base's config, or placeholders; a note."""
    heads = [tensor for key, tensor in state.items() if key.startswith((*meta.head, *meta.modules_to_save))]
    size = len(heads[-1]) if heads else 2
    names = None
    if task_info(meta.task).has_labels:
        with suppress(UserError):  # what is wrong with the base was told when its shapes were checked
            names = names_of_base(name.config(), size)
    return labels_or_placeholders(meta.task, size, names)


def write_run(
    output: Path,
    saved: SavedAdapter,
    *,
    trust_code: bool = False,
    spec: ModelSpec | None = None,
    leaving: LeavingModel | None = None,
    check: Callable[[Path], None] = lambda _adapter: None,
) -> None:
    """Write a run directory that `predict`, `eval --data`, `merge` and `export` open.

    Args:
        output: the new directory.
        saved: its adapter.
        trust_code: let the Python code that comes with the base run.
        spec: the base; None for what the adapter's record says.
        leaving: tokenizer and chat template that belong beside the adapter.
        check: receives the adapter's directory before the run's appears.
    """
    params, state, meta = saved.params, saved.state, saved.meta
    size = len(meta.labels["names"]) or 1 if meta.labels else None
    base = spec or ModelSpec(name_or_path=str(meta.base["name"]), revision=meta.base.get("revision"))
    changes = {"num_labels": size, "trust_remote_code": trust_code}
    recipe = Recipe(
        model=base.model_copy(update=changes), task=known_task(meta.task), method=params, output_dir=str(output)
    )
    summary = {
        "status": IMPORTED,
        "method": params.name,
        "task": meta.task,
        "output_dir": str(output),
        "saved": sum(tensor.numel() for tensor in state.values()),
        "eval": None,
        "versions": {**meta.versions, "peftcli": __version__},
        "artifact": "adapter",
    }
    with new_directory(output, instead=OTHER_OUTPUT, replace=False) as partial:
        save_adapter(partial / "adapter", attachment_state=state, params=params, meta=meta, leaving=leaving)
        check(partial / "adapter")
        write_text(partial / "recipe.yaml", dump_recipe(recipe))
        write_text(partial / "summary.json", json.dumps(summary, indent=2) + "\n")


def _report(output: Path, kind: str, saved: SavedAdapter, base: str | None, notes: tuple[str, ...]) -> Transfer:
    numbers = sum(tensor.numel() for tensor in saved.state.values())
    return Transfer(str(output), kind, saved.params.name, saved.meta.task, base, len(saved.state), numbers, notes)


def adapter_of(run: Path) -> Path:
    """Return the adapter directory of a run, or the directory itself if it is one.

    Raises:
        UserError: there is none.
    """
    if (run / CONFIG).is_file():
        return run
    stored_recipe(run)
    if (run / "model").is_dir() and not (run / "adapter").is_dir():
        raise UserError(
            f"{run} holds a complete model, not an adapter",
            suggestion=f"{run / 'model'} loads in transformers as it is",
        )
    return run_adapter(run)


def check_free(output: Path) -> None:
    """Refuse an output that holds something.

    Raises:
        UserError: it is a file, or a directory that is not empty.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        what = "a directory that is not empty" if output.is_dir() else "a file"
        raise UserError(f"{output} is {what}", suggestion="choose another --output, or remove it")
