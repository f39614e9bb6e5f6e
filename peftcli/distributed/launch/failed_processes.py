"""What is said when several processes of one run have ended: which failed first, what it said, what to do about it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftcli.distributed.launched_worker import PEER_LOST
from peftcli.errors import Stopped, UserError, VerificationFailed

_STOPPED = Stopped.exit_code
_SAID = (0, 1, UserError.exit_code, VerificationFailed.exit_code, _STOPPED)
"""Exit codes of this program."""
_ASKING = (-signal.SIGINT, -signal.SIGTERM, -1)
"""Exit codes of processes that a request to stop ended before they could listen; -1 is SIGHUP, which Windows lacks."""
_ALARM = -int(getattr(signal, "SIGALRM", 0))  # Windows has none
_LINES = 60
"""Of what a process said, at most so many are shown."""


@dataclass(frozen=True)
class Ending:
    """How one process ended.

    Args:
        code: its exit code; negative where a signal ended it.
        said: what it wrote to standard error; nothing of the first process, whose words are shown at once.
    """

    rank: int
    code: int
    said: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended by itself and not well."""
        return self.code not in (0, _STOPPED, PEER_LOST, *_ASKING)


def endings(codes: Mapping[int, int], left: Sequence[int], said: Mapping[int, str]) -> list[Ending]:
    """Return how the processes ended, the first to fail first.

    Args:
        codes: exit codes by rank.
        left: ranks in the order in which they ended, of those that could be seen to end.
    """
    order = sorted(codes, key=lambda rank: left.index(rank) if rank in left else len(left))
    # the alarm is a process's own: it had to end, and could not
    kinds = {rank: PEER_LOST if code and code == _ALARM else code for rank, code in codes.items()}
    return [Ending(rank, kinds[rank], "\n".join(said.get(rank, "").strip().splitlines()[-_LINES:])) for rank in order]


def crashed(ended: Sequence[Ending]) -> bool:
    """Whether a run ended by what may pass: signals, or errors of this program; not by wrong input, or a full disk."""
    failed = [one for one in ended if one.failed]
    return bool(failed) and all(one.code < 0 or one.code == 1 for one in failed)


def exit_code(ended: Sequence[Ending], *, stopped: bool) -> int:
    """Say what ended a run if its first process did not; return the exit code of all.

    Args:
        stopped: whether the launcher was asked to stop.
    """
    codes = {one.rank: one.code for one in ended}
    # NCCL aborts where it has waited in vain
    failed = sorted((one for one in ended if one.failed), key=lambda one: one.code == -signal.SIGABRT)
    killed_before = any(one.code < 0 for one in failed) and failed[0].rank != 0
    if codes[0] in (0, _STOPPED) or (codes[0] in _SAID and not killed_before):
        return codes[0]  # it has said how the run ended
    if not failed and (stopped or set(codes.values()) & {_STOPPED, *_ASKING}):
        print("stopped; --resume continues from the last checkpoint, if there is one", file=sys.stderr)
        return _STOPPED
    first = (failed or [one for one in ended if one.rank])[0]
    print(_last_words(first, len(ended)), file=sys.stderr)
    return first.code if first.said and first.code in _SAID else UserError.exit_code


def _last_words(ending: Ending, size: int) -> str:
    """Return what a process said that ended by itself, or what a signal did to it."""
    name, said = f"the process of rank {ending.rank}, of {size},", ending.said
    if ending.code >= 0:
        return (
            f"{said}\n    said {name}" if said else f"error: {name} ended with exit code {ending.code} and no message"
        )
    number = -ending.code
    title = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    remedy = "it is a fault in a library or the machine; its output is above"
    if number == getattr(signal, "SIGKILL", 9):
        remedy = (
            "the system does that when memory runs out: lower training.per_device_train_batch_size, set "
            "training.gradient_checkpointing: true, or start fewer processes"
        )
    way_on = "--resume continues from the last checkpoint, if there is one"
    return f"{said}\nerror: {name} was ended by {title}\n    {remedy}\n    {way_on}".lstrip()
