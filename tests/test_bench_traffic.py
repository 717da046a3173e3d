"""The count of what a step moves through memory, against counts made by hand."""

from __future__ import annotations

import pytest

from bench.configurations import Configuration, by_name
from bench.traffic import PIECE, Cache, Touch, traffic, walk

MIB = 1 << 20


def total(configuration: Configuration, cache: int, streaming: bool = False) -> int:
    """Bytes of a step."""
    return sum(read + written for read, written in traffic(walk(configuration, streaming), cache).values())


def test_the_least_recently_used_piece_leaves_and_is_written_back_if_it_was_changed() -> None:
    cache = Cache(2 * PIECE)
    for matrix, writes in (("a", True), ("b", False), ("a", False), ("c", False), ("a", False), ("b", False)):
        cache.touch(Touch("phase", matrix, PIECE, writes=writes))
    # a, b and c once each; c throws b out, which returns and throws c out.
    assert cache.read["phase"] == 4 * PIECE
    assert cache.written["phase"] == 0
    cache.touch(Touch("phase", "d", PIECE, reads=False, writes=True))
    assert (cache.read["phase"], cache.written["phase"]) == (4 * PIECE, PIECE)  # a had been changed


def test_a_cache_that_holds_all_has_no_traffic() -> None:
    assert total(by_name("ring"), 64 * MIB) == 0


def test_without_a_cache_each_touch_is_traffic() -> None:
    ring = by_name("ring")
    touched = sum(touch.size * (touch.reads + touch.writes) for touch in walk(ring))
    assert total(ring, 0) == pytest.approx(touched, rel=0.05)  # a last piece is written back whole


def test_the_moments_of_a_step_that_does_not_fit_come_from_memory_once() -> None:
    mnist = by_name("mnist")
    weights = sum(touch.size for touch in walk(mnist) if "weight" in touch.matrix and touch.phase.endswith("update"))
    # Read and written, both; with what neighbours leave of a cache the rest follows.
    assert total(mnist, 64 * MIB, streaming=True) == 4 * weights
    assert total(mnist, 8 * MIB) > total(mnist, 16 * MIB) > 4 * weights


@pytest.mark.parametrize("name", ["ring", "digits", "mnist", "wide"])
def test_the_walk_touches_all_that_a_step_must_touch(name: str) -> None:
    configuration = by_name(name)
    updated = [touch for touch in walk(configuration) if touch.writes and touch.phase.endswith("update")]
    parameters = sum(configuration.generator[1:]) + sum(configuration.discriminator[1:])
    data = configuration.batch * (configuration.generator[0] + 2 * configuration.generator[-1])
    # step_bytes counts biases and data too.
    assert 2 * sum(touch.size for touch in updated) == configuration.step_bytes - 4 * (6 * parameters + data)
