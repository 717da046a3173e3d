"""A run's folder: `runs/00003-digits/` with its options, log, metrics, pictures and checkpoints.

config.toml     every option of the run          samples/     real.png and fakes_step_N.png, always of the
same noise dataset.json    shape and scaling of the data    loss.png     both losses and both scores over the
steps log.txt         what was printed                 checkpoints/ see fastgan.checkpoint
metrics.jsonl   one line a log interval
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from fastgan.checkpoint import CheckpointError, complete_checkpoints
from fastgan.config import TrainConfig

_NAME = re.compile(r"(\d+)-.+")


class RunFolder:
    """The paths of a run folder, and what is written beside the checkpoints.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Bind to a folder that exists."""
        self.path = path
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.loss_plot = path / "loss.png"

    @classmethod
    def create(cls, config: TrainConfig, name: str, dataset: Mapping[str, Any]) -> RunFolder:
        """Make the next numbered folder and write the options into it."""
        runs = Path(config.runs)
        runs.mkdir(parents=True, exist_ok=True)
        handle = os.open(runs, os.O_RDONLY)
        try:
            # Two runs that begin at once would find the same number free.
            fcntl.flock(handle, fcntl.LOCK_EX)
            number = 1 + max((number for number, _ in _numbered(runs)), default=-1)
            path = runs / f"{number:05d}-{name}"
            path.mkdir()
        finally:
            os.close(handle)
        run = cls(path)
        try:
            run.samples.mkdir()
            run.checkpoints.mkdir()
            run.write_config(config)
            _replace(path / "dataset.json", json.dumps(dict(dataset)) + "\n")
        except OSError:
            run.remove()
            raise
        return run

    @classmethod
    def find(cls, run: str | os.PathLike[str] | None, runs: str = "runs") -> RunFolder:
        """The run that a path, a number, or nothing (for the newest) means.

        Raises:
            CheckpointError: there is no such run.
        """
        numbered = sorted(_numbered(Path(runs)))
        if run is None:
            if not numbered:
                raise CheckpointError(f"{runs} holds no run; start one with: fastgan train DATA")
            return cls(numbered[-1][1])
        text = os.fspath(run)
        path = next((path for number, path in numbered if text.isdecimal() and number == int(text)), Path(text))
        if not path.is_dir():
            raise CheckpointError(f"run must be a run folder or the number of one in {runs}, not {text!r}")
        return cls(path)

    def write_config(self, config: TrainConfig) -> None:
        """Write every option to config.toml."""
        document = tomlkit.document()
        document.add(tomlkit.comment("The options of this run; fastgan resume reads them back."))
        for name, value in config.as_dict().items():
            document.add(name, tomlkit.item(value))
        _replace(self.path / "config.toml", tomlkit.dumps(document))

    def read_config(self) -> TrainConfig:
        """The options that the run began with.

        Raises:
            CheckpointError: config.toml is missing, damaged, or holds an option that is unknown or out of
                range.
        """
        file = self.path / "config.toml"
        try:
            return TrainConfig.from_dict(tomlkit.parse(file.read_text(encoding="utf-8")).unwrap())
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        except (TOMLKitError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be used: {error}") from error

    def read_dataset(self) -> dict[str, Any]:
        """What `Dataset.describe` gave when the run began.

        Raises:
            CheckpointError: dataset.json is missing or damaged.
        """
        file = self.path / "dataset.json"
        keys = {"name", "count", "width", "num_classes", "image_shape", "scale", "offset", "fingerprint"}
        try:
            facts = json.loads(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
        if not isinstance(facts, dict) or set(facts) != keys:
            raise CheckpointError(f"{file} is damaged: it must hold {', '.join(sorted(keys))}")
        return facts

    def newest_checkpoint(self) -> Path:
        """The complete checkpoint of the latest step.

        Raises:
            CheckpointError: there is none.
        """
        found = complete_checkpoints(self.checkpoints)
        if not found:
            raise CheckpointError(f"{self.checkpoints} holds no complete checkpoint to go on from")
        return found[-1]

    def log(self, line: str) -> None:
        """Append a line to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """The whole lines of metrics.jsonl; a process that was killed may leave half a line at the end."""
        rows = []
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows

    def drop_metrics_after(self, step: int) -> None:
        """Forget the lines of steps that a resumed run will take again, so that steps only ever grow."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        _replace(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def remove(self) -> None:
        """Remove the folder, and the folder of runs where that leaves it empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            return  # not empty: other runs are in it


def _numbered(runs: Path) -> list[tuple[int, Path]]:
    if not runs.is_dir():
        return []
    return [(int(match[1]), path) for path in runs.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
