"""Processes of their own for tests that need one, as forks of a warm one: each start of torch alone takes two seconds.

`run` takes what `subprocess.run([sys.executable, ...])` does. What is new in each process is fastgan, and what of its
environment is read when fastgan is imported; torch, numpy and what else is named are there. What must be seen in a
process that imported nothing, as what is missing there, is no matter for this.

    python tests/warm.py MODULE ...     imports them, reads orders from standard input, a line of JSON each, and answers
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What `fastgan train` imports beside fastgan; the first torch.optim.Optimizer imports torch._dynamo.
OF_TRAINING = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "PIL.Image",
    "rich.progress",
    "safetensors.torch",
    "sklearn.datasets",
    "tomlkit",
    "torch._dynamo",
    "typer",
)


def run(
    arguments: list[str], cwd: Path | str, env: Mapping[str, str], modules: tuple[str, ...] = (), timeout: int = 400
) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` does in a folder and an environment, where torch, numpy and the modules are imported.

    Args:
        arguments: `-c` and code, `-m` and a module's name, or a file; then what the program is given.
        cwd: the folder.
        env: the environment; torch has the threads that OMP_NUM_THREADS says.
        modules: what is imported beside.
        timeout: in seconds; a process that takes longer ends with SIGALRM.
    """
    warm = _warm(("torch", "numpy", *modules))
    assert warm.stdin is not None
    assert warm.stdout is not None
    order = {"arguments": list(map(str, arguments)), "cwd": str(cwd), "env": dict(env), "timeout": timeout}
    print(json.dumps(order), file=warm.stdin, flush=True)
    code, out, err = json.loads(warm.stdout.readline())
    return subprocess.CompletedProcess(arguments, code, out, err)


@functools.cache
def _warm(modules: tuple[str, ...]) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FASTGAN_", "PYTHON", "OMP_"))}
    process = subprocess.Popen(
        [sys.executable, __file__, *modules], env=clean, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(process.communicate)
    return process


def serve() -> dict[str, Any] | None:
    """Carry out orders until there are no more; in a child that is to carry out one, the order."""
    answers = os.dup(1)
    for line in iter(sys.stdin.readline, ""):
        order: dict[str, Any] = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.close(answers)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                return order
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode())
        os.write(answers, (json.dumps([code, *said]) + "\n").encode())
    return None


def carry_out(order: dict[str, Any]) -> None:
    """Be the process that is ordered."""
    signal.alarm(order["timeout"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    if said := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(said)  # type: ignore[arg-type]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = order["arguments"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(kind).parent))
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    sys.path.remove(str(Path(__file__).resolve().parent))
    if (ordered := serve()) is not None:
        carry_out(ordered)
