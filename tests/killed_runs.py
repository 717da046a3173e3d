"""Training processes that are killed: forks of one warm process, because each start of torch alone takes seconds.

    python tests/killed_runs.py     reads orders from standard input, one JSON object a line, and answers each

An order is {"options": {...}, "runs": folder} for a run from its beginning, or {"resume": folder}; with "seconds" or
"change", the process is killed after so many seconds or at the so-manyth change that it makes in a file system. The
answer is {"code": exit code, -9 where it was killed, "changes": how many there were, "seconds": that it took}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Of sys.addaudithook: what changes a file system. Of `open`, the second argument tells.
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


class Killable:
    """The warm process, from the side of a test; each order runs in a child of it."""

    def __init__(self, folder: Path) -> None:
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def order(self, **order: Any) -> dict[str, Any]:
        """Carry out an order, and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=100)


def carry_out(order: dict[str, Any], report: int) -> None:
    """In the child: train, and be killed where the order says so."""
    from fastgan.trainer import Trainer

    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES:
            changes += 1
            if changes == order.get("change"):
                os.kill(os.getpid(), signal.SIGKILL)

    if "resume" in order:
        trainer = Trainer.resume(order["resume"])
    else:
        trainer = Trainer(runs=order["runs"], **order["options"])
    sys.addaudithook(count)
    if "seconds" in order:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process as SIGKILL does, without a handler
        signal.setitimer(signal.ITIMER_REAL, order["seconds"])
    trainer.train(quiet=True)
    os.write(report, json.dumps({"changes": changes}).encode())


def main() -> None:
    """Carry out orders until there are no more."""
    import torch

    from fastgan.trainer import Trainer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:  # what each child would have to load
        Trainer("ring8", steps=1, runs=runs).train(quiet=True)
    for line in sys.stdin:
        order = json.loads(line)
        reads, writes = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                carry_out(order, writes)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writes)
        status = os.waitpid(child, 0)[1]
        said = os.read(reads, 1000)
        os.close(reads)
        code = os.waitstatus_to_exitcode(status)
        took = time.monotonic() - began
        answer = {"changes": 0, **(json.loads(said) if said else {}), "code": code, "seconds": took}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
