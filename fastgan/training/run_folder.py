"""A run's folder: `runs/00003-digits/` with its options, log, metrics, pictures and checkpoints.

config.toml     every option of the run
dataset.json    shape and scaling of the data
log.txt         what was printed; the process that trains holds a lock on it
metrics.jsonl   one line a log interval
samples/        real.png and fakes_step_N.png, always of the same noise
loss.png        both losses and both scores over the steps
report.html     with the option report, the run on one page
failure/        where training stopped at a value that is not finite, the state and the batch of that step
checkpoints/    see fastgan.training.checkpoint
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from tomlkit.exceptions import TOMLKitError

from fastgan.training.checkpoint import CheckpointError, best_checkpoint, complete_checkpoints, read_facts, sync
from fastgan.training.config import TrainConfig

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
        self.report = path / "report.html"
        self.failure = path / "failure"
        self._made: list[Path] = []

    @classmethod
    def create(cls, config: TrainConfig, name: str, dataset: Mapping[str, Any]) -> RunFolder:
        """Make the next numbered folder and write the options into it."""
        runs = Path(config.runs)
        made = [folder for folder in (runs, *runs.parents) if not folder.exists()]
        run: RunFolder | None = None
        try:
            runs.mkdir(parents=True, exist_ok=True)
            with _lock(runs):
                number = 1 + max((number for number, _ in _numbered(runs)), default=-1)
                path = runs / f"{number:05d}-{name}"
                path.mkdir()
            run = cls(path)
            run._made = made
            run.samples.mkdir()
            run.checkpoints.mkdir()
            run.write_config(config)
            _replace(path / "dataset.json", json.dumps(dict(dataset)) + "\n")
            sync(runs)
        except BaseException:
            _remove(None if run is None else run.path, made)
            raise
        return run

    @classmethod
    def find(cls, run: str | os.PathLike[str] | int | None, runs: str | os.PathLike[str] = "runs") -> RunFolder:
        """The run that a path, a number, or nothing means.

        Nothing stands for the newest that has a checkpoint: what a run that could not begin has left is passed over.

        Raises:
            CheckpointError: there is no such run.
            TypeError: run is none of these.
        """
        runs = os.fsdecode(runs)
        numbered = sorted(_numbered(Path(runs)))
        if run is None:
            begun = [path for _, path in numbered if cls(path).has_begun()]
            if begun:
                return cls(begun[-1])
            without = " with a checkpoint" if numbered else ""
            raise CheckpointError(f"{runs} holds no run{without}; start one with: fastgan train DATA")
        if isinstance(run, bool) or not isinstance(run, (str, bytes, os.PathLike, Integral)):
            raise TypeError(f"run must be a path, a number or None, not {type(run).__name__} {run!r}")
        text = str(run) if isinstance(run, Integral) else os.fsdecode(run)
        number = int(text) if text.isdecimal() else None
        found = [path for known, path in numbered if known == number]
        # Of several with one number, as a copy of a folder makes them, the one that can be used.
        path = next((path for path in found if cls(path).has_begun()), found[0] if found else Path(text))
        if not text or not path.is_dir() or (isinstance(run, Integral) and not found):
            raise CheckpointError(f"run must be a run folder or the number of one in {runs}, not {text!r}")
        return cls(path)

    def has_begun(self) -> bool:
        """Whether there is a checkpoint, and what is needed to read it."""
        kept = (self.path / name for name in ("config.toml", "dataset.json"))
        return all(file.is_file() for file in kept) and bool(complete_checkpoints(self.checkpoints))

    def write_config(self, config: TrainConfig) -> None:
        """Write every option to config.toml; those without a value, which TOML does not have, as comments."""
        document = tomlkit.document()
        document.add(tomlkit.comment("The options of this run; fastgan resume reads them back."))
        for name, value in config.as_dict().items():
            document.add(name, tomlkit.item(value))
        for each in fields(config):
            if getattr(config, each.name) is None:
                document.add(tomlkit.comment(f"{each.name} is off"))
        _replace(self.path / "config.toml", tomlkit.dumps(document))

    def read_config(self) -> TrainConfig:
        """The options that the run began with.

        Raises:
            CheckpointError: config.toml is missing, damaged, or holds an option that is unknown or out of
                range.
        """
        file = self.path / "config.toml"
        try:
            self._refuse_unborn(file)
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
            return TrainConfig.from_dict(tomlkit.parse(text).unwrap())
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
            self._refuse_unborn(file)
            facts = json.loads(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
        if not isinstance(facts, dict) or set(facts) - {"labels", "table", "layout"} != keys:
            raise CheckpointError(f"{file} is damaged: it must hold {', '.join(sorted(keys))}")
        return {"labels": list(range(facts["num_classes"])), **facts}  # older runs did not say which labels there are

    def _refuse_unborn(self, file: Path) -> None:
        """CheckpointError where a run was stopped before its options were written."""
        if not file.exists() and not self.metrics.exists() and not complete_checkpoints(self.checkpoints):
            raise CheckpointError(
                f"{self.path} has no {file.name}: the run was stopped before it began, and nothing is lost; start it "
                "again with: fastgan train DATA"
            )

    def is_at_its_beginning(self) -> bool:
        """Whether the run was stopped after its options were written, but before its first checkpoint."""
        return not complete_checkpoints(self.checkpoints) and not self.read_metrics()

    def newest_facts(self) -> dict[str, Any]:
        """What the newest checkpoint holds beside tensors; see `checkpoint.read_facts`. Empty where there is none."""
        found = complete_checkpoints(self.checkpoints)
        return read_facts(found[-1]) if found else {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock goes with the process that holds it.

        Raises:
            CheckpointError: another process is training in it.
            OSError: log.txt cannot be written.
        """
        with (self.path / "log.txt").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"{self.path} is in use: another process is training in it; wait for it, or stop it, and then go "
                    f"on with: fastgan resume {self.path}"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def newest_checkpoint(self) -> Path:
        """The complete checkpoint of the latest step.

        Raises:
            CheckpointError: there is none.
        """
        found = complete_checkpoints(self.checkpoints)
        if not found:
            raise CheckpointError(f"{self.checkpoints} holds no complete checkpoint to go on from")
        return found[-1]

    def checkpoint(self, which: str | int | None = None) -> Path:
        """The complete checkpoint of a step, the `best` one, or the `newest`, which None is too.

        Raises:
            CheckpointError: there is no checkpoint at all.
            TypeError, ValueError: which is none of these, or the run does not keep it.
        """
        newest = self.newest_checkpoint()
        if which is None or which == "newest":
            return newest
        if isinstance(which, bool) or not isinstance(which, (str, Integral)):
            raise TypeError(f"checkpoint must be a step, best or newest, not {type(which).__name__} {which!r}")
        found = {
            path.name.strip(".").partition(".")[0].removeprefix("step_"): path
            for path in complete_checkpoints(self.checkpoints)
        }
        if which == "best":
            best = best_checkpoint(self.checkpoints)
            if best is None:
                raise ValueError(f"checkpoint must be a step or newest, not 'best': {self.path} has measured none")
            return best
        step = str(which).removeprefix("step_")
        if step not in found:
            raise ValueError(
                f"checkpoint must be best, newest or a step that {self.path} keeps ({', '.join(found)}), not {which!r}"
            )
        return found[step]

    def log(self, line: str) -> None:
        """Append a line to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
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

    def sync_metrics(self) -> None:
        """Make the lines of metrics.jsonl durable, before a checkpoint that follows them is."""
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def drop_metrics_after(self, step: int) -> None:
        """Forget the lines of steps that a resumed run will take again, so that steps only ever grow."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        _replace(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def remove(self) -> None:
        """Remove the folder, and those above it that were made for it and are empty now."""
        _remove(self.path, self._made)


def is_same_data(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether data is what dataset.json says: values, shape, and the units, which older versions kept as float32."""
    if any(now[name] != then[name] for name in ("fingerprint", "image_shape", "num_classes")):
        return False
    return all(
        now[name] == then[name] or np.array_equal(np.float32(now[name]), np.array(then[name]))
        for name in ("scale", "offset")
    )


def _remove(path: Path | None, made: list[Path]) -> None:
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):  # another run is in it, or it was never made
            folder.rmdir()


def _numbered(runs: Path) -> list[tuple[int, Path]]:
    if not runs.is_dir():
        return []
    return [(int(match[1]), path) for path in runs.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        # A file name that is no UTF-8 is written with the bytes that it has.
        with aside.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes from taking the same number: two runs that begin at once would find it free."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
