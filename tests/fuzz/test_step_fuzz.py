"""TrainStep's engine against the composed step and plain PyTorch: a few random examples at each run of the tests.

FASTGAN_FUZZ_EXAMPLES says how many; run.py runs for longer, and repeats what fails here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REQUIRED, unavailable_reason

TESTS = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("FASTGAN_FUZZ_EXAMPLES", "20"))


@pytest.mark.deep
@pytest.mark.parametrize(("backend", "share"), [("auto", 2), ("cpu", 10), ("simt", 10)])
def test_step_fuzz(backend: str, share: int) -> None:
    """In a process of its own, which a crash may take with it; always the same examples.

    Fewer of them on `cpu`, whose kernels and engine are those of `auto`, and on the host model, which takes its time.
    """
    name = "cpu" if backend == "auto" else backend
    if (reason := unavailable_reason(name)) and name not in REQUIRED:
        pytest.skip(reason)
    command = [sys.executable, "-m", "fuzz.run", "--same", "--backends", backend]
    command += ["--examples", str(max(1, EXAMPLES // share)), "--reduce", "20"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
