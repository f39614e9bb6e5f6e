"""`peft export --to gguf`: the merged model as one GGUF file, straight from the base's files and the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import torch
from torch import Tensor

from peftcli.deliverables.carried_files import read_object
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.deliverables.write_beside import write_beside_weights, write_config
from peftcli.errors import UserError
from peftcli.merging.merge_plan import MergedTensor, MergePlan, plan_merge
from peftcli.merging.merge_run import Note, base_tensors
from peftcli.merging.merged_config import merged_config
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.models.families.gguf_families import GgufFamily
from peftcli.serving.gguf_file import TYPES, GgufTensor, new_writer, write_gguf
from peftcli.serving.gguf_layout import GgufTensors, Key, gguf_family, hyper_parameters, rotary_factors
from peftcli.serving.gguf_vocabulary import add_vocabulary
from peftcli.shown_text import some_of
from peftcli.tasks.decoding import token_ids
from peftcli.tasks.task_table import task_info

_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Where a file names tokens at which an answer ends, besides the end of a text."""


class MergedGguf:
    """A run's merged model, planned as a GGUF file; no weight is read before `write`.

    Args:
        run: opened for merging.
        kind: type of the matrices, as in `TYPES`.
        note: receives what the user should know.

    Raises:
        UserError: llama.cpp does not compute this model or its tokenizer, or the run trained no texts.
    """

    def __init__(self, run: RunToMerge, kind: str, note: Note) -> None:
        if not task_info(run.recipe.task).generates:
            raise UserError(
                f"llama.cpp generates texts, and {run.directory} was trained for {run.recipe.task}",
                suggestion="fold it into the base with peft merge, which transformers loads",
            )
        self.run, self.kind = run, kind
        self.config: dict[str, Any] = run.model.config.to_dict()
        self.family = gguf_family(self.config)
        self.leaving = leaving_model(run.spec, run.recipe.task, run.tokenizer, run.texts)
        self.plan = plan_merge(run.model, base_tensors(run, note), run.rules(), torch.float32)
        if self.plan.untied and self.family.left_out:
            raise UserError(
                f"in this family llama.cpp has one tensor for {' and '.join(self.plan.untied)}, and only one changed",
                suggestion="leave it out of method.target_modules and modules_to_save, or use peft merge",
            )
        self.tensors = list(_tensors(self.plan, self.family, self.config))
        told = self.family.note(self.config)
        self.notes = [*run.notes, *([told] if told else [])]
        self.writer = new_writer(self.family.architecture, self._keys())
        self._add_tokenizer()

    def write(self, path: Path) -> int:
        """Write the file, and return its size in bytes.

        Args:
            path: of the new file.

        Raises:
            UserError: the disk is too small, or a merged weight is not finite.
        """
        return write_gguf(path, self.writer, self.tensors, self.kind)

    def _keys(self) -> Iterator[Key]:
        name = Path(self.run.spec.name_or_path).name
        count, text = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING
        yield Key("general.type", "model", text)
        yield Key("general.name", f"{name} with {self.run.recipe.method.name}", text)
        numbers = sum(output.planned.nbytes // output.planned.dtype.itemsize for output in self.plan.outputs)
        yield Key("general.size_label", gguf.size_label(numbers, 0, 0, 0), text)
        yield Key("general.file_type", int(TYPES[self.kind][1]), count)
        yield from hyper_parameters(self.family, self.config)

    def _add_tokenizer(self) -> None:
        """Add the tokenizer as a merged directory has it, with the template and the ends of training."""
        with TemporaryDirectory(prefix="peftcli-") as scratch:
            directory = Path(scratch)
            self.notes += write_beside_weights(directory, self.leaving, self.run.model)
            write_config(directory, merged_config(self.run, self.plan, self.leaving), self.leaving)
            add_vocabulary(self.writer, directory, self.family, int(self.config["vocab_size"]))
            written = read_object(directory / "generation_config.json").get("eos_token_id")
        eos = self.run.tokenizer.eos_token_id
        every = dict.fromkeys([*self.run.texts.stop_token_ids, *token_ids(written)])
        ends = [number for number in every if number != eos]
        for name, number in zip(_ENDS, ends, strict=False):
            self.writer.add_key_value(name, number, gguf.GGUFValueType.UINT32)
        if more := [self.run.tokenizer.convert_ids_to_tokens(number) for number in ends[len(_ENDS) :]]:
            self.notes.append(
                f"a GGUF file has room for {len(_ENDS) + 1} tokens that end an answer, and these are further ones: "
                f"{some_of(more, 3)}; give them to the server as stop texts (the Modelfile of --to ollama has them)"
            )


def _tensors(plan: MergePlan, family: GgufFamily, config: dict[str, Any]) -> Iterator[GgufTensor]:
    layout = GgufTensors(family, config)
    for name, values in rotary_factors(family, config).items():
        yield GgufTensor(name, tuple(values.shape), partial(_held, values))
    for output in plan.outputs:
        parameter = output.live_name or output.planned.name
        place = layout.name(parameter)
        if place is not None:
            yield GgufTensor(place, output.planned.shape, _reader(output, parameter, layout))


def _held(values: Tensor) -> Tensor:
    return values


def _reader(output: MergedTensor, parameter: str, layout: GgufTensors) -> Any:
    def read() -> Tensor:
        whole = torch.cat(list(output.pieces())).reshape(output.planned.shape)
        return layout.values(parameter, whole)

    return read
