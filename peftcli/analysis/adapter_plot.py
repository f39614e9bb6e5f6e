"""Plot an adapter: singular values by role, and the size of the change by role and layer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from peftcli.analysis.module_change import ModuleChange
from peftcli.errors import UserError
from peftcli.record.svg import document, heat_panel, line_panel


def adapter_svg(rows: Sequence[ModuleChange], title: str) -> str:
    """Return the plot as an SVG file.

    Args:
        rows: all places.
        title: of the whole, such as the run's name.

    Raises:
        UserError: nothing is there to draw.
    """
    panels = []
    spectra = _spectra(rows)
    if spectra:
        panels.append(
            line_panel(
                f"{title}: singular values over the largest one",
                spectra,
                "number of the singular value (median over the modules of a role)",
                from_zero=True,
            )
        )
    panels += _heat(rows, title)
    if not panels:
        raise UserError(
            "there is nothing to plot: no low-rank change, and no change of a weight with a known place",
            suggestion="leave --plot out; the table has the norms",
        )
    return document(panels)


def _spectra(rows: Sequence[ModuleChange]) -> dict[str, list[tuple[float, float]]]:
    """Return points by role: the median over the role's modules that have so many singular values."""
    by_role: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        if row.spectrum is not None and row.spectrum.norm > 0:
            values = row.spectrum.values
            scaled = tuple(value / values[0] for value in values)
            by_role.setdefault(row.role or _last_word(row.name), []).append(scaled)
    found = {}
    for role, spectra in by_role.items():
        longest = max(len(each) for each in spectra)
        present = [[each[at] for each in spectra if len(each) > at] for at in range(longest)]
        found[role] = [(float(at + 1), median(values)) for at, values in enumerate(present)]
    return found


def _heat(rows: Sequence[ModuleChange], title: str) -> list[tuple[float, str]]:
    placed = [row for row in rows if row.layer is not None]
    relative = bool(placed) and all(row.relative is not None for row in placed)
    values: dict[tuple[str, str], float] = {}
    for row in placed:
        size = row.relative if relative else row.change
        if size is not None:
            place = (row.role or _last_word(row.name), str(row.layer))
            values[place] = max(size, values.get(place, 0.0))
    if not values:
        return []
    names = list(dict.fromkeys(role for role, _ in values))
    layers = sorted({int(layer) for _, layer in values})
    what = "norm of the change over the weight's" if relative else "Frobenius norm of the change"
    return [heat_panel(f"{title}: {what}", names, [str(layer) for layer in layers], values, "layer")]


def _last_word(name: str) -> str:
    words = [word for word in name.removesuffix(".weight").split(".") if not word.isdigit()]
    return words[-2] + ".bias" if words[-1] == "bias" and len(words) > 1 else words[-1]
