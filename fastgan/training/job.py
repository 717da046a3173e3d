"""The processes that torchrun has started for one run: how they begin, and what ends them.

A process that dies must not leave the others waiting. Each has a thread that, once a second, counts in the store of
torch.distributed that it lives, and looks whether the others and the launcher do. Where a process has died, the others
end with one sentence that names it; where the launcher has, they save a checkpoint and stop.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from fastgan.output import complain

# Seconds between two looks; so many looks without a sign of life are a death, and so many after one that ended itself.
_PERIOD, _PATIENCE, _GRACE = 1.0, 15, 5
# Seconds that the others have to begin, and that an exchange may take: the threads see earlier what is wrong.
_LIMIT = datetime.timedelta(minutes=30)


class Job:
    """One process of several that torchrun has started.

    Attributes:
        rank: which one, from 0.
        size: how many there are.
        how_to_go_on: the end of a sentence about the run's end, once there is a run.
    """

    def __init__(self) -> None:
        """Join the others.

        Raises:
            RuntimeError: they do not answer.
        """
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_LIMIT)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.how_to_go_on: Callable[[], str] = lambda: "nothing was trained yet"
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._store.set_timeout(datetime.timedelta(seconds=10))
        self._of_thread = self._store.clone()
        self._launcher, self._is_over = os.getppid(), threading.Event()
        here = {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname()}
        self._peers: list[dict[str, Any]] = [{}] * self.size
        dist.all_gather_object(self._peers, here)
        self._store.set(self._beat(self.rank), "0")
        dist.barrier()
        self._follows = False  # another process's end
        self._has_told_of_the_launcher = False
        signal.signal(signal.SIGTERM, _end_soon)
        self._thread = threading.Thread(target=self._watch, name="fastgan job", daemon=True)
        self._thread.start()

    @property
    def group(self) -> Any:
        """The process group of all."""
        return dist.group.WORLD

    def end(self, has_failed: bool) -> None:
        """Leave: what the others see of it is no death."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"fastgan/left/{self.rank}", "failed" if has_failed and not self._follows else "done")
        self._is_over.set()
        self._thread.join(timeout=2 * _PERIOD)
        # Another rank may have seen it first, and asked this one to stop before its own thread looked.
        if os.getppid() != self._launcher:
            self._tell_of_the_launcher()
        if not has_failed:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def tell_of_the_dead(self) -> str | None:
        """The sentence about the process that has ended while this one waited for it; None where another tells it."""
        self._follows = True
        for _ in range(int(3 * _GRACE / _PERIOD)):
            for peer in self._peers:
                if peer["rank"] != self.rank and (how := self._has_ended(peer, self._store)):
                    return self._tell(peer, how)
            time.sleep(_PERIOD / 3)
        return self._tell({"rank": -1}, "a process of the run has ended, or does not answer")

    def _tell(self, peer: dict[str, Any], how: str) -> str | None:
        claim = f"{peer['rank']} {how}"
        told = claim
        with contextlib.suppress(RuntimeError):
            key = "fastgan/died"
            told = self._store.compare_set(key, "", f"{claim} told by {self.rank}").decode()
            if not told.endswith(f" told by {self.rank}"):
                return None
        return f"{how}, and the others stop; {self.how_to_go_on()}"

    def _has_ended(self, peer: dict[str, Any], store: Any) -> str:
        """How a process has ended, in words; empty where it has not, or has left as one does in the end."""
        left = ""
        with contextlib.suppress(RuntimeError):
            key = f"fastgan/left/{peer['rank']}"
            left = store.get(key).decode() if store.check([key]) else ""
        named = f"rank {peer['rank']} (process {peer['pid']} on {peer['host']})"
        if left:
            # One that stopped because of another is not the one that is looked for.
            return "" if left == "done" else f"{named} has stopped, for the reason that it gave"
        return f"{named} has died" if peer["host"] == socket.gethostname() and not _is_running(peer["pid"]) else ""

    def _watch(self) -> None:
        """The thread."""
        beats, counts, silent, gone, lost = 0, [""] * self.size, [0] * self.size, 0, 0
        while not self._is_over.wait(_PERIOD):
            if os.getppid() != self._launcher:
                self._leave_orphaned()
                return
            beats += 1
            try:
                self._of_thread.set(self._beat(self.rank), str(beats))
                found = [each.decode() for each in self._of_thread.multi_get([self._beat(r) for r in range(self.size)])]
                lost = 0
            except RuntimeError:  # the store is gone, with the launcher or rank 0
                lost += 1
                found = counts
            for rank, (new, old) in enumerate(zip(found, counts, strict=True)):
                silent[rank] = 0 if new != old or lost else silent[rank] + 1
            counts = found
            others = [peer for peer in self._peers if peer["rank"] != self.rank]
            dead = [peer for peer in others if self._has_ended(peer, self._of_thread)]
            gone = gone + 1 if dead else 0
            if gone > _GRACE:  # the step that waits for it has not noticed
                self._end_now(dead[0], self._has_ended(dead[0], self._of_thread))
            mute = [peer for peer in others if silent[peer["rank"]] > _PATIENCE and not self._has_left(peer)]
            if mute:
                named = f"rank {mute[0]['rank']} (process {mute[0]['pid']} on {mute[0]['host']})"
                self._end_now(mute[0], f"{named} has not answered for {_PATIENCE * _PERIOD:.0f} seconds")
            if lost > _PATIENCE:
                self._end_now(self._peers[0], "the store of the run, with the launcher or rank 0, does not answer")

    def _has_left(self, peer: dict[str, Any]) -> bool:
        with contextlib.suppress(RuntimeError):
            return bool(self._of_thread.check([f"fastgan/left/{peer['rank']}"]))
        return False

    def _end_now(self, peer: dict[str, Any], how: str) -> None:
        """End this process, whose other thread waits for one that will not answer. Nothing of the state is written:
        it may be in the middle of a step."""
        if self._is_over.is_set():
            return
        if sentence := self._tell(peer, how):
            complain(f"fastgan: {sentence}")
        sys.stderr.flush()
        os._exit(1)

    def _leave_orphaned(self) -> None:
        """Without the launcher nobody would end this process: ask for a checkpoint and the end, as SIGTERM does."""
        self._tell_of_the_launcher()
        os.kill(os.getpid(), signal.SIGTERM)
        # Where the step does not come to its end, since another process is gone too.
        if not self._is_over.wait(20 * _PERIOD):
            if self.rank == 0:
                complain(f"fastgan: the launcher and another process have ended; {self.how_to_go_on()}")
            os._exit(1)

    def _tell_of_the_launcher(self) -> None:
        if self.rank == 0 and not self._has_told_of_the_launcher:
            self._has_told_of_the_launcher = True
            complain("fastgan: the launcher has ended: the processes that it started save a checkpoint and stop")

    @staticmethod
    def _beat(rank: int) -> str:
        return f"fastgan/beat/{rank}"


def is_launched() -> bool:
    """Whether torchrun, or what sets its variables, has started this process as one of several."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return False
    return size > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextlib.contextmanager
def launched() -> Iterator[Job | None]:
    """A `with` block around what a process of torchrun does; elsewhere it is given None."""
    if not is_launched():
        yield None
        return
    job = Job()
    has_failed = True
    try:
        yield job
        has_failed = False
    finally:
        job.end(has_failed)


def _end_soon(number: int, frame: FrameType | None) -> None:
    """Where one process has died the launcher ends all, at once: whoever is about to say which one has time to."""
    timer = threading.Timer(2 * _GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _is_running(pid: int) -> bool:
    """Whether a process of this machine exists and has not ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")
    except (OSError, IndexError):
        return True
