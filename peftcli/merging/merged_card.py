"""The README.md of a merged model: what was merged into what, and how well it was verified."""

from __future__ import annotations

from peftcli.adapters.model_card import front_matter, python_block
from peftcli.locations import public_name
from peftcli.merging.merge_report import MergeReport


def merged_card(base: str, task: str, auto: str, report: MergeReport) -> str:
    """Return the README.md.

    Args:
        base: name of the base model.
        task: as in the recipe.
        auto: transformers' class that loads the merged model.
        report: of the merge.
    """
    lines = [
        *front_matter(base, "transformers", ("peftcli", "merged", report.method), task),
        f"# {public_name(base)}, merged with a {report.method} adapter",
        "",
        f"The weights of the base with the change of a `{report.method}` training for `{task}` folded in, in "
        f"{report.written_in}. It needs no adapter library:",
        "",
        *python_block(
            [
                f"from transformers import {auto}, AutoTokenizer",
                "",
                f'model = {auto}.from_pretrained("path/to/this/directory")',
                'tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")',
            ]
        ),
        "## Verification",
        "",
        *_verification(report),
        "",
        *[f"- {note}" for note in report.notes],
    ]
    return "\n".join(lines).rstrip() + "\n"


def _verification(report: MergeReport) -> list[str]:
    if not report.verified:
        return ["Not verified (`--no-verify`)." if report.max_abs_diff is None else "Not verified: see the notes."]
    cost = report.requantized
    before = "" if cost is None else ", before it was quantised again"
    found = (
        f"Compared with base + adapter on {report.rows} rows{before}: largest difference of the logits "
        f"{report.max_abs_diff:.3g} (tolerance {report.tolerance:.3g}), mean {report.mean_abs_diff:.3g}, "
        f"agreement {report.agreement:.1%}."
    )
    if cost is None:
        return [found]
    quantised = (
        f"In 4 bits, as it is here: largest difference {cost['max_abs_diff']:.3g}, mean {cost['mean_abs_diff']:.3g}, "
        f"agreement {cost['agreement']:.1%}."
    )
    return [found, "", quantised]
