"""Files for llama.cpp, and directories for Ollama, which runs them: the merged model or the adapter of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftcli.adapters.base_shape import known_task
from peftcli.adapters.transfer import check_free
from peftcli.atomic import PARTIAL, new_directory, write_text
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.errors import UserError
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.serving.asked_export import Asked, base_config, base_name, base_spec, opened_adapter, trained_on_plain_text
from peftcli.serving.export_gguf import MergedGguf
from peftcli.serving.export_gguf_lora import write_gguf_lora
from peftcli.serving.modelfile import MODELFILE, model_name, modelfile
from peftcli.serving.server_export import ServerExport
from peftcli.serving.server_targets import GGUF, GGUF_LORA, OLLAMA
from peftcli.write_errors import OTHER_OUTPUT

SUFFIX = ".gguf"


def export_gguf(asked: Asked) -> ServerExport:
    """Write the merged model as a GGUF file.

    Raises:
        UserError: llama.cpp does not compute such a model, the method does not merge, or the output is taken.
    """
    check_free(asked.output)
    opened = open_run_to_merge(asked.run, asked.base, asked.trust_code, asked.checkpoint)
    planned = MergedGguf(opened, asked.kind, asked.note)
    with _gguf_path(asked.output, f"model-{asked.kind}") as (path, shown):
        size = planned.write(path)
    return ServerExport(
        output=str(asked.output),
        kind=GGUF,
        method=opened.recipe.method.name,
        base=opened.spec.name_or_path,
        files=(shown.name,),
        type=asked.kind,
        tensors=len(planned.tensors),
        bytes=size,
        commands=(shlex.join(["llama-server", "-m", str(shown)]),),
        notes=tuple(planned.notes),
    )


def export_gguf_lora(asked: Asked) -> ServerExport:
    """Write a LoRA in llama.cpp's adapter format.

    Raises:
        UserError: the adapter is no plain LoRA, llama.cpp does not compute its base, or the output is taken.
    """
    check_free(asked.output)
    with opened_adapter(asked) as (saved, directory):
        config = base_config(saved, asked)
        with _gguf_path(asked.output, f"adapter-{asked.kind}") as (path, shown):
            tensors = write_gguf_lora(path, saved, directory, config, asked.kind)
            size = path.stat().st_size
    return ServerExport(
        output=str(asked.output),
        kind=GGUF_LORA,
        method=saved.params.name,
        base=base_name(saved, asked),
        files=(shown.name,),
        type=asked.kind,
        tensors=tensors,
        bytes=size,
        commands=(shlex.join(["llama-server", "-m", "BASE.gguf", "--lora", str(shown)]),),
        notes=saved.notes,
    )


def export_ollama(asked: Asked) -> ServerExport:
    """Write a Modelfile, and beside it the merged model, or the adapter where `adapter_on` says what it belongs on.

    Raises:
        UserError: as for a GGUF file.
    """
    check_free(asked.output)
    if asked.adapter_on is None:
        return _ollama_model(asked)
    base = _ollama_base(asked.adapter_on)
    with opened_adapter(asked) as (saved, directory):
        config = base_config(saved, asked)
        spec = base_spec(saved, asked)
        texts = LearntTexts.from_dict(saved.meta.texts or {})
        leaving = leaving_model(spec, known_task(saved.meta.task), load_tokenizer(spec), texts)
        file = f"adapter-{asked.kind}{SUFFIX}"
        with new_directory(asked.output, instead=OTHER_OUTPUT, replace=False) as partial:
            tensors = write_gguf_lora(partial / file, saved, directory, config, asked.kind)
            size = (partial / file).stat().st_size
            text, notes = modelfile(file, leaving, base, plain_text=trained_on_plain_text(asked.run))
            write_text(partial / MODELFILE, text)
    found = (*saved.notes, *notes)
    return _ollama_report(asked, saved.params.name, spec.name_or_path, file, tensors, size, found)


def _ollama_base(named: str) -> str:
    """Return a model as a Modelfile names it: of Ollama's library as it is, a file by its whole path.

    Ollama looks for a relative path beside the Modelfile.

    Raises:
        UserError: there is no such file.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return str(path.resolve())
    if path.suffix == SUFFIX and ":" not in named:  # hf.co/OWNER/NAME:FILE.gguf is a name that Ollama takes
        raise UserError(
            f"--from {named}: there is no such file", suggestion="name a GGUF file of the base that is here"
        )
    return named


def _ollama_model(asked: Asked) -> ServerExport:
    opened = open_run_to_merge(asked.run, asked.base, asked.trust_code, asked.checkpoint)
    planned = MergedGguf(opened, asked.kind, asked.note)
    file = f"model-{asked.kind}{SUFFIX}"
    with new_directory(asked.output, instead=OTHER_OUTPUT, replace=False) as partial:
        text, notes = modelfile(file, planned.leaving, None, plain_text=trained_on_plain_text(asked.run))
        write_text(partial / MODELFILE, text)
        size = planned.write(partial / file)
    found, tensors = (*planned.notes, *notes), len(planned.tensors)
    return _ollama_report(asked, opened.recipe.method.name, opened.spec.name_or_path, file, tensors, size, found)


def _ollama_report(
    asked: Asked, method: str, base: str, file: str, tensors: int, size: int, notes: tuple[str, ...]
) -> ServerExport:
    name = model_name(asked.run)
    create = ["ollama", "create", name, "-f", str(asked.output / MODELFILE)]
    commands = (shlex.join(create), f"ollama run {name}")
    files = (MODELFILE, file)
    return ServerExport(str(asked.output), OLLAMA, method, base, files, asked.kind, tensors, size, commands, notes)


@contextmanager
def _gguf_path(output: Path, stem: str) -> Iterator[tuple[Path, Path]]:
    """Yield where to write a file, and where it is in the end; it appears when the block ends without an error."""
    if output.suffix != SUFFIX:
        with new_directory(output, instead=OTHER_OUTPUT, replace=False) as partial:
            yield partial / f"{stem}{SUFFIX}", output / f"{stem}{SUFFIX}"
        return
    beside = output.with_name(PARTIAL + output.name)
    with new_directory(beside, instead=OTHER_OUTPUT, replace=False) as partial:
        yield partial / output.name, output
        (partial / output.name).replace(output)
    beside.rmdir()
