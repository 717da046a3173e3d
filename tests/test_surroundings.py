"""Runs in unkind surroundings: no standard output, names that are no UTF-8, full disks, other defaults of torch.

Each is survived or ends in one sentence, and a run that could not begin leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fastgan
from fastgan.cli import app
from fastgan.nn import MLP
from fastgan.training import pictures, state
from fastgan.training.checkpoint import CheckpointError, complete_checkpoints
from fastgan.training.run_folder import RunFolder
from fastgan.training.run_samples import sample_run

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"g_hidden": (8,), "d_hidden": (8,), "latent_size": 4, "batch_size": 16}
ODD = os.fsdecode(b"caf\xe9")  # Latin-1, as old archives have it


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*arguments: str, code: int = 2) -> str:
    """The one line with which the command line refuses."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip()
    assert line.startswith("fastgan: ")
    assert "\n" not in line
    return line


# Standard streams.


class Failing(io.StringIO):
    """A stream on which every write fails."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "closed": closed,
    "broken pipe": lambda: Failing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "full disk": lambda: Failing(OSError(errno.ENOSPC, "No space left on device")),
    "ASCII": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "UTF-8": lambda: io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_training_does_without_standard_output(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", STREAMS[name]())
        run = fastgan.Trainer("ring8", steps=2, runs=f"runs-{ODD}", **SMALL).train()
    log = (run / "log.txt").read_bytes()
    assert b"step      2" in log
    assert b"Done: 2 steps" in log
    assert b"runs-caf\xe9" in log  # as the shell would give it


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_commands_do_without_streams(monkeypatch: pytest.MonkeyPatch, name: str, stream: str) -> None:
    for words, code in ((["doctor"], 0), (["--version"], 0), (["train", "nothing"], 2)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, STREAMS[name]())
            assert (app(words, standalone_mode=False) or 0) == code


@pytest.mark.deep
@pytest.mark.parametrize(
    ("redirection", "data", "code"),
    [
        (">&- 2>&- <&-", "ring8", 0),
        (">/dev/full", "ring8", 0),
        (">&- 2>&-", "nothing", 2),
        ("2>/dev/full", "nothing", 2),
    ],
)
def test_redirections(here: Path, redirection: str, data: str, code: int) -> None:
    options = "--steps 2 --g-hidden 8 --d-hidden 8 --runs runs"
    command = f"{sys.executable} -m fastgan train {data} {options} {redirection}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=here, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert (here / "runs").exists() == (code == 0)
    # Nothing was written into a file that had got the number of a closed stream.
    if code == 0:
        assert sample_run(None, 1)[0].shape == (1, 2)


@pytest.mark.deep
def test_a_reader_that_leaves(here: Path) -> None:
    options = "--steps 40 --log-every 1 --g-hidden 8 --d-hidden 8"
    command = f"{{ {sys.executable} -m fastgan train ring8 {options}; echo $? >code; }} | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=here, env=environment, capture_output=True, timeout=120)
    assert done.stderr == b""
    assert (here / "code").read_text().strip() == "0"
    assert complete_checkpoints(here / "runs/00000-ring8/checkpoints")[-1].name == "step_40"


# Names.


def test_names_that_are_no_utf8(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs, out = f"{ODD}.csv", f"runs-{ODD}", f"{ODD}.npy"
    (here / data).write_text("a,label\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    path = fastgan.Trainer(data, steps=1, conditional=True, runs=runs, **SMALL).train()
    assert "caf\\udce9" in capsys.readouterr().out
    assert RunFolder(path).read_config().data == str(here / data)
    assert fastgan.Trainer.resume(runs=runs, steps=2).train(quiet=True) == path
    for words in (["sample", "--runs", runs, "--out", out, "--number", "3"], ["sample", str(path), "-o", f"{ODD}.png"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert np.load(here / out).shape == (3, 1)
    (here / f"{ODD}.csv").write_text("broken,\n1,\n")
    assert "caf\\udce9.csv, line" in refused("train", data).encode("ascii", "backslashreplace").decode()


def test_class_folders_that_are_no_utf8(here: Path) -> None:
    for name in (b"caf\xe9", b"th\xc3\xa9", b"\xff\xfe"):
        folder = Path(os.fsdecode(b"data/" + name))
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((4, 4), 30 * i, np.uint8)).save(folder / os.fsdecode(b"%d\xe9.png" % i))
    path = fastgan.Trainer("data", steps=1, **SMALL).train(quiet=True)
    assert sample_run(path, 3)[1]["classes"] == 3


# Runs that cannot begin.


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write files beyond a size, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 700, 1500, 4000])
def test_a_run_that_finds_the_disk_full_leaves_nothing(here: Path, size: int) -> None:
    with files_of_at_most(size), pytest.raises(OSError, match=r"."):
        fastgan.Trainer("ring8", steps=2, runs="a/b/runs", **SMALL).train(quiet=True)
    assert list(here.iterdir()) == []


STAGES = [
    (RunFolder, "write_config"),
    (RunFolder, "log"),
    (state, "save_checkpoint"),
    (state.TrainState, "save"),
    (pictures, "save_samples"),
]


@pytest.mark.parametrize(("owner", "name"), STAGES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), KeyboardInterrupt()], ids=repr
)
def test_a_run_that_cannot_begin_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)):
        fastgan.Trainer("ring8", steps=2, **SMALL).train(quiet=True)
    assert list(here.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(here: Path) -> None:
    path = fastgan.Trainer("ring8", steps=2, **SMALL).train(quiet=True)
    with files_of_at_most(1500), pytest.raises(OSError, match=r"."):
        fastgan.Trainer.resume(steps=4).train(quiet=True)
    assert sorted(found.name for found in (path / "checkpoints").iterdir()) == ["step_0", "step_2"]
    fastgan.Trainer.resume(steps=4).train(quiet=True)
    assert complete_checkpoints(path / "checkpoints")[-1].name == "step_4"
    with files_of_at_most(60):
        assert "out cannot be written: x.npy" in refused("sample", "--out", "x.npy")
    assert not (here / "x.npy").exists()


@pytest.mark.parametrize("runs", ["file", "file/below", "/proc/none/runs"])
def test_folders_that_cannot_be_made(here: Path, runs: str) -> None:
    (here / "file").write_text("")
    refused("train", "ring8", "--steps", "1", "--runs", runs)
    assert [path.name for path in here.iterdir()] == ["file"]


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """A folder, in which all that is made beforehand belongs to somebody else where this is root, who may do all."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.seteuid(os.getuid())
            os.chdir(before)


