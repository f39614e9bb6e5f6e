"""Pictures of a report for README: `python docs/picture.py STUDY/report.html docs/compare.png`.

Writes `docs/compare-light.png` and `docs/compare-dark.png`: what to choose, and score against trained parameters, as
sharp as `LARGEST` allows. Needs playwright (in the extra `test`), Pillow and Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

COLOURS = 128
"""Of a picture: what a page of text and marks needs; a third of the bytes of all."""

LARGEST = 200_000
"""Bytes of a picture."""

_SIZE = {"width": 1180, "height": 900}
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_SHARPNESS = (2.0, 1.5, 1.25, 1.0)
_SHOWN = "h1, .facts, .first, #score-by-parameters"
_HIDE_THE_REST = f"""
for (const part of document.querySelectorAll("main > *, figure details, .top, footer"))
  part.hidden = !part.matches("{_SHOWN}");
"""


def main(report: Path, picture: Path) -> None:
    """Write the two pictures of a report's page."""
    from playwright.sync_api import sync_playwright

    browser_file = next((found for name in _CHROMIUM if (found := shutil.which(name))), None)
    if browser_file is None:
        sys.exit("there is no Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for sharpness in _SHARPNESS:
                page = browser.new_page(viewport=_SIZE, color_scheme=scheme, device_scale_factor=sharpness)
                page.goto(report.resolve().as_uri())
                page.evaluate(_HIDE_THE_REST)
                png = fewer_colours(page.locator(".frame").screenshot())
                page.close()
                if len(png) <= LARGEST:
                    break
            file = picture.with_name(f"{picture.stem}-{scheme}{picture.suffix}")
            file.write_bytes(png)
            print(f"wrote {file}: {len(png):,} bytes")
        browser.close()


def fewer_colours(png: bytes) -> bytes:
    """Return a picture with at most `COLOURS` colours."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(out, format="PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/picture.py REPORT.html PICTURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
