"""What pyproject.toml cannot say: a wheel carries the repository's recipes, for `peft recipes`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copies recipes/ into the package; an editable installation reads them where they are."""

    def run(self) -> None:
        """Build as usual, then add the recipes."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "peftcli" / "starting" / "recipes"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted((ROOT / "recipes").glob("*.yaml")):
                shutil.copyfile(file, folder / file.name)


setup(cmdclass={"build_py": BuildWithRecipes})
