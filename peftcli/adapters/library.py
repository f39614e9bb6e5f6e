"""What this project needs from another adapter library: recognising, reading and writing its files.

Each library is one folder of this room with one `Library`, and one line in `library_table.py`. No torch here or at the
top of a library's own module: `peft export --help` lists the libraries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from peftcli.adapters.base_shape import BaseName
    from peftcli.adapters.format import AdapterMeta, SavedAdapter
    from peftcli.adapters.model_card import Use
    from peftcli.recipe.method_params import MethodParams

PLAIN_LORA = "lora"
"""What `peft export` calls one low-rank pair at each matrix and nothing else: HF peft's LORA, which servers read."""


@dataclass(frozen=True)
class RunFiles:
    """A run's adapter in a library's layout.

    Args:
        config: adapter_config.json.
        tensors: adapter_model.safetensors.
        use: how the library uses them, for the model card.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    use: Use


class RunLayout(ABC):
    """How a run keeps its adapter in a library's files, so that the library loads the run as it is.

    Attributes:
        name: what peftcli.json calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def files(self, params: MethodParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> RunFiles | None:
        """Return a run's adapter in this layout, or None if the library cannot hold it; `state` reads it back."""

    @abstractmethod
    def state(
        self, directory: Path, tensors: Mapping[str, Tensor], params: MethodParams, meta: AdapterMeta
    ) -> dict[str, Tensor]:
        """Return the tensors of `files` by our keys.

        Args:
            directory: of the run's adapter.
            tensors: as they are in its file.
            params: of the method.
            meta: the adapter's record.

        Raises:
            UserError: this version does not know the method's layout.
        """


class Library(ABC):
    """An adapter library; a subclass implements the abstract methods and overrides the others where they apply.

    Attributes:
        name: as `peft export --to` takes it.
        title: its name in sentences.
        files: the words for its files in the help of `--to`.
        lacks: the reason why adapters of methods outside `methods()` cannot be exported.
        instead: what `peft export --as` offers for it: a method's name, and the help.
        run_layout: how a run keeps its adapter in the library's files; None where no run does.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[str]
    lacks: ClassVar[str]
    instead: ClassVar[Mapping[str, str]] = {}
    run_layout: ClassVar[RunLayout | None] = None

    @abstractmethod
    def methods(self) -> Collection[str]:
        """Return the methods whose adapters it can hold."""

    @abstractmethod
    def recognises(self, directory: Path) -> bool:
        """Tell whether a directory holds an adapter that this library saved."""

    @abstractmethod
    def base_of(self, directory: Path) -> BaseName:
        """Return the base model that the library's files name."""

    @abstractmethod
    def read(self, directory: Path, base: BaseName | None) -> SavedAdapter:
        """Read what the library saved.

        Args:
            directory: one that it `recognises`.
            base: the base model, of which only the config is read; None where it may not be read.

        Returns:
            The adapter; its record has a `family` where it was checked against the base.

        Raises:
            UserError: a kind or an option that has no equal here, missing or foreign tensors, or a base that is needed
                and not given, or does not fit.
        """

    @abstractmethod
    def write(
        self, saved: SavedAdapter, source: Path, output: Path, *, base: str | None, instead: str | None
    ) -> tuple[str, ...]:
        """Write an adapter of one of its `methods()` for the library.

        Args:
            saved: the adapter.
            source: its directory, for messages.
            output: an empty directory.
            base: where the base model lies now; None where the adapter says.
            instead: one of `self.instead`: the method as which it is written.

        Returns:
            Notes for the user.

        Raises:
            UserError: the library cannot hold these parameters or tensors; says which, and what to do instead.
        """


def other_use(params: MethodParams) -> str:
    """Return what a user can do with an adapter that cannot be exported as it is."""
    from peftcli.protocol.registry import registry

    if registry.method(params.name).why_not_mergeable(params) is None:
        return "fold it into the base with peft merge, which any library loads"
    return "use it with peft predict, which reads the run as it is"
