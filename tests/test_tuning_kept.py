"""What a TrainStep has chosen is kept, in the cache and in its state, and taken from there; and the setting of it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tuned_step
import warm
from made_up_clock import MadeUpClock
from plain_step import DATA, adam, inputs, networks, state_of, twin
from tuned_step import clear, run, the_choice, trained

from fastgan import TrainStep, choices, device_cache, tuning

# The surroundings of every test here: a cache of its own, one thread.
pytestmark = pytest.mark.usefixtures("cache", "one_thread")
cache, clock, no_clock, on_cpu = tuned_step.cache, tuned_step.clock, tuned_step.no_clock, tuned_step.on_cpu

ROOT = Path(__file__).resolve().parent.parent


# The cache


@pytest.mark.parametrize("content", ["", "{", "[]", '{"form": 1}', None])
def test_a_cache_that_is_cut_short(
    content: str | None, on_cpu: None, clock: Callable[..., MadeUpClock], cache: Path
) -> None:
    clock("composed library")
    trained(1)
    (file,) = cache.glob("choices-*.json")
    text = file.read_text()
    file.write_text(text[: len(text) // 2] if content is None else content)
    made = clock("composed narrow")
    assert the_choice(trained(1)).way == "composed narrow"
    assert made.turns
    assert json.loads(file.read_text())["entries"]


@pytest.mark.parametrize("change", [{"way": "fast"}, {"ratio": "much"}, {"way": 3}, {"more": 1}, {"tried": 1.5}])
def test_an_entry_of_another_form_is_not_taken(
    change: dict[str, Any], on_cpu: None, clock: Callable[..., MadeUpClock], cache: Path
) -> None:
    clock("composed library")
    trained(1)
    (file,) = cache.glob("choices-*.json")
    content = json.loads(file.read_text())
    for entry in content["entries"].values():
        entry.update(change)
    file.write_text(json.dumps(content))
    clock("composed narrow")
    assert the_choice(trained(1)).way == "composed narrow"


def test_a_crash_in_the_middle_of_writing(
    on_cpu: None, clock: Callable[..., MadeUpClock], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock("composed library")
    trained(1)

    def crash(*of: Any) -> None:
        raise KeyboardInterrupt

    step = trained(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            step.step(torch.randn(5, DATA, dtype=torch.float64))
    assert the_choice(trained(1)).way == "composed library"
    step.step(torch.randn(5, DATA, dtype=torch.float64))  # the step itself is as it was
    assert len(device_cache.load(tuning.CACHE, torch.device("cpu"))) == 2


def test_a_cache_that_cannot_be_written(
    on_cpu: None, clock: Callable[..., MadeUpClock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    clock("composed library")
    assert the_choice(trained(2)).way == "composed library"


def test_who_is_first_is_followed(on_cpu: None, clock: Callable[..., MadeUpClock]) -> None:
    """Another process has measured the same meanwhile: its choice is what later runs will find."""
    clock("composed library")
    first = trained(1)
    (entry,) = first._choices.state().items()
    clear()

    def seconds(name: str) -> float:
        device_cache.merge(tuning.CACHE, torch.device("cpu"), dict([entry]))
        return 1e-3 if name == "composed narrow" else 2e-3

    clock(seconds=seconds)
    assert the_choice(trained(1)).way == "composed library"


TRAIN = """
import torch
from plain_step import adam, inputs, networks, state_of, twin
from fastgan import TrainStep
torch.manual_seed(0)
step = twin(TrainStep, *networks(dtype=torch.float32), adam)
for _ in range(5):
    step.step(*inputs({}, torch.float32))
