"""Several processes of torch.distributed: what N ranks with a batch of B do is what one does with N B."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import process_checks
import pytest
import torch
import warm
from extent import extent

from fastgan.data import Dataset
from fastgan.processes import Processes
from fastgan.training.batches import Batches
from fastgan.training.checkpoint import complete_checkpoints, load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.job import Job

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-9  # in float64, of what is trained and of the statistics
# A run of a second or so between two checkpoints.
# At constant rates: a run that resumes over more steps would else follow another schedule.
RUN = (
    "ring8 --g-hidden 16 --d-hidden 16 --batch-size 64 --lr-schedule constant "
    "--log-every 50 --sample-every 100000 --checkpoint-every 50"
)
CASES = ("default", "r1_r2_pac", "gp_clip", "classes", "batch_norm", "batch_norm_r1", "batch_norm_pac_gp")
# Of four processes, each on half a core: what their number matters to.
OF_FOUR = (
    *("r1_r2_pac True", "classes True", "batch_norm_pac_gp True", "gp_clip False", "discriminator True"),
    *("bits True 0", "bits True 1", "bits False 1", "refused", "one_composed", "data_parallel"),
)
FEW = ("r1_r2_pac True", "gp_clip True", "batch_norm_r1 False", "bits True 0", "refused")


def environment() -> dict[str, str]:
    """Of a child: this checkout, one thread."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_checks(folder: Path, size: int, names: tuple[str, ...] = (), shares: bool = True) -> dict[str, Any]:
    """What process_checks.py finds in so many processes, which share memory or do not, by the name of the check."""
    command = [process_checks.__file__, str(size), str(folder / "store"), *names]
    settings = {**environment(), "SHARES_MEMORY": str(int(shares))}
    done = warm.run(command, folder, settings, ("torch._dynamo",), timeout=500)  # which each optimizer imports
    assert done.returncode == 0, done.stderr
    return {name: found for name, _, found in map(json.loads, done.stdout.splitlines())}


def assert_as_expected(found: dict[str, Any], shares: bool = False) -> None:
    """Of whatever checks have run."""
    for name, value in found.items():
        kind, _, engine = name.partition(" ")
        if kind in CASES or kind == "discriminator":
            parameters, statistics, plan = value
            assert parameters < TOLERANCE, name
            assert statistics < TOLERANCE, name
            is_native = engine == "True" and not kind.startswith("batch_norm")
            assert ("one native call" in plan) == is_native, (name, plan)
            assert ("which share memory" in plan) == shares, (name, plan)
        elif kind == "bits":
            assert value[0] > 1, "the ranks drew the same noise"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A group of this process alone, which exchanges with itself what several would."""
    limit = datetime.timedelta(seconds=60)
    init = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1, timeout=limit)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("case", ["r1_r2_pac", "classes", "batch_norm"])
def test_a_group_of_one_takes_the_same_steps(
    alone: Any, case: str, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "part_bytes", process_checks.PART_BYTES)
    assert_as_expected({f"{case} {engine}": process_checks.as_one(case, engine)})


def test_gradients_are_sent_as_backward_delivers_them(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last layers are on their way while those before them are not computed yet."""
    happened: list[tuple[str, int]] = []
    begin_sum = Processes.begin_sum

    def watched(processes: Processes, values: torch.Tensor) -> Callable[[], None]:
        first = values.storage_offset()
        before = values.as_strided((first,), (1,), 0)
        # Of the first step of each network: what is not computed yet is still as it was made.
        assert values.count_nonzero() > 0
        assert before.count_nonzero() == 0
        wait = begin_sum(processes, values)
        happened.append(("begins", first))

        def waits() -> None:
            wait()
            happened.append(("is there", first))

        return waits

    monkeypatch.setattr(Processes, "begin_sum", watched)
    monkeypatch.setattr(Processes, "part_bytes", process_checks.PART_BYTES)
    step = process_checks.train_step({}, process_group=alone)
    assert "one native call" in step.plan
    step.step(torch.randn(process_checks.BATCH, process_checks.DATA, dtype=torch.float64))
    of_d = [("begins", 40), ("begins", 0), ("is there", 40), ("is there", 0)]  # 4 inputs to 8, and these to 1
    of_g = [("begins", 32), ("begins", 0), ("is there", 32), ("is there", 0)]
    assert happened == of_d + of_g


def test_what_a_group_refuses(alone: Any) -> None:
    _, _, group, copied = process_checks.differ()
    assert group == "TypeError: process_group must be a torch.distributed.ProcessGroup, not str"
    assert "cannot be copied or pickled" in copied
    with pytest.raises(TypeError, match="sync_batch_norm must be True or False, not 1"):
        process_checks.train_step({}, process_group=alone, sync_batch_norm=1)


