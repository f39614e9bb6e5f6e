"""The commands that are disturbed, what each leaves, and the states that they and the damage start from."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.soak.material import DECODER


@dataclass(frozen=True)
class Scenario:
    """A command, and how it goes on after it was disturbed.

    Args:
        name: in the ids of cases.
        state: what it starts from: a key of `STATES`, or `fresh`.
        command: arguments of `peft`.
        outputs: files and directories that are its result.
        prints: whether its standard output is a part of its result.
        resumed: it goes on with `--resume`; another is started again, and its outputs appear whole or not at all.
    """

    name: str
    state: str
    command: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    prints: bool = False
    resumed: bool = False

    @property
    def again(self) -> tuple[str, ...]:
        """The command that goes on after it was disturbed."""
        return (*self.command, "--resume") if self.resumed else self.command


def _train(name: str) -> Scenario:
    return Scenario(f"train-{name}", "fresh", ("train", f"{name}.yaml"), ("run",), resumed=True)


_MERGE = ("merge", "run", "--no-verify", "-o")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        _train("best"),
        Scenario("merge", "finished", (*_MERGE, "merged"), ("merged",)),
        _train("early"),
        _train("samples"),
        _train("full"),
        _train("classes"),
        Scenario("eval", "finished", ("eval", "run", "--json"), prints=True),
        Scenario("predict", "finished", ("predict", "run", "-i", "new.jsonl", "-o", "out.jsonl"), ("out.jsonl",)),
        Scenario("merge-shards", "finished", (*_MERGE, "shards", "--max-shard-size", "30KB"), ("shards",)),
        Scenario("merge-full", "finished-full", (*_MERGE, "merged"), ("merged",)),
        Scenario("export-hf", "finished", ("export", "run", "-o", "hf"), ("hf",)),
        Scenario("export-hub", "finished", ("export", "run", "-o", "hub", "--to", "adapterhub"), ("hub",)),
        Scenario("import", "left", ("import", "hf", "-o", "imported"), ("imported",)),
        Scenario("import-hub", "left", ("import", "hub", "-o", "imported", "--base", DECODER), ("imported",)),
    )
}
"""What is killed at every event; the first two are those of a sample."""
VERIFIED = Scenario("merge-verified", "finished", ("merge", "run", "-o", "merged"), ("merged",))
"""Verifying starts a process of several seconds: this one is killed at random times only."""

Commands = tuple[tuple[tuple[str, ...], str], ...]
STATES: dict[str, tuple[str, Commands, tuple[str, ...]]] = {
    "cut": ("fresh", ((SCENARIOS["train-best"].command, "checkpoints/.partial-step-000006"),), ()),
    "finished": ("fresh", ((SCENARIOS["train-best"].command, ""),), (".cache",)),
    "finished-full": ("fresh", ((SCENARIOS["train-full"].command, ""),), (".cache",)),
    "cached": ("finished", ((("inspect", "best.yaml"), ""),), ()),
    "left": (
        "finished",
        tuple((SCENARIOS[name].command, "") for name in ("merge", "merge-shards", "export-hf", "export-hub")),
        (),
    ),
}
"""State: (the state before it, (command, the file event before which it is killed, if it is), what is removed)."""
