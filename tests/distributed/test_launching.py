"""The launcher of several processes: what it passes on, whom it ends, and what it says.

Small programs stand for `peft`; they use the same listener.
"""

from __future__ import annotations

import os
import socket
import sys

import pytest
import torch

from peftcli import stop_signals
from peftcli.cli.app import main
from peftcli.distributed.devices import check_devices
from peftcli.distributed.launch import launcher_line
from peftcli.distributed.launch.schedulers import first_host, torch_variables
from peftcli.distributed.launching import is_launched, is_main_process, launch
from peftcli.errors import Stopped, UserError
from peftcli.training.run import train
from tests.recipes import CtrlC

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

end, code = sys.exit, 0
try:
    with interrupted_by_signals():
        worker.listen()
        with stop_on_signal() as stop:
{body}
except SystemExit as error:
    code = error.code
except KeyboardInterrupt as error:
    code = PEER_LOST if worker.is_consequence(error) else 130
    if code == 130:
        say(f"interrupted {{rank}}")
worker.leave(code)
sys.exit(code)
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


@pytest.mark.parametrize("heard", ["while it listens", "before it listens"])
def test_a_process_that_is_ended_before_the_launchers_word_comes_waits_for_it(outcome, heard: str) -> None:
    """A busy machine may bring torch's signal seconds before the launcher's word, and at any moment of the start."""
    code, said = outcome(f"""
if rank == 1:
    select.select([], [], [], 1.5)
    os.kill(os.getpid(), signal.SIGKILL)
if "{heard}" == "before it listens":
    worker = LaunchedWorker.of_environment()
raise KeyboardInterrupt
""")
    assert code == 2
    assert "rank 1, of 2" in said


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
wait_for(lambda: stop.requested)
end(130)
""")
    assert (code, said) == (130, "stopped\n")


def test_a_process_that_hears_nothing_is_killed_when_another_has_failed(
    outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_line, "KILL_SECONDS", 0.2)  # in the launcher
    code, said = outcome("""
if rank == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
say("error: no such column")
end(2)
""")
    assert code == 2
    assert said == "error: no such column\n    said the process of rank 1, of 2,\n"


def test_after_a_crash_the_processes_start_again_but_not_after_wrong_input(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import os, signal, sys; {}"
    crash = program.format("os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else signal.pause()")
    wrong = program.format("print('error: no such column', file=sys.stderr); sys.exit(2)")
    good = program.format("print('went on') if os.environ['RANK'] == '0' else None")
    python = [sys.executable, "-c"]
    assert launch([*python, crash], 2, restarts=2, again=[*python, good]) == 0
    printed = capfd.readouterr()
    assert "SIGKILL" in printed.err
    assert "started again (1 of 2)" in printed.err
    assert printed.out == "went on\n"
    assert launch([*python, crash], 2, restarts=1, again=[*python, wrong]) == 2
    assert launch([*python, wrong], 2, restarts=1, again=[*python, good]) == 2
    assert "started again" not in capfd.readouterr().err.partition("no such column")[2]


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


def test_a_mistake_that_all_see_is_said_once_also_if_the_first_does_not_come_to_its_end(outcome) -> None:
    code, said = outcome("""
if rank == 0:
    import atexit
    atexit.register(lambda: wait_for(lambda: False))  # libraries may hold up the interpreter's end
else:
    wait_for(lambda: stop.requested)
say("a mistake")
end(2)
""")
    assert (code, said) == (2, "a mistake\n")


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


NAMES = {
    "mpirun": {"RANK": "OMPI_COMM_WORLD_RANK", "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
               "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE", "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE"},
    "srun": {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID",
             "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE": "SLURM_STEP_TASKS_PER_NODE"},
}  # fmt: skip
JOINED = """
import os, signal, sys
for name, theirs in {names}.items():
    os.environ[theirs] = os.environ.pop(name)
for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
    del os.environ[name]
os.environ["SLURM_JOB_ID"] = "{job}"
import torch
from peftcli.distributed.launching import is_main_process
from peftcli.distributed.launch import schedulers
from peftcli.distributed.processes import World
from peftcli.errors import PeerLost
schedulers.MPI_PORT = {port}  # the usual one may belong to another test
before = dict(os.environ)
world = World(torch.device("cpu"))
assert (world.size, world.is_main) == (2, is_main_process())
assert dict(os.environ) == before
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's word may come before the loss is noticed
world.wait()
if world.rank == 1:
    os._exit(3)
for lost in (world.wait, lambda: world.any(True), lambda: world.gather(1), lambda: world.broadcast(1)):
    try:
        lost()
    except PeerLost as error:
        assert "look for its own message" in str(error)
    else:
        sys.exit("no error")
print("lost", file=sys.stderr, flush=True)
os._exit(75)  # gloo may abort while the interpreter ends without its peer
"""


@pytest.mark.parametrize("launcher", NAMES)
def test_a_process_that_another_leaves_says_so_and_the_environment_stays(capfd, launcher: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    program = JOINED.format(names=NAMES[launcher], job=os.getpid(), port=port)
    assert launch([sys.executable, "-c", program], 2) == 2
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


SRUN = {"SLURM_STEP_NUM_TASKS": "9", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),3", "SLURM_STEP_NODELIST": "gpu[03-05,9]-ib,login1",
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}  # fmt: skip


def test_slurm_and_mpi_speak_torchs_language() -> None:
    spoken = torch_variables(SRUN)
    assert 61440 <= int(spoken.pop("MASTER_PORT")) < 65536
    assert spoken == {
        "RANK": "5",
        "WORLD_SIZE": "9",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu03-ib",
    }
    assert torch_variables({**SRUN, "SLURM_NODEID": "3"})["LOCAL_WORLD_SIZE"] == "3"
    assert torch_variables(SRUN) == torch_variables(SRUN | {"SLURM_STEP_ID": "0"})
    given = torch_variables({**SRUN, "MASTER_ADDR": "first", "MASTER_PORT": "1"})
    assert not given.keys() & {"MASTER_ADDR", "MASTER_PORT"}
    batch_script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "4711"}
    assert torch_variables(batch_script) == {}
    assert torch_variables({**SRUN, "WORLD_SIZE": "2", "RANK": "1"}) == {}  # srun torchrun
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UserError, match="MASTER_ADDR"):
        torch_variables(mpi)
    assert torch_variables({**mpi, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("machines", ["gpu03", "gpu03,gpu04", "gpu[03-05]", "gpu[03,7]", "gpu03,login[1-2]"])
def test_the_first_machine_of_slurms_list(machines: str) -> None:
    assert first_host(machines) == "gpu03"


def test_more_processes_than_cuda_devices_are_refused() -> None:
    found = torch.cuda.device_count()
    check_devices(torch.device("cpu"), 64)
    check_devices(torch.device("cuda"), found)
    with pytest.raises(UserError, match=rf"{found + 1} processes on this machine, and it has {found} CUDA device"):
        check_devices(torch.device("cuda"), found + 1)


def test_processes_that_torchrun_starts_again_go_on_with_the_run(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(training__max_steps=2)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(1))
    with pytest.raises(SystemExit, match="2"):
        main(["train", loaded.path, "--quiet"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(SystemExit, match="0"):
        main(["train", loaded.path, "--quiet"])


def test_restarts_never_go_on_with_the_run_that_was_to_be_replaced(recipe, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", recipe().path, "--num-processes", "2", "--max-restarts", "1", "--overwrite"])
    assert "--max-restarts" in capfd.readouterr().err