def become_nobody() -> None:
    if os.getuid() == 0:
        os.seteuid(65534)


def test_what_may_not_be_written_or_read() -> None:
    with without_rights() as here:
        path = fastgan.Trainer("ring8", steps=1, **SMALL).train(quiet=True)
        (here / "secret.csv").write_text("1,2\n")
        for name in ("faces/a", "faces/b"):
            (here / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(here / name / "1.png")
        for file in (here, *here.rglob("*")):
            file.chmod(0o555 if file.is_dir() else 0o444)
        (here / "secret.csv").chmod(0)
        (here / "faces/b").chmod(0)
        before = sorted(here.glob("runs/**/*"))
        become_nobody()
        for words, about in (
            (["train", "ring8", "--steps", "1"], "runs/00001-ring8"),
            (["train", "ring8", "--steps", "1", "--runs", "others/runs"], "others"),
            (["train", "secret.csv"], "secret.csv cannot be read"),
            (["train", "faces"], "faces/b cannot be read"),  # and not one class less
            (["resume", "--steps", "2"], "00000-ring8"),
            (["sample", "--out", "x.npy"], "out cannot be written: x.npy"),
        ):
            sentence = refused(*words)
            assert about in sentence
            assert "Permission denied" in sentence
        assert sample_run(path, 2)[0].shape == (2, 2)
        os.seteuid(os.getuid())
        assert sorted(here.glob("runs/**/*")) == before
        for folder in (here, *(found for found in here.rglob("*") if found.is_dir())):
            folder.chmod(0o755)


@pytest.mark.deep
@pytest.mark.parametrize("left", ["nothing", "config", "half a checkpoint"])
def test_what_could_not_begin_does_not_stand_in_the_way(here: Path, left: str) -> None:
    """As a kill leaves it: the newest run is then the newest that has a checkpoint."""
    first = fastgan.Trainer("ring8", steps=2, **SMALL).train(quiet=True)
    half = here / "runs/00001-ring8"
    (half / "checkpoints").mkdir(parents=True)
    if left != "nothing":
        (half / "config.toml").write_bytes((first / "config.toml").read_bytes())
        (half / "dataset.json").write_bytes((first / "dataset.json").read_bytes())
    if left == "half a checkpoint":
        (half / "checkpoints/.step_0.writing").mkdir()
    assert CliRunner().invoke(app, ["sample", "--out", "x.npy"]).exit_code == 0
    assert fastgan.Trainer.resume(steps=3).train(quiet=True) == first
    assert fastgan.Trainer("ring8", steps=1, **SMALL).train(quiet=True).name == "00002-ring8"
    refused("sample", "1", "--out", "y.npy")
    with pytest.raises(CheckpointError, match="holds no run"):
        RunFolder.find(None, "none")


# What names a run.


def test_what_names_a_run(here: Path) -> None:
    for _ in range(2):
        path = fastgan.Trainer("ring8", steps=1, runs=Path("runs"), **SMALL).train(quiet=True)
    for name in (1, np.int64(1), "1", "00001", str(path), path, os.fsencode(path), path.resolve(), None):
        assert fastgan.Trainer.resume(name).run.path.resolve() == path.resolve()
        assert sample_run(name, 2)[0].shape == (2, 2)
    assert fastgan.Trainer.resume(0, runs=Path("runs")).run.path.name == "00000-ring8"
    for name in (2, -1, "2", "nothing", ""):
        with pytest.raises(CheckpointError, match=f"number of one in runs, not '{name}'"):
            fastgan.Trainer.resume(name)
    for name in (True, 1.0, [1]):
        with pytest.raises(TypeError, match="run must be a path, a number or None, not"):
            fastgan.Trainer.resume(name)


def test_sizes_that_no_machine_has() -> None:
    for words in (
        ["--latent-size", "999999999999999999999"],
        ["--latent-size", "2000000000", "--g-hidden", "2000000000"],
        ["--steps", "999999999999999999999"],
    ):
        refused("train", "ring8", *words)


# torch's defaults.


@contextlib.contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.deep
@pytest.mark.parametrize("data", ["digits", "table.csv"])
@pytest.mark.parametrize(
    ("dtype", "device"),
    [
        (torch.float64, "cpu"),
        pytest.param(torch.float16, "cpu", marks=pytest.mark.deep),
        pytest.param(torch.bfloat16, "cpu", marks=pytest.mark.deep),
        pytest.param(torch.float32, "meta", marks=pytest.mark.deep),
        (torch.float64, "meta"),
    ],
    ids=str,
)
def test_defaults_of_torch_change_nothing(data: str, dtype: torch.dtype, device: str) -> None:
    Path("table.csv").write_text("a,label\n" + "".join(f"{i * i},{i % 3}\n" for i in range(40)))
    options: dict[str, Any] = {"steps": 3, "device": "cpu", "r1_gamma": 0.1, "r1_every": 2, **SMALL}
    plain = fastgan.Trainer(data, **options)
    plain.train(quiet=True)
    with defaults(dtype, device):
        ours = fastgan.Trainer(data, **options)
        path = ours.train(quiet=True)
        drawn, _ = sample_run(path, 5)
        resumed = fastgan.Trainer.resume(path, steps=4)
        resumed.train(quiet=True)
    assert ours.dataset.samples.dtype == torch.float32
    assert torch.equal(ours.dataset.samples, plain.dataset.samples)
    for name, value in plain.generator.state_dict().items():
        assert torch.equal(value, ours.generator.state_dict()[name])
    assert torch.equal(drawn, plain.sample(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_networks_that_are_given_keep_their_dtype(dtype: torch.dtype) -> None:
    networks = {"generator": MLP([4, 8, 2], dtype=dtype), "discriminator": MLP([2, 8, 1], dtype=dtype)}
    ours = fastgan.Trainer("ring8", steps=3, **SMALL, **networks)
    ours.train(quiet=True)
    assert ours.generator[0].weight.dtype == dtype
    assert ours.sample(3).dtype == torch.float32
