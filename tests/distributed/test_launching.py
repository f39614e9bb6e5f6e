"""The launcher of several processes: what it passes on, whom it ends, and what it says.

Small programs stand for `peft`; they use the same listener.
"""

from __future__ import annotations

import os
import sys

import pytest

from peftcli import stop_signals
from peftcli.distributed.launching import is_launched, is_main_process, launch
from peftcli.errors import UserError

# torch's launcher leaves the files that it opens for the processes to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PROGRAM = """
import os, select, signal, sys
from peftcli.distributed import launched_worker
from peftcli.distributed.launched_worker import PEER_LOST, LaunchedWorker
from peftcli.stop_signals import interrupted_by_signals, stop_on_signal

def say(text):
    print(text, file=sys.stderr, flush=True)

def wait_for(happened):
    while not happened():
        select.select([], [], [], 0.01)

def ask_launcher(number=signal.SIGTERM):
    os.kill(os.getppid(), number)

rank = int(os.environ["RANK"])
worker = LaunchedWorker.of_environment()

def end(code):
    worker.leave(code)
    sys.exit(code)

try:
    with interrupted_by_signals():
        worker.listen()
        with stop_on_signal() as stop:
{body}
except KeyboardInterrupt as error:
    if worker.is_consequence(error):
        end(PEER_LOST)
    say(f"interrupted {{rank}}")
    end(130)
"""


@pytest.fixture
def outcome(capfd: pytest.CaptureFixture[str]):
    """Run a program in two processes; return the exit code and standard error."""

    def run(body: str) -> tuple[int, str]:
        indented = "".join(f"            {line}\n" for line in body.strip().splitlines())
        code = launch([sys.executable, "-c", PROGRAM.format(body=indented)], 2)
        return code, capfd.readouterr().err

    return run


def test_the_words_of_the_one_that_failed_are_shown_and_the_other_is_ended(outcome) -> None:
    code, said = outcome("""
if rank == 1:
    say("error: this device has fallen off the bus")
    end(2)
wait_for(lambda: stop.requested)  # the launcher has seen that the other one failed
end(PEER_LOST)
""")
    assert code == 2
    assert said.count("fallen off the bus") == 1
    assert "rank 1, of 2" in said


def test_the_first_says_its_own_error_itself(outcome) -> None:
    code, said = outcome("""
if rank == 0:
    say("error: no such column")
    end(2)
wait_for(lambda: stop.requested)
say("error: lost the other one")
end(PEER_LOST)
""")
    assert (code, said) == (2, "error: no such column\n")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_was_killed_is_named_with_a_remedy(outcome, killed: int) -> None:
    code, said = outcome(f"""
if rank == {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
launched_worker.GRACE_SECONDS = 0.1
wait_for(lambda: False)  # it hears that it is to end, and never looks
""")
    assert code == 2
    for words in (f"rank {killed}, of 2", "SIGKILL", "memory", "--resume"):
        assert words in said


def test_arguments_arrive_as_they_are_and_the_environment_stays(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's launcher substitutes in arguments, and sets variables."""
    before, said = dict(os.environ), "a$$b ${local_rank} $HOME"
    assert launch([sys.executable, "-c", "import sys; print(sys.argv[1])", said], 2) == 0
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == (f"{said}\n", "")  # of the first process alone
    assert dict(os.environ) == before


def test_a_signal_to_a_process_that_has_said_how_it_ends_changes_nothing(outcome) -> None:
    code, said = outcome("""
if rank == 0:
    say("stopped")
    worker.leave(130)
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(130)
end(130)
""")
    assert (code, said) == (130, "stopped\n")


def test_signals_to_everybody_are_one_request(outcome) -> None:
    """The launcher hears it last, as if it had been busy, and passes it on to processes that know it already."""
    code, said = outcome("""
os.kill(os.getpid(), signal.SIGTERM)
assert stop.requested
if rank == 0:
    ask_launcher(), ask_launcher(signal.SIGINT)
wait_for(lambda: stop._launched)  # the launcher's word has come
os.kill(os.getpid(), signal.SIGTERM)
say(f"saved {rank}")
end(130)
""")
    assert (code, said) == (130, "saved 0\n")


def test_a_second_request_ends_all_at_once(outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "SAME_REQUEST", 0.0)  # in the launcher, which judges
    code, said = outcome("""
if rank == 0:
    ask_launcher()
wait_for(lambda: stop.requested)
if rank == 0:
    ask_launcher()
wait_for(lambda: False)
""")
    assert (code, said) == (130, "interrupted 0\n")


def test_processes_that_were_asked_before_they_listened_count_as_stopped(outcome) -> None:
    code, said = outcome("""
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
""")
    assert code == 130
    assert said.startswith("stopped")


JOINED = """
import os, sys
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # as mpirun says it
    os.environ[f"OMPI_COMM_{name if name.startswith('WORLD') else 'WORLD_' + name}"] = os.environ.pop(name)
os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"] = os.environ.pop("OMPI_COMM_WORLD_LOCAL_WORLD_SIZE")
import torch
from peftcli.distributed.launching import is_main_process
from peftcli.distributed.processes import World
from peftcli.errors import PeerLost
before = dict(os.environ)
world = World(torch.device("cpu"))
assert (world.size, world.is_main) == (2, is_main_process())
assert dict(os.environ) == before
world.wait()
if world.rank == 1:
    sys.exit(3)
for lost in (world.wait, lambda: world.any(True), lambda: world.gather(1), lambda: world.broadcast(1)):
    try:
        lost()
    except PeerLost as error:
        assert "look for its own message" in str(error)
    else:
        sys.exit("no error")
print("lost", file=sys.stderr)
sys.exit(75)
"""


def test_a_process_that_another_leaves_says_so_and_the_environment_stays(capfd) -> None:
    assert launch([sys.executable, "-c", JOINED], 2) == 2
    said = capfd.readouterr().err
    assert "lost\n" in said
    assert "exit code 3" in said


def test_odd_variables_of_a_launcher_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith(("_SIZE", "RANK"))]:
        monkeypatch.delenv(name)
    assert not is_launched()
    assert is_main_process()
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "2")
    assert is_launched()
    assert not is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        is_launched()