print(step._choices.state(), step.plan, [t.sum().item() for t in state_of(step)])
"""


def start(**environment: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "FASTGAN_TUNE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    settings.update(environment)
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN], cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.deep
def test_two_processes_at_once_and_a_third(on_cpu: None, cache: Path) -> None:
    """With a real clock."""
    outputs = [process.communicate() for process in [start(), start()]]
    assert all("measured here" in output for output, _ in outputs), outputs
    (file,) = cache.glob("choices-*.json")
    (entry,) = json.loads(file.read_text())["entries"].values()
    tuning.read(entry)
    before = file.read_text()
    last, _ = start().communicate()
    assert file.read_text() == before
    assert repr(entry["way"]) in last
    assert last in {output for output, _ in outputs}


# The state


def opposite(choice: str) -> str:
    return {"default": "composed library"}.get(choice, "default")


@pytest.mark.parametrize("best", ["default", "composed library"])
def test_resume_beside_an_opposite_cache(best: str, on_cpu: None, clock: Callable[..., MadeUpClock]) -> None:
    """As on another machine, where another way is the fastest: bitwise the run that did not stop."""
    clock(best)
    pair = networks(dtype=torch.float32)
    whole = twin(TrainStep, *pair, adam)
    torch.manual_seed(1)
    drawn = [inputs({}, torch.float32) for _ in range(20)]
    for given in drawn[:10]:
        whole.step(*given)
    parts = copy.deepcopy((whole.generator, whole.discriminator))
    states = copy.deepcopy((whole.g_optimizer.state_dict(), whole.d_optimizer.state_dict()))
    state = json.loads(json.dumps(whole.state_dict()))
    for given in drawn[10:]:
        whole.step(*given)
    clear()
    clock(opposite(best))
    assert the_choice_of_a_new_one(pair) == opposite(best)
    resumed = TrainStep(*parts, adam(parts[0].parameters()), adam(parts[1].parameters()))
    resumed.g_optimizer.load_state_dict(states[0])
    resumed.d_optimizer.load_state_dict(states[1])
    resumed.load_state_dict(state)
    for given in drawn[10:]:
        resumed.step(*given)
    assert all(map(torch.equal, state_of(whole), state_of(resumed)))
    assert the_choice(resumed).way == best
    assert "in the state that was loaded" in resumed.plan
    assert resumed.state_dict()["choices"] == state["choices"]


def the_choice_of_a_new_one(pair: Any) -> str:
    step = twin(TrainStep, *pair, adam)
    step.step(*inputs({}, torch.float32))
    return the_choice(step).way


def test_what_was_loaded_is_taken_where_nothing_is_measured(
    on_cpu: None, clock: Callable[..., MadeUpClock], monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    clock("composed library")
    state = trained(1).state_dict()
    request.getfixturevalue("no_clock")
    monkeypatch.setattr(choices, "_is_on", False)
    plain = trained(2)
    assert plain.state_dict() == {"steps_done": 2, "choices": {}}
    assert "at batch" not in plain.plan
    step = trained(0)
    step.load_state_dict(state)
    run(step, 2)
    assert the_choice(step).way == "composed library"
    assert "at batch 6 composed" in step.plan
    step.step(torch.randn(5, DATA, dtype=torch.float64))  # of which it says nothing
    assert list(step._choices.state()) == list(state["choices"])


def test_the_phase_of_the_penalty(on_cpu: None, no_clock: None) -> None:
    step = trained(0, r1_gamma=1.0, r1_every=4)
    step.load_state_dict({"steps_done": 4, "choices": {}})
    due = [step._planned_options.penalties_are_due(step.steps_done + i) for i in range(5)]
    assert due == [True, False, False, False, True]
    run(step, 1)
    assert step.state_dict()["steps_done"] == 5


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (3, TypeError, "state must be a dict, not int"),
        ({}, ValueError, "state must have steps_done and choices, but it has nothing"),
        ({"steps_done": 1}, ValueError, "but it has steps_done"),
        ({"steps_done": -1, "choices": {}}, ValueError, "steps_done of the state must be at least 0, not -1"),
        ({"steps_done": 1.5, "choices": {}}, TypeError, "steps_done of the state must be an integer"),
        ({"steps_done": 1, "choices": []}, TypeError, "choices of a state must be a dict, not list"),
        ({"steps_done": 1, "choices": {"a": {}}}, ValueError, "a choice must have way, over, ratio"),
        ({"steps_done": 1, "choices": {"a": "default"}}, ValueError, "a choice must have way, over, ratio"),
    ],
)
def test_a_state_that_is_none_is_refused(state: Any, error: type[Exception], message: str, on_cpu: None) -> None:
    step = trained(0)
    with pytest.raises(error, match=message):
        step.load_state_dict(state)
    assert step.state_dict() == {"steps_done": 0, "choices": {}}


# The setting


@pytest.mark.parametrize(("value", "word"), [("0", "off (FASTGAN_TUNE=0)"), ("1", "on"), ("", "on"), (" 0 ", "off")])
def test_the_setting(value: str, word: str) -> None:
    code = "import fastgan; print(fastgan.info()['tuning'])"
    settings = {**os.environ, "FASTGAN_TUNE": value}
    done = warm.run(["-c", code], ROOT, settings)
    assert done.stdout.startswith(word), done.stderr


def test_a_setting_that_is_none() -> None:
    settings = {**os.environ, "FASTGAN_TUNE": "yes"}
    done = warm.run(["-c", "import fastgan"], ROOT, settings)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "ValueError: FASTGAN_TUNE must be one of 0, 1, not 'yes'"


def test_off_nothing_is_measured_or_read(cache: Path) -> None:
    done = start(FASTGAN_TUNE="0")
    output, _ = done.communicate()
    assert output.startswith("{} the whole step")
    assert not list(cache.glob("choices*"))
