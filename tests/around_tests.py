"""What pytest does around each test, at a smaller price: of the suite's thousands of tests most take milliseconds."""

from __future__ import annotations

import faulthandler
import math
import time

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from _pytest.runner import runtestprotocol

HANGS = 600.0  # seconds after which it is said where a test is
RENEWED = 60.0  # seconds after which the clock for that is set back

_since = -math.inf


def watch(config: pytest.Config) -> None:
    """Have it said where a test hangs, 9 to 10 minutes after its begin.

    What pytest's `faulthandler_timeout` does starts a thread for each test and waits for its end, which takes as long
    as a short test.
    """
    global _since
    if time.monotonic() - _since > RENEWED:
        faulthandler.dump_traceback_later(HANGS, file=config.stash[fault_handler_stderr_fd_key])
        _since = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """In a worker of xdist, tell the controller of a test's call, and of its setup and teardown what matters.

    To send all three, and to read and count them, takes a millisecond a test.
    """
    watch(item.config)
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed or report.duration > 0.1:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    faulthandler.cancel_dump_traceback_later()
