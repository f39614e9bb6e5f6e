"""A bit of a file flipped, or the file cut; then a command that reads it: the same result, a refusal, or a note."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak import results
from benchmarks.soak.child import CACHE, Ended
from benchmarks.soak.material import DECODER, FORMATS
from benchmarks.soak.outcomes import Outcome, bad, well
from benchmarks.soak.scenarios import SCENARIOS, Scenario
from benchmarks.soak.workshop import Workshop

FLIPS, CUTS = 500, 200
Change = Callable[[bytes], bytes]
HEAD = 512
"""Half of the damage goes to so many first bytes of a file: a header of numbers and names is a small part of it."""
TOKENIZER = "tokenizer"
"""Of its files a note speaks as of one thing."""
DERIVED = "plots"
"""A folder of a run that is drawn from metrics.jsonl."""


@dataclass(frozen=True)
class Target:
    """Files that are damaged, and who reads them.

    Args:
        name: in the ids of cases.
        files: patterns below the state; one of the files is drawn.
        readers: scenarios of one state; one is drawn.
        written: this project wrote or recorded the files, so a changed one cannot pass for another whole one.
    """

    name: str
    files: tuple[str, ...]
    readers: tuple[Scenario, ...]
    written: bool = True


def _prints(name: str, state: str, *command: str) -> Scenario:
    return Scenario(name, state, (*command, "--json"), prints=True)


_USES = tuple(SCENARIOS[name] for name in ("eval", "predict", "merge", "export-hf", "export-hub"))
_REMEMBERED = ("config.json", "model.safetensors", "tokenizer*")
"""Files of a base that a run knows again."""
_AGAIN = Scenario("finished-again", "finished", ("train", "best.yaml"), ("run",))
TARGETS = {
    target.name: target
    for target in (
        Target("checkpoint", ("run/**/*",), (Scenario("resume", "cut", ("train", "best.yaml", "--resume"), ("run",)),)),
        Target(
            "adapter",
            ("run/adapter/*", "run/*.json", "run/*.yaml"),
            (*_USES, _AGAIN, _prints("inspect-adapter", "finished", "inspect-adapter", "run")),
        ),
        Target(
            "prepared-rows",
            (f"{CACHE}/*/*",),
            (
                Scenario("train-cached", "cached", ("train", "best.yaml", "-o", "second"), ("second",)),
                _prints("inspect-cached", "cached", "inspect", "best.yaml"),
            ),
        ),
        Target("base-of-a-run", tuple(f"{DECODER}/{name}" for name in _REMEMBERED), _USES),
        Target("base", (f"{DECODER}/*",), (_prints("eval-base", "fresh", "eval", "best.yaml"),), written=False),
        *(
            Target(name, (f"{name}/*",), (_prints(f"eval-{name}", "left", "eval", f"{name}.yaml"),), written=False)
            for name in ("merged", "shards")
        ),
        Target("recipe", ("best.yaml",), (_prints("inspect", "fresh", "inspect", "best.yaml"),), written=False),
        *(
            Target(
                f"rows-{suffix}",
                (f"rows.{suffix}",),
                (_prints(f"inspect-{suffix}", "fresh", "inspect", "best.yaml", f"data.path=rows.{suffix}"),),
                written=False,
            )
            for suffix in FORMATS
        ),
        Target("hf-adapter", ("hf/*",), (SCENARIOS["import"],), written=False),
        Target("hub-adapter", ("hub/*",), (SCENARIOS["import-hub"],), written=False),
    )
}


def flips(_shop: Workshop, sample: bool) -> Iterator[str]:
    """Yield TARGET/NUMBER of the flipped bits."""
    yield from _spread(FLIPS, sample)


def cuts(_shop: Workshop, sample: bool) -> Iterator[str]:
    """Yield TARGET/NUMBER of the cut files."""
    yield from _spread(CUTS, sample)


def _spread(number: int, sample: bool) -> Iterator[str]:
    """A run's own files get half of the cases, all other targets an equal share of the rest."""
    own = [name for name, target in TARGETS.items() if target.written]
    others = [name for name in TARGETS if name not in own]
    for index in range(number):
        names = own if index % 2 == 0 or sample else others
        yield f"{names[index // 2 % len(names)]}/{index}"


def flip(shop: Workshop, case: str) -> Outcome:
    """Flip one bit of a file."""
    draw = shop.draw(f"flip/{case}")

    def flipped(raw: bytes) -> bytes:
        at = draw.randrange(min(len(raw), HEAD) if draw.random() < 0.5 else len(raw))
        return raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :]

    return _damaged(shop, case, draw, flipped)


def cut(shop: Workshop, case: str) -> Outcome:
    """Cut a file short; one in five is emptied."""
    draw = shop.draw(f"cut/{case}")
    return _damaged(shop, case, draw, lambda raw: raw[: draw.randrange(len(raw)) if draw.random() < 0.8 else 0])


def _damaged(shop: Workshop, case: str, draw: random.Random, change: Change) -> Outcome:
    target = TARGETS[case.partition("/")[0]]
    reader = draw.choice(target.readers)
    shop.reference(reader)
    place = shop.start(reader.state)
    found = {path for pattern in target.files for path in place.glob(pattern) if path.is_file()}
    path = draw.choice(sorted(path for path in found if path.stat().st_size))
    whole = path.read_bytes()
    damaged = change(whole)
    path.write_bytes(damaged)
    shop.log.append(f"{path.relative_to(place)} is damaged")
    return _judged(shop, target, reader, path, (whole, damaged), shop.peft(*reader.command))


def _judged(
    shop: Workshop, target: Target, reader: Scenario, path: Path, contents: tuple[bytes, bytes], ended: Ended
) -> Outcome:
    damaged = contents[1]
    name = path.relative_to(shop.now).as_posix()
    if fault := ended.fault():
        return bad(f"{name}: {fault}")
    reference = shop.reference(reader)
    before = set(reference.ended.err.splitlines())
    said = "\n".join(line for line in ended.err.splitlines() if line not in before)
    named = path.name in said or (path.parent != shop.now and path.parent.name in said)
    if ended.code:
        return well("refused") if named else bad(f"{name}: refused without naming it: {said.strip()[:150]}")
    kept = path.exists() and path.read_bytes() == damaged
    expected, found = (
        {
            key: value
            for key, value in one.items()
            if not (kept and key == name) and not _follows(key, name) and not _carried(shop.now / key, path, *contents)
        }
        for one in (reference.result, results.result(shop.now, reader.outputs, ended if reader.prints else None))
    )
    different = results.difference(expected, found)
    if different is None:
        return well("the same result" if kept else "built again")
    if not target.written:
        return well("read as another whole file")
    named = named or (path.name.startswith(TOKENIZER) and TOKENIZER in said)
    return well("said, with another result") if named else bad(f"{name}: another result in silence: {different}")


def _carried(output: Path, path: Path, whole: bytes, damaged: bytes) -> bool:
    """Whether an output has the changes of a damaged JSON object that is one still: a base's files go with a merge."""
    if output.name != path.name or path.suffix != ".json" or not output.is_file():
        return False
    try:
        before, after, made = (json.loads(text) for text in (whole, damaged, output.read_bytes()))
    except ValueError:
        return False
    if not all(isinstance(one, dict) for one in (before, after, made)):
        return False
    changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    return all(made.get(key) == after.get(key) for key in changed)


def _follows(output: str, damaged: str) -> bool:
    """Whether an output shows lines of a damaged log and nothing else."""
    return damaged.endswith("metrics.jsonl") and DERIVED in Path(output).parts
