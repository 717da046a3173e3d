"""Resumption beside what can go wrong: changed options, two processes, a full or read-only disk, the clock."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastgan.cli import app
from fastgan.trainer import CheckpointError, Trainer
from fastgan.training import checkpoint, judge, trainer
from fastgan.training.checkpoint import best_checkpoint, complete_checkpoints, prune_checkpoints, read_facts
from fastgan.training.config import EXTENDABLE
from fastgan.training.run_folder import RunFolder

# Of a constant learning rate: one that falls over the steps falls otherwise in a run that is extended.
SMALL: dict[str, Any] = {
    "loss": "non_saturating",
    "g_hidden": (16,),
    "d_hidden": (16,),
    "batch_size": 32,
    "log_every": 4,
}
TIMES = ("seconds", "samples_per_second")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def single(one_thread: None) -> None:
    """One thread for all."""


def small(**options: Any) -> Trainer:
    return Trainer("ring8", **{**SMALL, **options})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def test_a_stop_between_two_rows_leaves_none() -> None:
    """Ctrl-C and the end of a run write a row in the midst of an interval; a run that goes on takes it back."""
    whole = small(steps=15, runs="whole", checkpoint_every=20).train(quiet=True)
    stopped = small(steps=15, runs="stopped", checkpoint_every=20)
    take_step = stopped.train_step.step

    def interrupted(*arguments: Any) -> Any:
        if stopped.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(*arguments)

    stopped.train_step.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.train(quiet=True)
    assert [row["step"] for row in rows(stopped.run.path)] == [4, 6]
    Trainer.resume(stopped.run.path).train(quiet=True)
    assert [row["step"] for row in rows(whole)] == [4, 8, 12, 15]
    assert rows(stopped.run.path) == rows(whole)
    extended = small(steps=6, runs="extended", checkpoint_every=20).train(quiet=True)
    Trainer.resume(extended, steps=15).train(quiet=True)
    assert rows(extended) == rows(whole)
    interrupted_twice = small(steps=6, runs="same", checkpoint_every=20)
    interrupted_twice.train(quiet=True)
    interrupted_twice.config = interrupted_twice.config.with_(steps=15)
    interrupted_twice.train(quiet=True)  # the same Trainer goes on
    assert rows(interrupted_twice.run.path) == rows(whole)


def test_a_changed_configuration_is_refused_with_the_difference() -> None:
    path = small(steps=4).train(quiet=True)
    text = (path / "config.toml").read_text()
    for before, after, told in (
        ('loss = "non_saturating"', 'loss = "hinge"', "loss was non_saturating and is hinge"),
        ("g_hidden = [16]", "g_hidden = [16, 8]", "g_hidden was 16 and is 16,8"),
        ("ema = true", "ema = false", "ema was on and is off"),
    ):
        assert before in text
        (path / "config.toml").write_text(text.replace(before, after))
        held = tree(path)
        result = CliRunner().invoke(app, ["resume", "0"])
        assert result.exit_code == 2
        assert told in result.stderr
        assert "config.toml was changed since the run was trained" in result.stderr
        assert result.stderr.count("\n") == 1
        assert tree(path) == held
    (path / "config.toml").write_text(text)
    assert Trainer.resume(path).step == 4


def test_extend_changes_what_is_safe_alone() -> None:
    path = small(steps=4).train(quiet=True)
    held = tree(path)
    for words, told in (
        (["--extend", "g_lr=0.1"], "extend must name options that a run can go on with changed (steps, log_every"),
        (["--extend", "steps"], "extend must be name=value, such as steps=20000, not 'steps'"),
        (["--extend", "steps=many"], "steps must be an integer"),
        (["--extend", "log_every=0"], "log_every must be at least 1, not 0"),
        (["--extend", "steps=3"], "steps must be at least 4, which the run has done, not 3"),
    ):
        result = CliRunner().invoke(app, ["resume", "0", *words])
        assert result.exit_code == 2
        assert told in result.stderr
        assert tree(path) == held
    words = ["--extend", "steps=10", "--extend", "log-every=3", "--extend", "keep_best=off"]
    result = CliRunner().invoke(app, ["resume", "0", *words])
    assert result.exit_code == 0, result.stderr
    config = RunFolder(path).read_config()
    assert (config.steps, config.log_every, config.keep_best) == (10, 3, False)
    assert [row["step"] for row in rows(path)] == [4, 6, 9, 10]
    assert not {"g_lr", "loss", "seed", "batch_size", "data"} & set(EXTENDABLE)


def test_the_best_checkpoint_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = iter([5.0, 4.0, 1.0, 3.0, 2.0, 1.5, 7.0])
    monkeypatch.setattr(judge, "sliced_distance", lambda real, fake: next(distances))
    path = small(steps=12, checkpoint_every=2, keep_checkpoints=2).train(quiet=True)
    checkpoints = path / "checkpoints"
    assert [found.name for found in complete_checkpoints(checkpoints)] == ["step_4", "step_10", "step_12"]
    assert best_checkpoint(checkpoints).name == "step_4"
    assert [row["distance"] for row in rows(path) if "distance" in row] == [4.0, 1.0, 3.0, 2.0, 1.5, 7.0]
    assert best_checkpoint(path) is None
    (checkpoints / "step_4/checkpoint.json").write_text("{")  # a damaged one is none
    assert best_checkpoint(checkpoints).name == "step_10"


def test_the_distance_to_the_data() -> None:
    real = torch.randn(1000, 5)
    assert judge.sliced_distance(real, real[torch.randperm(1000)]) == 0
    shifted = judge.sliced_distance(real, real + torch.tensor([1.0, 0, 0, 0, 0]))
    # The mean of |cos| of the angle to a random direction in 5 dimensions is 3/8.
    assert 0.3 < shifted < 0.45
    assert judge.sliced_distance(real, real * float("nan")) is None


def test_a_checkpoint_that_is_being_replaced_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(steps=4, keep_checkpoints=1, keep_best=False).train(quiet=True)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if str(target).endswith("step_4"):
            raise KeyboardInterrupt
        return rename(self, target)

    run = Trainer.resume(path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt), run.state.random_states.in_force():
            run.state.save(path / "checkpoints")
    (only,) = complete_checkpoints(path / "checkpoints")
    assert only.name == ".step_4.replaced"
    prune_checkpoints(path / "checkpoints", 1)
    assert read_facts(only)["step"] == 4
    Trainer.resume(path, steps=6).train(quiet=True)
    assert [found.name for found in complete_checkpoints(path / "checkpoints")] == ["step_6"]


def test_a_run_that_was_stopped_before_its_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(steps=6, runs="whole").train(quiet=True)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "remove", lambda self: None)  # as if the process had been killed
        patched.setattr(trainer, "prune_checkpoints", lambda *arguments: 1 / 0)
        patched.setattr(trainer.TrainState, "save", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            small(steps=6).train(quiet=True)
    path = Path("runs/00000-ring8")
    again = Trainer.resume(path)
    assert again.step == 0
    again.train(quiet=True)
    assert "begins anew" in (path / "log.txt").read_text()
    assert rows(path) == rows(whole)
    Path("runs/00001-ring8").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.toml: the run was stopped before it began"):
        Trainer.resume(1)


def test_two_processes_on_one_run() -> None:
    path = small(steps=4).train(quiet=True)
    code = (
        "import fcntl, sys, time; file = open('runs/00000-ring8/log.txt', 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(100)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == "held\n"
        held = tree(path)
        result = CliRunner().invoke(app, ["resume", "0", "--steps", "8"])
        assert result.exit_code == 2
        assert "runs/00000-ring8 is in use: another process is training in it" in result.stderr
        assert result.stderr.count("\n") == 1
        assert tree(path) == held
        assert Trainer.resume(path).sample(2).shape == (2, 2)  # to look at it is no training
    finally:
        other.kill()
        other.communicate()
    # The lock went with the process.
    one, two = Trainer.resume(path, steps=8), Trainer.resume(path, steps=8)
    one.train(quiet=True)
    held = tree(path)
    with pytest.raises(CheckpointError, match="was trained on by another process meanwhile; go on with"):
        two.train(quiet=True)
    assert tree(path) == held


@pytest.mark.parametrize("size", [400, *(pytest.param(size, marks=pytest.mark.deep) for size in (2500, 4500))])
def test_a_full_disk_is_one_sentence_and_loses_nothing(size: int) -> None:
    """The kernel writes a part of what it is given, and then refuses."""
    whole = small(steps=12, checkpoint_every=4, runs="whole").train(quiet=True)
    path = small(steps=4, checkpoint_every=4).train(quiet=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written: File too large; .* go on with fastgan resume") as caught:
            Trainer.resume(path, steps=12).train(quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert "\n" not in str(caught.value)
    assert not list((path / "checkpoints").glob(".*.writing"))
    Trainer.resume(path, steps=12).train(quiet=True)
    assert rows(path) == rows(whole)
    newest = complete_checkpoints(path / "checkpoints")[-1]
    for file in newest.glob("*.safetensors"):
        assert file.read_bytes() == (whole / "checkpoints" / newest.name / file.name).read_bytes(), file.name


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_a_disk_answers_while_a_checkpoint_is_written(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(steps=4).train(quiet=True)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", refuse)
        result = CliRunner().invoke(app, ["resume", "0", "--steps", "8"])
    assert result.exit_code == 2
    assert os.strerror(number) in result.stderr
    assert "is whole up to step 4: go on with fastgan resume" in result.stderr
    assert result.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["resume", "0", "--steps", "8"]).exit_code == 0
    assert rows(path)[-1]["step"] == 8


def test_a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(steps=8, runs="whole").train(quiet=True)
    moments = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(moments)))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    path = small(steps=8).train(quiet=True)
    assert rows(path) == rows(whole)
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] == 0 and row["samples_per_second"] == 0 for row in found)
    assert "the clock went back" in (path / "log.txt").read_text()
    assert Trainer.resume(path).step == 8
