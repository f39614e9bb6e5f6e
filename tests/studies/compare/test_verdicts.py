"""From the scores of rows to a comparison's files: verdicts, words, and every report."""

from __future__ import annotations

import json
from pathlib import Path

from peftcli.console.study_views.compare_view import print_comparison
from peftcli.inference.row_scores import GeneralScores
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Curve
from peftcli.studies.compare.verdicts import with_verdicts
from peftcli.studies.compare.write_comparison import write_comparison
from tests.studies.evidence.scores import with_losses


def test_a_comparison_with_the_base_is_judged_explained_and_written(tmp_path: Path, capsys) -> None:
    hard = [1.0 + row % 7 / 7 for row in range(60)]
    text = [GeneralScores("text", "general", [2.0 + rise] * 40, [1.0] * 40) for rise in (0.0, 0.5)]
    scored = {
        label: [with_losses([loss + add + seed / 1000 for loss in hard], seed, general=text[1]) for seed in range(3)]
        for label, add in (("lora", 0.0), ("bitfit", 0.3))
    }
    before = [with_losses([loss + 1 for loss in hard], None, general=text[0])]
    rows = [ComparedMethod(label, label, trainable=9, curves=[Curve(0, [0, 5], [3.0, 1.5])]) for label in scored]
    lost = ComparedMethod("vera", "vera", status="diverged", reason="the loss was not finite")
    made = Comparison("causal_lm", "tiny", "rows", "eval_loss", False, 60, [0, 1, 2], [*rows, lost], reference="base")
    judged = with_verdicts(made, scored, before)
    words = {row.label: row.verdict for row in judged.methods}
    assert words == {"lora": "best", "bitfit": "behind", "vera": None, "base": "behind"}
    assert judged.summary[0].startswith("Choose lora") and judged.methods[0].steps_to_reference == 5
    assert judged.methods[0].forgotten == 0.5 and judged.methods[-1].trainable == 0
    assert any("vera" in sentence for sentence in judged.undecided)

    files = write_comparison(judged, tmp_path)
    reports = {file for file in files if file.suffix != ".svg"}
    assert {file.name for file in reports} == {"comparison.json", "report.md", "report.html"}
    assert json.loads((tmp_path / "comparison.json").read_text())["summary"] == judged.summary
    assert all(judged.summary[0].split(":")[0] in file.read_text() for file in reports)
    print_comparison(judged, files)
    printed = capsys.readouterr().out
    assert "Choose lora" in printed and str(tmp_path / "report.html") in printed.replace("\n", "")


def test_a_method_whose_score_is_no_number_is_said_with_the_reason(tmp_path: Path) -> None:
    scored = {"lora": [with_losses([1.0, 1.1, 1.3] * 9)], "vera": [with_losses([1.0, float("nan"), 1.3] * 9)]}
    rows = [ComparedMethod("lora", "lora"), ComparedMethod("vera", "vera", reason="1 of 2 seeds failed: full disk")]
    judged = with_verdicts(Comparison("causal_lm", "m", "d", "eval_loss", False, 27, [0, 1], rows), scored, [])
    assert judged.methods[0].reason is None
    reason = "1 of 2 seeds failed: full disk; eval_loss of the held-out rows is not a finite number"
    assert judged.methods[1].reason == reason
    assert f"How vera compares: it has no score ({reason})." in judged.undecided
    for file in write_comparison(judged, tmp_path)[1:3]:
        assert "no score" in file.read_text(encoding="utf-8") and "not a finite number" in file.read_text("utf-8")
