"""`peft export --to gguf-lora`: a LoRA in llama.cpp's adapter format, which it loads beside a GGUF file of the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from peftcli.adapters.format import SavedAdapter
from peftcli.deliverables.carried_files import TOKENIZER_CONFIG
from peftcli.errors import UserError
from peftcli.models.families.gguf_families import GgufFamily
from peftcli.serving.gguf_file import GgufTensor, new_writer, write_gguf
from peftcli.serving.gguf_layout import GgufTensors, Key, gguf_family
from peftcli.serving.lora_pairs import Pair, lora_files, lora_pairs

SERVER = "llama.cpp"


def write_gguf_lora(path: Path, saved: SavedAdapter, source: Path, config: dict[str, Any], kind: str) -> int:
    """Write an adapter as a GGUF file, and return how many tensors it has.

    Args:
        path: of the new file.
        saved: the adapter.
        source: its directory, for messages.
        config: of the base, as plain data.
        kind: type of the matrices, as in `TYPES`.

    Raises:
        UserError: the base's family or the adapter has no place in llama.cpp; nothing is written then.
    """
    family = gguf_family(config)
    if (source / TOKENIZER_CONFIG).is_file():
        raise UserError(
            f"{source}: the run added tokens to the vocabulary, which a GGUF file of the base does not have",
            suggestion="fold the run into the base: --to gguf",
        )
    pairs = lora_pairs(lora_files(saved, source, SERVER))
    _refuse_tied(pairs, config)
    alpha = common_alpha(pairs)
    layout = GgufTensors(family, config)
    tensors = [tensor for pair in pairs for tensor in _tensors(pair, layout, alpha)]
    writer = new_writer(family.architecture, _keys(family, saved, alpha))
    write_gguf(path, writer, tensors, kind)
    return len(tensors)


def common_alpha(pairs: Sequence[Pair]) -> float:
    """Return the one alpha of a file: llama.cpp scales a pair by alpha over its own rank.

    Most pairs of most adapters have the same product of scale and rank (rank-stabilised ones, too); those that have
    another are scaled themselves.
    """
    return Counter(pair.scale * pair.rank for pair in pairs).most_common(1)[0][0]


def _keys(family: GgufFamily, saved: SavedAdapter, alpha: float) -> Iterator[Key]:
    text = gguf.GGUFValueType.STRING
    yield Key("general.type", "adapter", text)
    yield Key("adapter.type", "lora", text)
    yield Key("adapter.lora.alpha", alpha, gguf.GGUFValueType.FLOAT32)
    name = str(saved.meta.base.get("name") or "")
    yield Key("general.name", f"{saved.params.name} for {Path(name).name or family.architecture}", text)


def _tensors(pair: Pair, layout: GgufTensors, alpha: float) -> Iterator[GgufTensor]:
    """Yield a pair's two tensors: the changed rows of the base are the rows of B."""
    parameter = f"{pair.module}.weight"
    name = layout.name(parameter)
    if name is None:
        raise UserError(
            f"llama.cpp takes {pair.module} from another tensor, so it has no place for a change of it",
            suggestion="leave it out of method.target_modules, or fold the run into the base: --to gguf",
        )
    own = alpha / pair.rank
    b = pair.b if own == pair.scale else pair.b * (pair.scale / own)
    rows = layout.rows(parameter, len(b))
    a = pair.a.T if pair.table else pair.a  # llama.cpp looks rows of a table up
    yield _held(f"{name}.lora_a", a)
    yield _held(f"{name}.lora_b", b if rows is None else b[rows])


def _held(name: str, tensor: Tensor) -> GgufTensor:
    return GgufTensor(name, tuple(tensor.shape), lambda: tensor)


def _refuse_tied(pairs: Sequence[Pair], config: dict[str, Any]) -> None:
    """Refuse a change of one of two modules that are one tensor in a GGUF file."""
    if not config.get("tie_word_embeddings"):
        return
    tied = [pair.module for pair in pairs if pair.table or pair.module == "lm_head"]
    if tied:
        raise UserError(
            f"the adapter changes {tied[0]}, which is one tensor with another module in llama.cpp",
            suggestion="fold the run into the base: --to gguf",
        )
