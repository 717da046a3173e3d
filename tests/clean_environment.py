"""What the suite takes from the environment; the rest of what would change its tests is dropped at import.

Other settings of fastgan's, as a backend that the caller's shell has chosen, would change what is tested, and those of
colour what commands print: conftest.py imports this before fastgan, which reads them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile

CAME_FIRST = "fastgan" not in sys.modules
# The report begins with those that are set.
SETTINGS = (
    "FASTGAN_REQUIRE_BACKENDS",  # cpu,simt: backends whose absence is a failure, not a skip
    "FASTGAN_TESTS",  # full: whole products of parameters, and sizes that one change does not need
    "FASTGAN_TEST_BACKENDS",  # cpu,auto: only tests of these backends
    "FASTGAN_TEST_THREADS",  # torch.set_num_threads
    "FASTGAN_TEST_FLUSH_DENORMAL",  # 1: torch.set_flush_denormal
    "FASTGAN_FUZZ_EXAMPLES",  # of tests/fuzz
    "FASTGAN_ISA",
    "FASTGAN_SIMT_DEVICE",  # 1: the backend `simt` on a device with memory of its own; see simt_backend.py
    "FASTGAN_SIMT_BRANCHES",  # late: the work of a step's branches runs as late as it may
    "FASTGAN_SIMT_RACE",  # 0: there without the race detector
    "FASTGAN_SKIP_SIMT",
)
for name in [name for name in os.environ if name.startswith("FASTGAN_") and name not in SETTINGS]:
    del os.environ[name]
os.environ["FASTGAN_TUNE"] = "0"  # which way is the fastest is measured in the tests of that alone
for name in ("FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "PYTHONWARNINGS", "PYTHONUNBUFFERED"):
    os.environ.pop(name, None)
# Some tests interrupt processes. Those that a shell starts in the background ignore that, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What the suite finds out about this device is not the user's. The workers of xdist share the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fastgan-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
