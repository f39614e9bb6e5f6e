"""Two machines: network namespaces with a cable between them, a cache of prepared rows each, one shared directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.training.run import train

TWO_MACHINES = """
ip link set lo up
unshare -n sleep 300 & second=$!
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
ip link add cable type veth peer name cable netns $second
ip addr add 10.9.0.1/24 dev cable; ip link set cable up
nsenter -t $second -n sh -c "ip link set lo up; ip addr add 10.9.0.2/24 dev cable; ip link set cable up"
export GLOO_SOCKET_IFNAME=cable
PEFTCLI_CACHE=$CACHES/1 nsenter -t $second -n "$@" --node-rank 1 $REST & other=$!
PEFTCLI_CACHE=$CACHES/0 "$@" --node-rank 0 $REST
wait $other
kill $second
"""


def namespaces() -> bool:
    """Whether this system lets the test make network namespaces, and a cable between two of them."""
    tried = "unshare -n sleep 9 & ip link add cable type veth peer name plug netns $! && kill $!"
    try:
        return subprocess.run(["unshare", "-rn", "sh", "-c", tried], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not namespaces(), reason="no network namespaces here")
def test_two_processes_on_each_of_two_machines_equal_one(recipe, tmp_path: Path) -> None:
    options = {"data__cache_dir": None, "data__val_set_size": 5, "training__max_steps": 3, "training__eval_steps": 2}
    four = recipe(name="four", training__per_device_train_batch_size=1, **options)
    one = recipe(name="one", training__per_device_train_batch_size=4, **options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "10.9.0.1", "--master-port", "29511"]
    rest = f"-m peftcli train {four.path} --quiet"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CACHES": str(tmp_path / "caches"), "REST": rest}
    started = ["unshare", "-rn", "bash", "-ec", TWO_MACHINES, "bash", *launcher]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    train(one)
    left, right = (
        [json.loads(line) for line in (Path(run.recipe.output_dir) / "metrics.jsonl").read_text().splitlines()]
        for run in (one, four)
    )
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        for key in ("loss", "eval_loss", "grad_norm", "tokens", "eval_rows"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-4), (key, a["step"])
    for machine in ("0", "1"):  # each prepared its rows, once
        assert len([entry for entry in (tmp_path / "caches" / machine).iterdir() if entry.is_dir()]) == 1
