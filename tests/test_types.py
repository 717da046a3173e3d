"""What type checkers and editors see: the trainer's options as keywords, and types all over the public names."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fastgan.discriminator_step import DiscriminatorStep
from fastgan.step import TrainStep
from fastgan.step_options import DiscriminatorOptions, DiscriminatorParts, StepOptions, StepParts, names_of
from fastgan.training.config import TrainConfig, TrainOptions, default_in_words

ROOT = Path(__file__).resolve().parent.parent


def test_the_keywords_of_the_trainer_are_the_options_of_training() -> None:
    keywords, options = get_type_hints(TrainOptions), get_type_hints(TrainConfig)
    del options["data"]
    assert list(keywords) == list(options)
    wider: dict[str, Any] = {"runs": os.PathLike[str], "g_hidden": list[int], "d_hidden": list[int]}
    for name, kind in options.items():
        assert keywords[name] == (kind | wider[name] if name in wider else kind) | None, name


def test_every_option_is_declared_whole() -> None:
    for each in fields(TrainConfig):
        assert callable(each.metadata["check"]), each.name
        assert each.metadata["text"] or each.name == "data"
        assert f"\n        {each.name}: " in (TrainConfig.__doc__ or ""), each.name
    assert default_in_words("output_activation") == "tanh; tables, ring8, grid25: identity"


def test_the_arguments_of_a_step_are_its_parts_and_options() -> None:
    """With the same defaults, and as attributes of these names; and the processes that take it together."""
    for step, parts, options in (
        (TrainStep, StepParts, StepOptions),
        (DiscriminatorStep, DiscriminatorParts, DiscriminatorOptions),
    ):
        arguments = inspect.signature(step).parameters
        assert set(arguments) == {*names_of(parts), *names_of(options), "process_group", "sync_batch_norm"}
        for each in fields(options):
            assert arguments[each.name].default == each.default, each.name
    shared = {each.name for each in fields(TrainConfig)} & set(names_of(StepOptions))
    assert set(TrainConfig().step_options(3)) == shared | {"num_classes"}
    assert set(names_of(StepOptions)) - shared == {"num_classes", "engine"}


USER = """
import torch
import fastgan
from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP, fuse

model: torch.nn.Linear = fuse(torch.nn.Linear(2, 2))
net: MLP = MLP([2, 8, 1], activation="relu")
logits = torch.zeros(4, 1)
discriminator_loss(logits, logits).backward()
halves = discriminator_loss(logits, logits, reduction="none")
generator_loss(logits, kind="minimax").backward()
trainer = fastgan.Trainer("digits", steps=3, g_hidden=[8], runs="x")
rows: torch.Tensor = trainer.sample(3)
found: fastgan.data.Dataset = fastgan.data.load("ring8")
coverage: int = fastgan.metrics.mode_coverage(rows, rows, 0.1).modes
adam = torch.optim.Adam(net.parameters())
step = fastgan.TrainStep(net, net, adam, adam, loss="minimax")
mean: torch.Tensor = step.step(logits).d_loss
step.real_target = 0.9
alone = fastgan.DiscriminatorStep(net, adam, loss="hinge", clip_grad_norm=1.0)
paid: torch.Tensor = alone.step(rows, rows).penalty
alone.clip_grad_norm = None
{wrong}
"""
WRONG = {
    "fastgan.Trainer('digits', stepz=3)": 'Unexpected keyword argument "stepz" for "Trainer"',
    "fastgan.Trainer('digits', steps='many')": 'Argument "steps" to "Trainer" has incompatible type "str"',
    "step.step(3)": 'Argument 1 to "step" of "TrainStep" has incompatible type "int"',
    "step.lost = 1": '"TrainStep" has no attribute "lost"',
}


@pytest.mark.deep
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_user_program_is_checked(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(USER.replace("{wrong}", ""))
    (tmp_path / "wrong.py").write_text(USER.replace("{wrong}", "\n".join(WRONG)))
    options = ["--strict", "--follow-imports=silent", "--untyped-calls-exclude=torch", f"--cache-dir={tmp_path}/cache"]
    command = [sys.executable, "-m", "mypy", *options]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    files = ["right.py", "wrong.py"]
    done = subprocess.run([*command, *files], cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert all(line.startswith("wrong.py:") for line in errors), done.stdout
    assert len(errors) == len(WRONG), done.stdout + done.stderr
    for sentence in WRONG.values():
        assert any(sentence in line for line in errors), done.stdout