@pytest.mark.deep
def test_ranks_follow_one_process(tmp_path: Path) -> None:
    found = run_checks(tmp_path, 2, FEW, shares=False)
    assert tuple(found) == FEW
    assert_as_expected(found)
    (others, own), batches = found["refused"][:2]
    assert others.startswith("ProcessesError: rank 1 refused its inputs, so no rank was updated: the discriminator's")
    assert own.startswith("RuntimeError: the discriminator's first weight")
    assert batches == "ProcessesError: real's batch must be the same on every rank, but it is from 5 to 6; " + (
        "nothing was updated"
    )


@pytest.mark.deep
def test_steps_of_four(tmp_path: Path) -> None:
    found = run_checks(tmp_path, 4, OF_FOUR)
    assert tuple(found) == OF_FOUR
    assert_as_expected(found, shares=True)
    assert found["one_composed"].endswith("composed, since another process cannot run it as one call")
    assert max(found["data_parallel"]) < TOLERANCE


@pytest.mark.deep
def test_every_kind_of_step(tmp_path: Path) -> None:
    found = run_checks(tmp_path, 2)
    assert_as_expected(found, shares=True)
    assert found["told_of_other_bits"].endswith("generator.2.bias of rank 1 is not that of rank 0")
    networks, options, group, copied = found["differ"]
    assert "generator.0.weight is float64 of shape (8, 3) on rank 0 and float64 of shape (8, 5) on rank 1" in networks
    assert "every rank must have the same r1_gamma, but it is 0.0 on rank 0 and 0.5 on rank 1" in options
    assert group == "TypeError: process_group must be a torch.distributed.ProcessGroup, not str"
    assert "cannot be copied or pickled" in copied
    assert found["one_composed"].endswith("composed, since another process cannot run it as one call")
    assert max(found["data_parallel"]) < TOLERANCE


@pytest.mark.parametrize("d_steps", [1, 2])
def test_processes_share_each_batch(d_steps: int) -> None:
    dataset = Dataset("rows", torch.arange(50.0)[:, None].expand(50, 2).clone())
    cpu = torch.device("cpu")
    whole = Batches(dataset, 12, d_steps, cpu, seed=3)
    shares = [Batches(dataset, 12, d_steps, cpu, seed=3, share=(rank, 3)) for rank in range(3)]
    for _ in range(10):
        expected, _ = whole.next()
        found = torch.cat([share.next()[0] for share in shares], dim=-2)
        assert torch.equal(found, expected)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    config = TrainConfig(batch_size=12, pac=2)
    config.check_processes(3)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 8 where 4 processes share it with pac=2"):
        config.check_processes(4)


