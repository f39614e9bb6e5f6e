"""The words of a comparison: what is advised, what stays open, and the reports that show them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from peftcli.adapters.servers import server_rules, servers_of
from peftcli.console.study_views.compare_view import print_record
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Curve, RatePoint
from peftcli.studies.evidence.explain import explain
from peftcli.studies.evidence.steps_to_reference import steps_until
from peftcli.studies.report.comparison_markdown import comparison_markdown
from peftcli.studies.report.comparison_page import comparison_report
from peftcli.studies.report.comparison_text import steps_text


def method(label: str, score: float | None, verdict: str | None, trainable: int = 100, **more) -> ComparedMethod:
    known = {"score": score, "interval": None if score is None else (score - 0.03, score + 0.03),
             "scores": [] if score is None else [score] * 3, "trainable": trainable}  # fmt: skip
    return ComparedMethod(label, label, verdict=verdict, **{**known, **more})


def behind(by: float, p: float = 0.001) -> dict:
    return {"difference": by, "difference_interval": (by - 0.02, by + 0.02), "p_best": p}


def beside_reference(by: float, p: float) -> dict:
    return {"difference_to_reference": by, "reference_interval": (by - 0.02, by + 0.02), "p_reference": p}


def comparison(*methods: ComparedMethod, **more) -> Comparison:
    known = {"task": "sequence_classification", "model": "tiny", "data": "rows.jsonl", "metric": "eval_accuracy",
             "greater_is_better": True, "rows": 300, "seeds": [0, 1, 2], "reference": "freeze"}  # fmt: skip
    made = Comparison(methods=list(methods), **{**known, **more})
    explain(made)
    return made


FREEZE = method("freeze", 0.7, "behind", 10, **behind(0.2))
BEST = method("lora", 0.9, "best", 5000, difference=0.0, difference_interval=(0.0, 0.0), seconds=30.0, percent=1.25,
              **beside_reference(-0.2, 0.001))  # fmt: skip
TIED = method("bitfit", 0.89, "tied with the best", 500, seconds=60.0, **behind(0.01, 0.6),
              **beside_reference(-0.19, 0.001))  # fmt: skip


def test_the_cheapest_of_the_tied_is_chosen_and_what_it_costs_is_said() -> None:
    made = comparison(BEST, TIED, FREEZE)
    text = " ".join(made.summary)
    assert made.summary[0].startswith("Choose bitfit: accuracy 89% (95% interval 86% to 92%)")
    assert "best (lora, 90%)" in text and "trains 500 numbers" in text
    assert "lora takes the least time (30 s)" in text
    assert "better than the reference, freeze, by 19 points (17 to 21)" in text
    alone = comparison(BEST, replace(TIED, verdict="behind"), FREEZE)
    assert alone.summary[0].startswith("Choose lora") and "better than each of the others" in alone.summary[0]


def test_being_cheap_is_no_reason_to_take_what_may_be_no_better_than_the_reference() -> None:
    weak = replace(TIED, **beside_reference(-0.01, 0.5))
    assert comparison(BEST, weak, FREEZE).summary[0].startswith("Choose lora")


def test_where_nothing_is_better_than_no_training_that_is_said() -> None:
    base = method("base", 0.89, "tied with the best", 0, **behind(0.01, 0.7))
    best = replace(BEST, **beside_reference(-0.01, 0.7))
    made = comparison(best, base, reference="base")
    assert made.summary[0].startswith("Train nothing") and "reference itself" in made.summary[-1]
    worse = replace(BEST, verdict="best", **beside_reference(0.01, 0.7))
    assert "not shown to be better" in " ".join(comparison(worse, method("full", 0.91, "behind", 9000, **behind(0.1)),
                                                           reference="full").summary)  # fmt: skip


def test_no_score_and_a_single_one() -> None:
    nothing = comparison(method("lora", None, None, status="diverged", reason="the loss was not finite"))
    assert "nothing to choose from" in nothing.summary[0] and nothing.undecided == []
    assert "nothing can be compared" in comparison(BEST).summary[0]


def test_what_the_data_cannot_decide_is_said() -> None:
    edge = {"rate": 1e-2, "rates": [RatePoint(1e-3, 0.5), RatePoint(1e-2, 0.8)]}
    lost = method("vera", None, None, status="failed", reason="it ran out of memory.")
    made = comparison(replace(BEST, **edge), replace(TIED, scores=[0.89]), FREEZE, lost, steps=40, full_steps=400)
    text = "\n".join(made.undecided)
    for words in ("Which is best of lora and bitfit", "bitfit may be behind by as much as 3 points", "300 held-out",
                  "3 seeds say little", "How often bitfit fail", "higher learning rate would be better for lora",
                  "400 steps", "vera compares: it failed (it ran out of memory)", "on new data"):  # fmt: skip
        assert words in text, words
    one = comparison(BEST, TIED, seeds=[0], searched=False)
    assert "with one seed" in "\n".join(one.undecided) and "one rate only" in "\n".join(one.undecided)


def test_intervals_from_few_rows_are_said_to_be_too_narrow() -> None:
    pair = (method("lora", 0.9, "best"), method("bitfit", 0.8, "behind", **behind(0.1)))
    few, enough = (" ".join(comparison(*pair, rows=rows).undecided) for rows in (19, 20))
    assert "19 held-out rows are few for a bootstrap" in few and "few for a bootstrap" not in enough


def test_one_held_out_row_is_said_to_show_nothing() -> None:
    rows = [method("lora", 1.0, "best", interval=None), method("ia3", 0.0, "tied with the best", interval=None)]
    found = comparison(*rows, rows=1, seeds=[0])
    said = " ".join(found.undecided)
    assert "too few are held out (1) for an interval" in said and "intervals cover the choice" not in said


def test_steps_to_reference_is_the_first_step_at_which_the_mean_over_seeds_is_as_good() -> None:
    curves = [Curve(0, [0, 10, 20, 30], [0.1, 0.9, 0.6, 0.8]), Curve(1, [0, 10, 20], [0.1, 0.4, 0.8])]
    assert steps_until(curves, 0.65, greater_is_better=True) == 10
    assert steps_until(curves, 0.7, greater_is_better=True) == 20  # 30 was evaluated for one seed alone
    assert steps_until(curves, 0.75, greater_is_better=True) is None
    assert steps_until(curves, 0.1, greater_is_better=False) == 0 and steps_until([], 0.5, True) is None
    made = comparison(replace(BEST, curves=curves), FREEZE)
    assert made.methods[0].steps_to_reference == 20 and made.methods[1].steps_to_reference is None


def test_the_steps_to_an_untrained_base_begin_after_the_start() -> None:
    """Every method starts with the score of the base: all were said to reach it after 0 steps."""
    base = method("base", 0.3, "behind", 0, **behind(0.6))
    fast, slow = [Curve(0, [0, 10, 20], [0.3, 0.5, 0.9])], [Curve(0, [0, 10, 20], [0.3, 0.2, 0.4])]
    never, unseen = [Curve(0, [0, 10], [0.3, 0.1])], [Curve(0, [10, 20], [0.2, 0.4])]
    for curves, steps in ((fast, 10), (slow, 20), (never, None), (unseen, 20)):
        made = comparison(replace(BEST, curves=curves), base, reference="base")
        assert [row.steps_to_reference for row in made.methods] == [steps, None]
        assert "whose score it reached" not in " ".join(made.summary)


def test_few_rows_are_not_said_to_leave_nothing_to_chance() -> None:
    pair = (BEST, replace(FREEZE, curves=[]))
    few, enough = (" ".join(comparison(*pair, rows=rows).summary) for rows in (19, 20))
    assert "better than each of the others by more than chance explains" in enough and "It is better than" in enough
    assert "better than each of the others as far as 19 held-out rows can show" in few
    assert "On these 19 rows it is better than the reference, freeze" in few


def test_never_is_said_only_where_evaluations_could_have_shown_it() -> None:
    low = [Curve(0, [0, 10], [0.1, 0.2])]
    for curves, reference, words in ((low, FREEZE, "never"), ([], FREEZE, ""), ([Curve(0)], FREEZE, ""),
                                     (low, replace(FREEZE, score=None), "")):  # fmt: skip
        made = comparison(replace(BEST, curves=curves), reference)
        assert steps_text(made.methods[0], made) == words and steps_text(made.methods[1], made) == ""
        page = comparison_report(made)[0]
        assert ("never" in page) == bool(words) and ("Steps to reference" in page) == bool(words)


def test_a_page_names_no_option_that_nobody_gave() -> None:
    """Runs that exist are compared without a search, and without --no-search."""
    page = comparison_report(comparison(BEST, FREEZE, searched=False))[0]
    assert "No rates were searched: every method ran" in page and "--no-search" not in page


def test_the_page_has_no_empty_column_for_intervals_where_nothing_has_a_score() -> None:
    lost = method("lora", None, None, status="diverged", reason="the loss was not finite")
    assert 'scope="col">95% interval' not in comparison_report(comparison(lost))[0]
    assert 'scope="col">95% interval' in comparison_report(comparison(lost, FREEZE))[0]


@pytest.mark.parametrize(
    ("config", "task_type", "servers"),
    [
        ({"r": 8}, "CAUSAL_LM", ["vllm", "llama.cpp", "hf peft"]),
        ({"r": 8, "use_dora": True}, "CAUSAL_LM", ["hf peft"]),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "CAUSAL_LM", ["hf peft"]),
        ({"r": 8, "bias": "all"}, "CAUSAL_LM", ["hf peft"]),
        ({"r": 1024}, "CAUSAL_LM", ["llama.cpp", "hf peft"]),
        ({"r": 8, "use_rslora": True}, "CAUSAL_LM", ["vllm", "hf peft"]),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, "CAUSAL_LM", ["llama.cpp", "hf peft"]),
        ({"r": 8}, "SEQ_CLS", ["hf peft"]),
        ({"peft_type": "IA3"}, "CAUSAL_LM", ["hf peft"]),
        ({"peft_type": None}, "CAUSAL_LM", []),
        ({"peft_type": "PEFTCLI"}, "CAUSAL_LM", []),
    ],
)
def test_which_servers_load_an_adapter(tmp_path: Path, config: dict, task_type: str, servers: list[str]) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": task_type, **config})
    )
    assert servers_of(tmp_path) == servers
    (tmp_path / "model").mkdir()
    whole = ["vllm", "llama.cpp", "transformers"]  # HF peft loads adapters
    assert servers_of(tmp_path) == whole
    for task, serving in (("causal_lm", whole), ("sequence_classification", ["transformers"])):
        (tmp_path / "summary.json").write_text(json.dumps({"task": task}))
        assert servers_of(tmp_path) == serving


def test_each_rule_of_a_server_has_a_source_and_a_date() -> None:
    assert all(rule["source"] and rule["date"] >= "2026-11" for rule in server_rules().values())


def test_the_table_fits_80_characters_and_a_wide_one_has_every_value() -> None:
    best = replace(BEST, curves=[Curve(0, [0, 10], [0.1, 0.9])])
    made = comparison(best, TIED, replace(FREEZE, label="a|b*c"), notes=["a note \x1b[31m"], differs=["the seed"],
                      reference="a|b*c")  # fmt: skip
    for width, expected in ((80, "(86% to 92%)"), (200, "steps to reference")):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        print_record(made, console)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width and expected in text
        assert "\x1b" not in text and "behind by 20 points (18 to 22)" in " ".join(text.split())
        assert text.index("- the seed") < text.index("Choose bitfit") < text.index("verdict")
        assert text.index("verdict") < text.index("cannot decide")


def test_the_markdown_report_holds_everything_and_escapes_names() -> None:
    made = comparison(BEST, TIED, replace(FREEZE, label="a|b*c"), command="peft compare x", versions={"torch": "2.13"},
                      machine="two cores", date="2026-11-29", seconds=75.0)  # fmt: skip
    text = comparison_markdown(made)
    headings = ["# 3 methods compared", "Choose bitfit", "## The methods", "## What these data cannot decide",
                "## How it was measured"]  # fmt: skip
    assert [text.index(each) for each in headings] == sorted(text.index(each) for each in headings)
    of_runs = comparison_markdown(replace(made, differs=["the seed"]))
    assert of_runs.index("- the seed") < of_runs.index("## In short") < of_runs.index("Choose bitfit")
    assert r"a\|b\*c" in text and "1 min 15 s of training, two cores" in text and "peft compare x" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
