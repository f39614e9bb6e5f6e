"""Count how memory and communication of a device grow with devices and model, from shapes alone; no weights are needed.

    python benchmarks/many_devices.py                # tables in Markdown, for docs/devices.md
    python benchmarks/many_devices.py --check        # the same counts beside what benchmarks/processes.py measured

What is counted, for LoRA of rank 16 on all linears of a bfloat16 base, with AdamW:

- memory that lasts: the base (whole, or a device's share of it), and the trained tensors with gradient and two moments,
  16 bytes a number, on every device;
- memory that passes: under `fsdp` the largest block and its successor, gathered whole, and the embeddings and the head,
  which stay gathered through a pass. Activations are left out: they belong to the micro-batch, not to the devices;
- what a device receives in a step: the gradients of the trained tensors, summed (all-reduce, 2 (N - 1) / N of them);
  under `fsdp` the blocks in the forward and again in the backward pass of each micro-batch, and embeddings and head
  once for both ((N - 1) / N of it each time);
- seconds of that at a given bandwidth of each device, were nothing of it hidden behind the products.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cells
from material import SHAPES
from side_by_side import HERE

DEVICES = (1, 2, 4, 8, 16, 32, 64)
LORA = {"name": "lora", "r": 16, "target_modules": "all-linear"}
BANDWIDTH = {"400 Gbit/s": 50e9, "100 Gbit/s": 12.5e9}
"""Bytes a second that a device receives: between machines, a card of its own for each device."""
SHAPES_70B = {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 3.1 70B."""


@dataclass(frozen=True)
class Counted:
    """Sizes of one model with one method.

    Args:
        base: bytes of the frozen base.
        block: bytes of its largest block.
        root: bytes outside the blocks (embeddings, head, last norm).
        trained: numbers that are trained.
    """

    base: int
    block: int
    root: int
    trained: int

    def lasting(self, devices: int, *, sharded: bool) -> float:
        """Bytes that a device holds all the time."""
        return self.base / (devices if sharded else 1) + 16 * self.trained

    def passing(self, *, sharded: bool) -> int:
        """Bytes that a device holds besides while it computes."""
        return 2 * self.block + self.root if sharded else 0

    def received(self, devices: int, *, sharded: bool, micro_batches: int = 1) -> float:
        """Bytes that a device receives in a step."""
        share = (devices - 1) / devices
        gathered = 2 * (self.base - self.root) + self.root
        return 2 * share * 4 * self.trained + (share * gathered * micro_batches if sharded else 0)


def count(shape: dict[str, Any], method: dict[str, Any], bytes_each: int) -> Counted:
    """Return the sizes of a causal model of this shape, built without weights."""
    from transformers import AutoConfig

    from peftcli.models.load.meta_model import build_meta
    from peftcli.models.read_anatomy import read_anatomy
    from peftcli.protocol.apply_method import apply_method
    from peftcli.protocol.registry import registry

    config = AutoConfig.for_model(**{"model_type": "llama", **shape})
    model = build_meta(config, "causal_lm")
    anatomy = read_anatomy(model)
    sizes = {name: bytes_each * parameter.numel() for name, parameter in model.named_parameters()}  # tied ones once
    blocks = [path for paths in anatomy.layers.values() for path in paths]
    each = [sum(size for name, size in sizes.items() if name.startswith(f"{path}.")) for path in blocks]
    keys = {key: value for key, value in method.items() if key != "name"}
    attachment = apply_method(model, anatomy, registry.info(method["name"]).params(**keys))
    trained = sum(parameter.numel() for parameter in attachment.trainable_parameters().values())
    return Counted(sum(sizes.values()), max(each), sum(sizes.values()) - sum(each), trained)


def table(name: str, counted: Counted) -> str:
    """Return the growth with the number of devices, in Markdown."""
    head = [
        "devices",
        "memory, `ddp`",
        "memory, `fsdp`",
        "and while it computes",
        "received, `ddp`",
        "received, `fsdp`",
    ]
    lines = [
        f"{name}: base {counted.base / 1e9:.1f} GB, {counted.trained / 1e6:.1f} million numbers trained",
        "",
        f"| {' | '.join([*head, *(f'`fsdp` at {name}' for name in BANDWIDTH)])} |",
        "|---" * (len(head) + len(BANDWIDTH)) + "|",
    ]
    for devices in DEVICES:
        sharded = counted.received(devices, sharded=True)
        cells = [
            f"{counted.lasting(devices, sharded=False) / 1e9:.1f} GB",
            f"{counted.lasting(devices, sharded=True) / 1e9:.1f} GB",
            f"+ {counted.passing(sharded=devices > 1) / 1e9:.1f} GB",
            f"{counted.received(devices, sharded=False) / 1e9:.2f} GB",
            f"{sharded / 1e9:.1f} GB",
            *(f"{sharded / each:.1f} s" for each in BANDWIDTH.values()),
        ]
        lines.append(f"| {devices} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(measured: Path) -> str:
    """Return the counts beside what was measured on this machine's processes."""
    record = json.loads(measured.read_text(encoding="utf-8"))
    bytes_each = 2 if record["dtype"] == "bfloat16" else 4
    method = {"name": "lora", **cells.LORA, "target_modules": ["attn.q", "attn.v"]}
    counted = count(SHAPES[record["shape"]], method, bytes_each)
    lines = ["| processes | strategy | | computed | measured |", "|---|---|---|---|---|"]
    kinds = dict.fromkeys((one["processes"], one["strategy"]) for one in record["runs"])
    for size, strategy in kinds:
        if size == 1 or strategy not in ("ddp", "fsdp"):
            continue
        runs = [one for one in record["runs"] if (one["processes"], one["strategy"]) == (size, strategy)]
        sharded = strategy == "fsdp"
        held = counted.base / (size if sharded else 1)
        one_pass = size * counted.received(size, sharded=sharded)
        for what, expected, key in (
            ("base per process, MB", held, "base_bytes_per_process"),
            ("sent per step by all processes, one micro-batch, MB", one_pass, "bytes_sent_a_step"),
        ):
            values = sorted(one[key] for one in runs if one[key] is not None)
            found = f"{values[len(values) // 2] / 1e6:,.1f}" if values else "not measured"
            lines.append(f"| {size} | `{strategy}` | {what} | {expected / 1e6:,.1f} | {found} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="hold the counts against benchmarks/processes.json")
    parser.add_argument("--measured", type=Path, default=HERE / "processes.json")
    given = parser.parse_args()
    if given.check:
        print(check(given.measured))
        return
    for name, shape in (("Llama 3.1 8B", SHAPES["8b"]), ("Llama 3.1 70B", SHAPES_70B)):
        print(table(name, count(shape, LORA, 2)), end="\n\n")


if __name__ == "__main__":
    main()
