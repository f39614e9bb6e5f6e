"""The shell of a page: one file with its own style and script, which the browser lets load nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from peftcli.record.charts.palette import CHART_RULES, page_variables
from peftcli.shown_text import escape


def html_page(title: str, sections: Sequence[str], *, kicker: str, made_from: str) -> str:
    """Return a whole page.

    Its Content-Security-Policy names the hashes of the style and the script: nothing else runs, and nothing is loaded.

    Args:
        title: of the window.
        sections: HTML of the page's parts, the heading of first rank included.
        kicker: what kind of page this is.
        made_from: the file from which it was made.
    """
    style, script = page_style(), _script()
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        '<a class="skip" href="#content">Skip to the content</a>\n<div class="frame">',
        f'<header class="top"><span>{escape(kicker)}</span>{_THEME}</header>\n<main id="content">',
        *sections,
        f"</main>\n<footer>Made from {escape(made_from)} by peftcli. It loads nothing from the network.</footer>",
        f"</div>\n<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


_THEME = (
    '<fieldset class="theme"><legend class="hidden">Colours</legend>'
    + "".join(
        f'<label><input type="radio" name="theme" id="theme-{value}" value="{value}"{checked}>{text}</label>'
        for value, text, checked in (("auto", "Auto", " checked"), ("light", "Light", ""), ("dark", "Dark", ""))
    )
    + "</fieldset>"
)


@cache
def page_style() -> str:
    """Return the style sheet of a page with charts."""
    return f":root {{ {page_variables()} }}\n{_resource('page.css')}{CHART_RULES}"


@cache
def _script() -> str:
    return _resource("page.js")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return what a Content-Security-Policy calls a text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
