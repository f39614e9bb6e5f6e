"""One of several processes: it loads checkpoints in shares, and holds them against the whole load.

`python -m tests.models.weights.shares_worker DIRECTORY`, under a launcher's variables; each subdirectory has a
checkpoint and `case.json` with the task and the `model` block's other keys. What was found goes to `rank-N.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from peftcli.distributed.processes import World
from peftcli.distributed.whole_tensors import own_part, whole
from peftcli.errors import UserError
from peftcli.models.load.heads import head_parameters
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.recipe.schema import ModelSpec
from tests.models.inputs import inputs_for


def shard(model: Any) -> None:
    """Divide the blocks and the rest; the head, which is trained in float32, stays whole, as in a run."""
    kept = {model.get_parameter(name) for name in head_parameters(model)}
    for paths in read_anatomy(model).layers.values():
        for path in dict.fromkeys(paths):  # ALBERT runs one block many times
            fully_shard(model.get_submodule(path), ignored_params=kept)
    fully_shard(model, ignored_params=kept)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs_for(model.config.model_type)).logits
    return result


def compared(plain: Loaded, shared: Loaded) -> dict[str, Any]:
    """Return what differs between a model and the one that was loaded in shares, and how much of it is here."""
    left, right = plain.model.state_dict(), shared.model.state_dict()
    wrong = [name for name in left if not torch.equal(left[name], whole(right[name]))]
    wrong += [name for name in left if left[name].dtype != right[name].dtype]
    buffers = dict(shared.model.named_buffers())
    wrong += [name for name, buffer in plain.model.named_buffers() if not torch.equal(buffer, buffers[name])]
    own = sum(own_part(parameter).numel() for parameter in shared.model.parameters())
    return {
        "same_names": left.keys() == right.keys(),
        "wrong": wrong,
        "logits": float((logits(plain.model) - logits(shared.model)).abs().max()),
        "share": own / sum(parameter.numel() for parameter in plain.model.parameters()),
        "notes": shared.all_notes == plain.all_notes and shared.identity == plain.identity,
    }


def run(directory: Path, world: World) -> dict[str, Any]:
    case = json.loads((directory / "case.json").read_text())
    spec = ModelSpec(name_or_path=str(directory), **case["model"])
    plain = None if directory.name == "broken" else load_model(spec, case["task"], seed=3)
    shared = load_model(spec, case["task"], seed=3, world=world, in_shares=True)
    if shared.unread is None:
        return {"whole": shared.notes}
    if spec.new_special_tokens:
        tokenizer = load_tokenizer(spec)
        for base in filter(None, (plain, shared)):
            fit_to_tokenizer(base.model, tokenizer)
    shard(shared.model)
    try:
        shared.unread.fill(shared.model, world)
    except UserError as error:
        return {"error": str(error)}
    assert plain is not None
    return compared(plain, shared)


def main() -> None:
    world = World(torch.device("cpu"))
    home = Path(sys.argv[1])
    found = {path.name: run(path, world) for path in sorted(home.iterdir()) if path.is_dir()}
    (home / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
