"""Where the processes of a run write: the first to this terminal, the others' words are kept for when they fail."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs


class ProcessStreams(LogsSpecs):
    """What torch's launcher asks for when it starts the processes.

    Args:
        errors: a file for what each process but the first writes to standard error. It needs no name in the file
            system, so that nothing is left behind when the launcher is killed.
    """

    def __init__(self, errors: Mapping[int, IO[bytes]]) -> None:
        super().__init__()
        self._errors = errors

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return the paths to open for each process; an empty one is this process's own stream."""
        for variables in envs.values():
            variables["TORCHELASTIC_ERROR_FILE"] = ""
        return LogsDest(
            stdouts={rank: os.devnull if rank else "" for rank in envs},
            stderrs={rank: f"/dev/fd/{self._errors[rank].fileno()}" if rank else "" for rank in envs},
            error_files=dict.fromkeys(envs, os.devnull),
        )

    @property
    def root_log_dir(self) -> str:
        """Where torch's launcher would keep files."""
        return os.devnull