class Launched:
    """A `torchrun -m fastgan` and the processes that it has started."""

    def __init__(self, folder: Path, size: int, arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = f"-m torch.distributed.run --nproc-per-node {size} --master-addr 127.0.0.1 --master-port {port}"
        command = [sys.executable, *launcher.split(), "-m", "fastgan", *arguments.split()]
        self.folder, self.size = folder, size
        self.output = (folder / f"output_{port}").open("w+")
        self.launcher = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=self.output, stderr=subprocess.STDOUT
        )

    def ranks(self) -> list[int]:
        """The processes' ids, by rank."""
        found = {}
        for child in Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            rank = next((each[5:] for each in variables if each.startswith(b"RANK=")), None)
            if rank is not None:
                found[int(rank)] = int(child)
        return [found[rank] for rank in range(self.size)]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200.0) -> float:
        """Wait until something is so, and return how long that took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, self.said()
            time.sleep(0.1)
        return time.monotonic() - began

    def said(self) -> str:
        """All that was printed."""
        return Path(self.output.name).read_text()

    def checkpoints(self) -> list[Path]:
        """The run's complete checkpoints."""
        return [path for run in self.folder.glob("runs/*") for path in complete_checkpoints(run / "checkpoints")]


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_rank_that_another_asked_to_stop_tells_of_the_launcher(
    alone: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, whether its own thread has seen it before or not."""
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("fastgan.training.job._PERIOD", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    asked: list[int] = []
    try:
        for looks in (False, True):
            job = Job()
            monkeypatch.setattr(os, "kill", lambda pid, number: asked.append(number))
            monkeypatch.setattr(os, "_exit", asked.append)
            if not looks:
                job._is_over.set()
                job._thread.join()
            job._launcher = -1
            if looks:
                job._thread.join(timeout=0.5)  # it waits for this process to stop, as it asked
            job.end(has_failed=True)
            said = capsys.readouterr().err.splitlines()
            assert said == ["fastgan: the launcher has ended: the processes that it started save a checkpoint and stop"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM]


@pytest.mark.deep
@pytest.mark.parametrize("victim", ["rank 1", "rank 0", "the launcher"])
def test_a_process_that_is_killed_ends_the_run(tmp_path: Path, victim: str) -> None:
    job = Launched(tmp_path, 2, f"train {RUN} --steps 1000000")
    job.wait_for(lambda: len(job.checkpoints()) > 2)
    ranks = job.ranks()
    killed = {"rank 0": ranks[0], "rank 1": ranks[1], "the launcher": job.launcher.pid}[victim]
    os.kill(killed, signal.SIGKILL)
    assert job.wait_for(lambda: all(map(is_gone, ranks)), 60) < 30
    job.launcher.wait(timeout=60)
    said = [line for line in job.said().splitlines() if line.startswith("fastgan: ")]
    assert len(said) == 1, job.said()
    run = next(tmp_path.glob("runs/*"))
    if victim == "the launcher":
        assert said[0] == "fastgan: the launcher has ended: the processes that it started save a checkpoint and stop"
        assert f"Go on with: fastgan resume runs/{run.name}" in job.said()
    else:
        assert said[0].startswith(f"fastgan: {victim} (process {killed} on {socket.gethostname()}) has died, and the")
        assert f"go on with fastgan resume runs/{run.name}" in said[0]
    newest = job.checkpoints()[-1]
    load_checkpoint(newest, {})
    if victim != "rank 1":
        return  # what follows is the same
    step = int(newest.name.removeprefix("step_")) + 20
    for size in extent((1,), full=(3, 1)):  # rank 2 of three had no random state yet
        step += 12
        again = Launched(tmp_path, size, f"resume --steps {step} --extend checkpoint_every=7").launcher
        if size == 3:
            assert again.wait(timeout=300) != 0  # 64 samples are not shared by three
        else:
            assert again.wait(timeout=300) == 0
    four = Launched(tmp_path, 4, f"resume --steps {step + 5}")
    assert four.launcher.wait(timeout=300) == 0, four.said()
    assert complete_checkpoints(run / "checkpoints")[-1].name == f"step_{step + 5}"


@pytest.mark.deep
def test_a_process_that_is_silent_ends_the_run(tmp_path: Path) -> None:
    job = Launched(tmp_path, 2, f"train {RUN} --steps 1000000")
    job.wait_for(lambda: len(job.checkpoints()) > 1)
    first, second = job.ranks()
    os.kill(second, signal.SIGSTOP)
    try:
        assert job.wait_for(lambda: is_gone(first), 60) < 30
    finally:
        os.kill(second, signal.SIGKILL)
    job.launcher.wait(timeout=60)
    expected = f"fastgan: rank 1 (process {second} on {socket.gethostname()}) has not answered for 15 seconds"
    assert expected in job.said()
    load_checkpoint(job.checkpoints()[-1], {})


@pytest.mark.deep
def test_a_run_of_two_processes_resumes_exactly(tmp_path: Path) -> None:
    outcomes = []
    for parts in ((60,), (25, 60)):
        folder = tmp_path / str(len(parts))
        folder.mkdir()
        for i, steps in enumerate(parts):
            job = Launched(folder, 2, f"train {RUN} --steps {steps}" if i == 0 else f"resume --steps {steps}")
            assert job.launcher.wait(timeout=300) == 0, job.said()
        groups, _ = load_checkpoint(job.checkpoints()[-1], {})
        outcomes.append(groups)
    for name, tensors in outcomes[0].items():
        assert tensors.keys() == outcomes[1][name].keys()
        assert all(torch.equal(value, outcomes[1][name][key]) for key, value in tensors.items()), name
    assert "cpu.1" in outcomes[0]["random"]
    assert not torch.equal(outcomes[0]["random"]["cpu"], outcomes[0]["random"]["cpu.1"])


@pytest.mark.deep
def test_processes_stop_together_when_the_launcher_is_asked_to(tmp_path: Path) -> None:
    job = Launched(tmp_path, 2, f"train {RUN} --steps 1000000")
    job.wait_for(lambda: len(job.checkpoints()) > 1)
    ranks = job.ranks()
    job.launcher.send_signal(signal.SIGTERM)
    assert job.wait_for(lambda: all(map(is_gone, ranks)), 60) < 30
    assert "Saved at step" in job.said()
    load_checkpoint(job.checkpoints()[-1], {})
