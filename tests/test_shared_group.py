"""The memory that the processes of one computer share: csrc/cpu/shared_group.h and fastgan/shared_memory.py."""

from __future__ import annotations

import functools
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan import backend, shared_memory

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.above_kernels,
    pytest.mark.skipif(
        backend.module is None or not backend.module.SharedGroup.exists(), reason="this system cannot share memory so"
    ),
]

TOKEN = 2**62 + 1


def group_of(size: int, bytes: int = 4096, patience: float = 60.0) -> list[Any]:
    """A group of which this process is every rank, for a thread each."""
    make = functools.partial(backend.module.SharedGroup, token=TOKEN, size=size, bytes=bytes, patience=patience)
    groups = [make(path="", rank=0)]
    groups += [make(path=groups[0].path, rank=rank) for rank in range(1, size)]
    for group in groups:
        group.watch()
    return groups


def on_each(groups: list[Any], work: Callable[[int, Any], Any]) -> list[Any]:
    """What `work` gives for each rank, all at once."""
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(work, range(len(groups)), groups))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_taken_in_the_order_of_ranks(size: int, dtype: torch.dtype) -> None:
    # Of one element, of a whole place, and of several places and a part of one.
    given = [[torch.randn(n, dtype=dtype) for n in (1, 4096 // dtype.itemsize, 5000)] for _ in range(size)]
    found = [[each.clone() for each in own] for own in given]
    on_each(group_of(size), lambda rank, group: [group.add_up(each) for each in found[rank]])
    for i, expected in enumerate(given[0]):
        for other in given[1:]:
            expected = expected + other[i]
        assert all(torch.equal(own[i], expected) for own in found)


def test_many_meetings_of_threads_that_hurry_and_tarry() -> None:
    """What one reads is of this meeting, whoever comes first: a place is written again only after all have read it."""
    size, turns = 3, 400

    def work(rank: int, group: Any) -> None:
        own = random.Random(rank)
        for turn in range(turns):
            if own.random() < 0.05:
                time.sleep(own.random() * 2e-3)
            if turn % 3 == 0:
                assert group.most([turn * 10 + rank, -turn - rank]) == [turn * 10 + size - 1, -turn]
            else:
                values = torch.full((300,), float(turn * (rank + 1)), dtype=torch.float64)
                group.add_up(values)
                assert (values == turn * 6).all(), turn

    on_each(group_of(size), work)


def test_another_memory_is_refused() -> None:
    first = backend.module.SharedGroup("", TOKEN, 0, 2, 4096, 1.0)
    for path, token, size, bytes in (
        (first.path + "0", TOKEN, 2, 4096),
        (first.path, TOKEN + 1, 2, 4096),
        (first.path, TOKEN, 3, 4096),
        (first.path, TOKEN, 2, 9000),
        ("/dev/null", TOKEN, 2, 4096),
    ):
        with pytest.raises(RuntimeError, match="no memory is shared"):
            backend.module.SharedGroup(path, token, 1, size, bytes, 1.0)
    with pytest.raises(RuntimeError, match="a process of the group cannot be watched"):
        first.watch()  # the other has not opened it
    with pytest.raises(RuntimeError, match="are not watched"):
        first.most([1])


def test_values_that_cannot_be_summed() -> None:
    group = group_of(1)[0]
    for values in (torch.ones(3, dtype=torch.int64), torch.ones(4, 2)[:, 0]):
        with pytest.raises(RuntimeError, match="values must be"):
            group.add_up(values)
    with pytest.raises(RuntimeError, match="too many values"):
        group.most([0] * 600)


def test_one_that_fails_is_not_waited_for() -> None:
    groups = group_of(3)
    threading.Timer(0.1, groups[1].fail).start()
    for rank in (0, 2):  # the last hears it of the first, too
        with pytest.raises(RuntimeError, match="rank 1 has failed or ended in the middle of a step"):
            groups[rank].most([1])
    for group in groups:
        with pytest.raises(RuntimeError, match="has failed before"):
            group.add_up(torch.ones(2))


def test_one_that_is_silent_is_waited_for_as_long_as_the_group_says() -> None:
    groups = group_of(2, patience=0.3)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 has not answered for 0 s"):
        groups[0].add_up(torch.ones(2))
    assert time.monotonic() - began >= 0.3
    groups[1].add_up(torch.ones(2))  # to which the other came, too early
    with pytest.raises(RuntimeError, match="rank 0 has failed"):
        groups[1].add_up(torch.ones(2))


CHILD = """
import sys, torch
from fastgan import _C
group = _C.SharedGroup(sys.argv[1], int(sys.argv[2]), 1, 2, 4096, 60.0)
print("there", flush=True)
sys.stdin.readline()
group.watch()
values = torch.ones(3)
group.add_up(values)
print(values.tolist(), flush=True)
"""


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.deep), True])
def test_a_process_that_has_ended_is_noticed(killed: bool) -> None:
    group = backend.module.SharedGroup("", TOKEN, 0, 2, 4096, 60.0)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, group.path, str(TOKEN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    group.watch()
    if killed:
        child.kill()
    else:  # it takes its part in one meeting, and then ends
        print(file=child.stdin, flush=True)
        values = torch.full((3,), 2.0)
        group.add_up(values)
        assert values.tolist() == [3.0, 3.0, 3.0]
        assert child.stdout.readline() == "[3.0, 3.0, 3.0]\n"
    with pytest.raises(RuntimeError, match=rf"rank 1 \(process {child.pid}\) has ended"):
        group.most([1])
    child.wait(timeout=60)


def test_one_that_waits_can_be_interrupted() -> None:
    groups, value = group_of(2), 0x5EED_0F_A11_A105

    def interrupt() -> None:
        while value.to_bytes(8, sys.byteorder) not in Path(groups[0].path).read_bytes():
            time.sleep(0.01)  # until it has handed in, and waits
        signal.raise_signal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            groups[0].most([value])
        done.result()
    assert groups[1].most([1]) == [value]
    with pytest.raises(RuntimeError, match="rank 0 has failed"):
        groups[1].most([1])


def shared_by(size: int, **options: Any) -> list[Any]:
    """What shared_memory.share gives each of so many threads; options are by rank."""
    table: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def gather(rank: int, value: Any) -> list[Any]:
        table[rank] = value
        barrier.wait(10)
        found = list(table)
        barrier.wait(10)
        return found

    def work(rank: int) -> Any:
        own = {name: values[rank] for name, values in options.items()}
        arguments = {"bytes": 5000, "patience": 1.0, **own}
        return shared_memory.share(functools.partial(gather, rank), rank, size, **arguments)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def test_processes_share_where_all_can() -> None:
    groups = shared_by(2)
    assert on_each(groups, lambda rank, group: group.most([rank])) == [[1], [1]]
    assert all(group.bytes == 8192 for group in groups)
    assert shared_by(1) == [None]
    assert shared_by(3, is_wanted=[True, True, False]) == [None] * 3
    assert shared_by(2, bytes=[5000, 5001]) == [None] * 2
    too_many = shared_memory.MOST_PROCESSES + 1
    assert shared_by(too_many) == [None] * too_many


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("call", ["_opened", "_is_watched"])
def test_none_shares_where_one_cannot(monkeypatch: pytest.MonkeyPatch, call: str, failing: int) -> None:
    own, counted = getattr(shared_memory, call), itertools.count()

    def fails_once(*arguments: Any) -> Any:
        which = arguments[2] if call == "_opened" else next(counted)
        return None if which == failing else own(*arguments)

    monkeypatch.setattr(shared_memory, call, fails_once)
    assert shared_by(2) == [None, None]


def test_processes_that_number_differently_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    places = iter([("boot", "pid:[1]"), ("boot", "pid:[2]")])
    monkeypatch.setattr(shared_memory, "_place", lambda: next(places))
    assert shared_by(2) == [None, None]


def test_processes_of_an_unknown_computer_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_place", lambda: None)
    assert shared_by(2) == [None, None]
