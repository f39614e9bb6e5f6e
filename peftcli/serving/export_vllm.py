"""`peft export --to vllm`: a LoRA in HF peft's layout of the form that vLLM reads, and the command that serves it.

vLLM takes one rank and one alpha of adapter_config.json for all modules. An adapter with several becomes one with the
largest rank (zeros added) and one alpha; what remains of a module's scale is multiplied into its B.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from torch import Tensor, cat

from peftcli.adapters.adapter_files import CARD, CONFIG, WEIGHTS, write_json, write_tensors
from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.hf.hf_files import PREFIX, hf_use
from peftcli.adapters.hf.hf_format import HfFiles
from peftcli.adapters.model_card import adapter_card
from peftcli.adapters.servers import server_rules
from peftcli.adapters.transfer import carry_texts, check_free
from peftcli.atomic import new_directory
from peftcli.deliverables.carried_files import TEMPLATE_FILE, TOKENIZER_CONFIG
from peftcli.errors import UserError
from peftcli.serving.asked_export import Asked, base_name, opened_adapter
from peftcli.serving.lora_pairs import LINEAR, TABLE, Pair, lora_files, lora_pairs
from peftcli.serving.modelfile import model_name
from peftcli.serving.server_export import ServerExport
from peftcli.serving.server_targets import VLLM
from peftcli.write_errors import OTHER_OUTPUT

SERVER = "vllm"


def write_vllm(directory: Path, saved: SavedAdapter, source: Path) -> tuple[int, int, list[str]]:
    """Write an adapter for vLLM.

    Args:
        directory: an empty one.
        saved: the adapter.
        source: its directory, for messages.

    Returns:
        The number of tensors, the rank that vLLM must allow, and notes.

    Raises:
        UserError: vLLM refuses such an adapter.
    """
    files, notes = one_rank(lora_files(saved, source, SERVER))
    greatest, rank = server_rules()[SERVER]["greatest_rank"], int(files.config["r"])
    if rank > greatest:
        raise UserError(
            f"vLLM takes ranks up to {greatest}, and {source} has {rank}",
            suggestion=f"take the nearest LoRA of that rank: --to lora --rank {greatest}; or fold it in: peft merge",
        )
    write_tensors(directory / WEIGHTS, files.tensors)
    write_json(directory / CONFIG, files.config)
    card = adapter_card(saved.params, saved.meta, use=hf_use(saved.meta, None))
    (directory / CARD).write_text(card, encoding="utf-8")
    if any(key.endswith(TABLE) for key in files.tensors):
        notes.append("it changes an embedding table, which vLLM supports for some families only")
    return len(files.tensors), rank, [*files.notes, *notes]


def allowed_rank(rank: int) -> int:
    """Return the smallest `--max-lora-rank` that vLLM offers and that takes a rank."""
    offered: list[int] = server_rules()[SERVER]["ranks"]
    return next(size for size in offered if size >= rank)


def one_rank(files: HfFiles) -> tuple[HfFiles, list[str]]:
    """Return an adapter with one rank and one alpha that changes the same, and notes.

    Args:
        files: a LoRA in HF peft's layout.
    """
    config = files.config
    if not config.get("rank_pattern") and not config.get("alpha_pattern"):
        return files, []
    pairs = lora_pairs(files)
    rank, scale = max(pair.rank for pair in pairs), pairs[0].scale
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        first, second = TABLE if pair.table else LINEAR
        a, b = _widened(pair, rank)
        tensors |= {f"{PREFIX}{pair.module}{first}": a, f"{PREFIX}{pair.module}{second}": b * (pair.scale / scale)}
    uniform = {"r": rank, "lora_alpha": scale * rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    note = f"vLLM takes one rank and one alpha: all pairs are padded with zeros to rank {rank}; the change is the same"
    return HfFiles(config | uniform, tensors, files.notes), [note]


def _widened(pair: Pair, rank: int) -> tuple[Tensor, Tensor]:
    more = rank - pair.rank
    if more == 0:
        return pair.a, pair.b
    return cat([pair.a, pair.a.new_zeros(more, pair.a.shape[1])]), cat([pair.b, pair.b.new_zeros(len(pair.b), more)], 1)


def export_vllm(asked: Asked) -> ServerExport:
    """Write a LoRA that vLLM loads beside its base.

    Raises:
        UserError: vLLM refuses such an adapter, or the output is taken.
    """
    check_free(asked.output)
    if (asked.run / "model").is_dir() and asked.checkpoint is None:
        raise UserError(
            f"{asked.run} holds a complete model, not an adapter", suggestion=f"vllm serve {asked.run / 'model'}"
        )
    with opened_adapter(asked) as (saved, directory):
        base = base_name(saved, asked)
        with new_directory(asked.output, instead=OTHER_OUTPUT, replace=False) as partial:
            tensors, rank, notes = write_vllm(partial, saved, directory)
            texts = carry_texts(directory, partial)
            own = _own_tokenizer(saved, directory)
            notes += ["the run added tokens, so vLLM needs its tokenizer: --tokenizer names it"] if own else texts
            names = tuple(sorted(path.name for path in partial.iterdir()))
            size = (partial / WEIGHTS).stat().st_size
    command = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(allowed_rank(rank))]
    command += ["--lora-modules", f"{model_name(asked.run)}={asked.output}"]
    if own:
        command += ["--tokenizer", str(asked.output)]
    if TEMPLATE_FILE in names:
        command += ["--chat-template", str(asked.output / TEMPLATE_FILE)]
    found = (*saved.notes, *notes)
    method = saved.params.name
    return ServerExport(
        str(asked.output), VLLM, method, base, names, None, tensors, size, (shlex.join(command),), found
    )


def _own_tokenizer(saved: SavedAdapter, source: Path) -> bool:
    """Return whether a run added tokens, all of which have a row in the base's tables.

    Raises:
        UserError: the base, which vLLM loads as it is, has no rows for them.
    """
    if not (source / TOKENIZER_CONFIG).is_file():
        return False
    from transformers import AutoTokenizer  # seconds

    tokens, rows = len(AutoTokenizer.from_pretrained(source)), saved.meta.base.get("shape", {}).get("vocab_size")
    if rows is None or tokens > rows:
        raise UserError(
            f"{source}: the run added tokens to the vocabulary, which the base that vLLM loads does not have",
            suggestion="fold the run into the base with peft merge",
        )
    return True
