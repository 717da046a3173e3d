"""The bindings and the whole-step engine on the host model, with device memory that the host may not touch.

Each test starts a process that has the made-up device of simt_backend.py: there a host that reads device memory, and a
kernel that reads the host's, end it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import simt_backend
from extent import extent

TESTS = Path(__file__).resolve().parent


def on_the_device(*arguments: str, finds_races: bool = True) -> subprocess.CompletedProcess[str]:
    if reason := simt_backend.unavailable_reason():
        if "simt" in os.environ.get("FASTGAN_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    simt_backend.build.build("device")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "FASTGAN_"))}
    environment.update(
        FASTGAN_SIMT_DEVICE="1", FASTGAN_TEST_BACKENDS="simt", OMP_NUM_THREADS="1", PYTHONPATH=str(TESTS)
    )
    environment["FASTGAN_SIMT_RACE"] = str(int(finds_races))
    environment["FASTGAN_TESTS"] = extent("", full="full")
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=550
    )


def run_cases(file: str, finds_races: bool = True) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not deep", str(TESTS / f"{file}.py")]
    done = on_the_device(*words, finds_races=finds_races)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    assert re.search(r"\b\d+ passed", done.stdout)


# What must not be, and what is said of it.
TOUCHED = r"simt: the host touches device memory: byte 0 of an allocation of 256\."
KERNEL = r"simt: kernel logits_loss_sum, block \(0,0,0\), thread 0:"
PLANTED = {
    "a binding that reads a tensor": ("module.read_on_the_host(torch.ones(3))", TOUCHED),
    "a read of a step count as if it were on the host": (
        "step = torch.zeros((), dtype=torch.float64); ctypes.c_double.from_address(step.data_ptr()).value",
        TOUCHED,
    ),
    "a kernel that is given a tensor of the host": (
        "module.sum_of_losses(torch.ones(3, device='cpu'), torch.zeros(()))",
        rf"{KERNEL} reads the host's memory, 4 bytes \(scalar\.h:\d+ in ",
    ),
    "a kernel whose result goes to a tensor of the host": (
        "module.sum_of_losses(torch.ones(3), torch.zeros((), device='cpu'))",
        rf"{KERNEL} writes the host's memory, 4 bytes \(scalar\.h:\d+ in ",
    ),
}
# And what may be: the kernel on tensors of the device alone, and a copy to the host that is then read.
RIGHT = (
    "loss = torch.zeros(()); module.sum_of_losses(torch.ones(3), loss); "
    "assert abs(loss.cpu().item() - 0.9397851) < 1e-6"
)
# Each statement in a process of its own, made by fork: to import torch again takes seconds.
EACH = """
import ctypes, json, os, sys, tempfile, traceback
import torch, simt_backend
module = simt_backend.module()
results = []
for statement in sys.argv[1:]:
    with tempfile.TemporaryFile() as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 2)
            try:
                with simt_backend.use_simt():
                    exec(statement)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        results.append([status, said.read().decode()])
print(json.dumps(results))
"""


def test_what_must_not_be_is_seen() -> None:
    statements = [statement for statement, _ in PLANTED.values()]
    done = on_the_device("-c", EACH, *statements, RIGHT)
    assert done.returncode == 0, done.stderr[-4000:]
    *wrong, right = json.loads(done.stdout)
    for (what, (_, sentence)), (status, said) in zip(PLANTED.items(), wrong, strict=True):
        assert re.search(sentence, said), (what, said)
        assert status == (simt_backend.DEVICE_TOUCHED if sentence == TOUCHED else 1), what
    assert right == [0, ""]


@pytest.mark.deep
def test_the_whole_step() -> None:
    run_cases("on_device")


@pytest.mark.deep
def test_every_option_of_adam() -> None:
    """In the full extent with the race detector too, which takes half of the time and has test_the_whole_step."""
    run_cases("test_engine_adam", finds_races=extent(False, full=True))
