"""A trainer's checkpoint holds its step's choices; a resumed run takes them, whatever this machine would say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_clock import MadeUpClock, favourite

from fastgan import choices, device_cache, tuning
from fastgan.trainer import Trainer
from fastgan.training import checkpoint
from fastgan.training.checkpoint import CheckpointError

OPTIONS: dict[str, Any] = {
    "g_hidden": (16,),
    "d_hidden": (16,),
    "latent_size": 4,
    "batch_size": 32,
    "checkpoint_every": 5,
    "keep_checkpoints": 9,
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choices, "_is_on", True)


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a way the fastest, on a machine that has measured nothing yet."""

    def make(name: str) -> None:
        for file in device_cache.folder().glob("choices*"):
            file.unlink()
        clock = MadeUpClock(favourite(name))
        monkeypatch.setattr(tuning, "clock_of", lambda device: clock)

    return make


def ways(trainer: Trainer) -> list[str]:
    return [choice["way"] for choice in trainer.train_step.state_dict()["choices"].values()]


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.generator.parameters(), *trainer.discriminator.parameters()]


def change(path: Path, facts: Callable[[dict[str, Any]], None]) -> None:
    """Change the facts of a checkpoint, as another fastgan would have written them."""
    file = path / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    facts(manifest["facts"])
    manifest.pop("sha256")
    manifest["sha256"] = checkpoint._digest(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(("here", "there"), [("default", "composed library"), ("composed library", "default")])
def test_resume_beside_an_opposite_cache(here: str, there: str, best: Callable[[str], None]) -> None:
    best(here)
    whole = Trainer("digits", steps=15, **OPTIONS)
    whole.train(quiet=True)
    part = Trainer("digits", steps=5, **OPTIONS)
    run = part.train(quiet=True)
    assert ways(part) == [here]
    best(there)
    other = Trainer("digits", steps=15, **OPTIONS)
    other.train(quiet=True)
    assert ways(other) == [there]
    assert not all(map(torch.equal, parameters(other), parameters(whole)))  # the ways differ in their last bits
    resumed = Trainer.resume(run, steps=15)
    resumed.train(quiet=True)
    assert ways(resumed) == [here]
    assert all(map(torch.equal, parameters(resumed), parameters(whole)))


def test_a_checkpoint_of_before_there_were_choices(best: Callable[[str], None]) -> None:
    best("default")
    run = Trainer("digits", steps=5, r1_gamma=1.0, r1_every=3, **OPTIONS).train(quiet=True)
    path = run / "checkpoints" / "step_5"
    change(path, lambda facts: facts.update(steps_done=facts.pop("train_step")["steps_done"]))
    resumed = Trainer.resume(run, steps=8)
    assert resumed.train_step.state_dict() == {"steps_done": 5, "choices": {}}
    resumed.train(quiet=True)
    assert resumed.train_step.steps_done == 8
    assert ways(resumed) == ["default"]


def test_a_choice_that_this_fastgan_does_not_know(best: Callable[[str], None]) -> None:
    best("default")
    run = Trainer("digits", steps=5, **OPTIONS).train(quiet=True)
    path = run / "checkpoints" / "step_5"

    def newer(facts: dict[str, Any]) -> None:
        for choice in facts["train_step"]["choices"].values():
            choice["way"] = "by magic"

    change(path, newer)
    with pytest.raises(
        CheckpointError, match="train_step that this fastgan cannot take: 'by magic' is not the name of"
    ):
        Trainer.resume(run, steps=8)
