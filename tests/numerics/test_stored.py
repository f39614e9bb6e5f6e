"""The working tree trains to the losses and the adapters that are stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.numerics.__main__ import with_stored
from tests.numerics.machine import other_facts, this_machine
from tests.numerics.stored import read_stored


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_number_has_moved(tmp_path: Path) -> None:
    if others := other_facts(read_stored().machine, this_machine()):
        pytest.skip("the stored losses are another machine's: " + "; ".join(others))
    assert with_stored(tmp_path, jobs=2) == 0
