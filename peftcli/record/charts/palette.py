"""Colours of pages and charts, each for light and for dark, and the CSS that says so.

The series are those of Okabe and Ito (2008), darkened on light and lightened on dark until they stand out by 3 to 1;
people who see no red, green or blue can tell them apart. No chart relies on colour alone: marks differ in shape, lines
in dashes.
"""

from __future__ import annotations

COLOURS = {
    "page": ("#fbfbfa", "#131619"),
    "surface": ("#ffffff", "#1a1e22"),
    "ink": ("#1b1f23", "#e9ebee"),
    "muted": ("#596069", "#a4adb6"),
    "rule": ("#dfe2e5", "#31373d"),
    "accent": ("#0a58a6", "#7cb9f5"),
    "wash": ("#eef4fa", "#1b2733"),
    "best": ("#0a58a6", "#7cb9f5"),
    "tied": ("#00735c", "#4fd1ac"),
    "behind": ("#6a727b", "#959fa9"),
    "worse": ("#a84300", "#f5a15c"),
    "reference": ("#1b1f23", "#e9ebee"),
    "series-1": ("#0a58a6", "#7cb9f5"),
    "series-2": ("#a84300", "#f5a15c"),
    "series-3": ("#00735c", "#4fd1ac"),
    "series-4": ("#9c3d78", "#e79cc6"),
    "series-5": ("#7a5c00", "#dfc04a"),
    "series-6": ("#3a6f8f", "#a3d8f4"),
}
"""Name of a CSS variable -> (on light, on dark)."""

SERIES = 6
"""Lines that have a colour of their own."""

KINDS = ("best", "tied", "behind", "worse", "reference", "plain")
"""What a mark stands for; its shape and colour follow."""


def page_variables() -> str:
    """Return CSS declarations that follow `color-scheme`, for the root of a page."""
    return " ".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items())


def _file_variables() -> str:
    """Return CSS rules that follow the viewer's preference, for an SVG file."""
    light = " ".join(f"--{name}: {colour};" for name, (colour, _) in COLOURS.items())
    dark = " ".join(f"--{name}: {colour};" for name, (_, colour) in COLOURS.items())
    return f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"


def _kind_rules() -> str:
    filled = "".join(
        f".chart .{kind} {{ fill: var(--{kind}); stroke: var(--{kind}); }} "
        f".chart .whisker.{kind} {{ stroke: var(--{kind}); }} "
        for kind in KINDS
        if kind != "plain"
    )
    lines = "".join(
        f".chart .series-{number} {{ stroke: var(--series-{number}); }} "
        f".chart .dot.series-{number}, .chart .name.series-{number} {{ fill: var(--series-{number}); }} "
        for number in range(1, SERIES + 1)
    )
    return filled + lines


CHART_RULES = (
    ".chart { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; "
    "font-size: 13px; font-variant-numeric: tabular-nums; } "
    ".chart text { fill: var(--muted); stroke: none; } "
    ".chart .title { fill: var(--ink); font-weight: 600; } .chart .large { font-size: 15px; } "
    ".chart .name { fill: var(--ink); paint-order: stroke; stroke: var(--surface); stroke-width: 3px; "
    "stroke-linejoin: round; } .chart .strong { font-weight: 600; } "
    ".chart line, .chart path, .chart polyline { fill: none; stroke: var(--rule); stroke-width: 1; } "
    ".chart .axis { stroke: var(--muted); } .chart .leader { stroke: var(--behind); stroke-width: .75; } "
    ".chart .plain { fill: var(--series-1); stroke: var(--series-1); } .chart .whisker { stroke-opacity: .45; } "
    + _kind_rules()
    + ".chart .mark { stroke-width: 1.5; } .chart .hollow { fill: var(--surface); } .chart .ring { fill: none; } "
    ".chart .frontier { fill: none; stroke: var(--best); stroke-width: 1.5; stroke-opacity: .55; } "
    ".chart .curve { fill: none; stroke-width: 1.75; stroke-linejoin: round; } "
    ".chart .context { stroke: var(--behind); stroke-opacity: .45; stroke-width: 1; } "
    ".chart .dark { stroke: var(--reference); } .chart .dot.dark { fill: var(--reference); } "
    ".chart .level { stroke: var(--reference); stroke-dasharray: 5 4; } "
    ".chart .bar { fill: var(--series-1); stroke: none; } .chart .ground { fill: var(--surface); stroke: none; } "
    ".chart text.name { stroke: var(--surface); }"
)
"""How the parts of a chart look, in a page and in a file."""

FILE_STYLE = f"{_file_variables()} {CHART_RULES}"
"""The style sheet of an SVG file."""
