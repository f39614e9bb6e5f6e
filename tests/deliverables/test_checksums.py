"""A complete model that a run left is refused once one of its files is not what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.deliverables.checksums import CHECKSUMS, check_checksums
from peftcli.errors import UserError
from peftcli.inference.open_run import find_run
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.training.run import train


def test_a_flipped_bit_of_a_complete_model_is_noticed(recipe) -> None:
    run = Path(train(recipe(method={"name": "full"}, training__max_steps=1)).output_dir)
    model = run / "model"
    check_checksums(model)
    names = json.loads((model / CHECKSUMS).read_text())["digests"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names)
    for name in names:
        whole = (model / name).read_bytes()
        (model / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 4, whole[-1]]))
        for use in (find_run, lambda path: open_run_to_merge(path, None)):
            with pytest.raises(UserError, match=f"{name} is not the file that was written"):
                use(run)
        (model / name).write_bytes(whole)
    (model / CHECKSUMS).write_text("[]")
    with pytest.raises(UserError, match=CHECKSUMS):
        find_run(run)
    (model / CHECKSUMS).unlink()  # as an earlier version left it
    find_run(run)
    open_run_to_merge(run, None)
