"""The command line, run as a process; the many refusals, whose exit is the same, run inside this one."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import warm
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fastgan.__main__ import main
from fastgan.cli import app
from fastgan.data import load
from fastgan.training.checkpoint import complete_checkpoints
from fastgan.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--g-hidden", "16", "--d-hidden", "16", "--log-every", "5"]
NO_TARGET = "real_target must be 1.0, its default, for loss 'hinge', which takes no targets, not 0.9"


def environment() -> dict[str, str]:
    # One thread: the tests may share the machine, and two threads that wait for each other then crawl.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "120",
    }


def start(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastgan", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(*arguments: object, folder: Path, code: int = 0, fresh: bool = False) -> tuple[str, str]:
    """The output and the error output of a command that must end with the code, and with no traceback.

    A fresh one begins with the start of Python; else what fastgan imports is there.
    """
    if fresh:
        process = start(*arguments, folder=folder)
        out, err = process.communicate(timeout=400)
        found = process.returncode
    else:
        done = warm.run(["-m", "fastgan", *map(str, arguments)], folder, environment(), warm.OF_TRAINING)
        found, out, err = done.returncode, done.stdout, done.stderr
    assert found == code, out + err
    assert "Traceback" not in out + err
    return out, err


def refused(*arguments: object, words: tuple[str, ...] = ()) -> str:
    """The one line with which a command refuses, with exit code 2, run inside this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip()
    assert line.startswith("fastgan: ")
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 300  # On a machine with much else to do, the start alone takes a minute
    while time.monotonic() < deadline and process.poll() is None:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"it did not happen: {process.communicate()}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_resume_sample(here: Path) -> None:
    out, _ = run("train", "digits", "--steps", 10, *SMALL, folder=here)
    assert "step     10  D loss" in out
    assert "runs/00000-digits/samples" in out
    path = here / "runs/00000-digits"
    assert (path / "loss.png").exists()
    out, _ = run("resume", "--steps", 15, folder=here)
    assert "Resuming runs/00000-digits at step 10 of 15" in out
    assert "step     15  D loss" in out
    before = tree(path)
    run("sample", "0", "-n", 7, "--label", 3, "--seed", 5, "--out", "threes.npy", folder=here)
    samples = np.load(here / "threes.npy")
    assert samples.shape == (7, 8, 8)
    assert samples.min() >= 0
    assert samples.max() <= 16
    assert tree(path) == before


def test_version_help_and_unknown_options(here: Path) -> None:
    assert run("--version", folder=here, fresh=True)[0].startswith("fastgan 0.")
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for words in ("default: 15000", "0 to 1", "wasserstein or least_squares", "--no-ema", "default: 0.001"):
        assert words in result.output
    _, err = run("train", "ring8", "--bogus", folder=here, code=2)
    assert "No such option" in err
    assert "--bogus" in err
    for arguments in (["train"], ["train", "ring8", "--steps", "many"], ["dance"], ["resume", "--seed", "3"]):
        assert CliRunner().invoke(app, arguments).exit_code == 2
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "ring8", "--bogus"], "No such option: --bogus"),
        (["train"], "Missing argument"),
        (["train", "ring8", "--steps", "many"], "--steps"),
        (["train", "ring8", "digits"], "digits"),
        (["dance"], "No such command 'dance'"),
        (["resume", "--seed", "3"], "No such option: --seed"),
        (["sample", "--number", "1.5"], "--number"),
    ],
)
def test_usage_errors_are_one_sentence(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastgan", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert words in err
    assert err.startswith("fastgan: ")
    assert err.endswith("; see fastgan --help\n")
    assert err.count("\n") == 1


def test_help_tells_the_true_defaults() -> None:
    """The help of each option begins its defaults with that of TrainConfig, and then names that of ring8."""
    plain = asdict(TrainConfig.for_dataset(load("digits"), "digits"))
    ring = asdict(TrainConfig.for_dataset(load("ring8"), "ring8"))
    command = typer.main.get_command(app).commands["train"]
    options = {option.name: option.help for option in command.params}
    assert options.keys() - {"data"} == plain.keys() - {"data"}
    for name, text in options.items():
        if name in ("data", "conditional", "columns"):
            continue
        defaults = text.partition("(default: ")[2].rstrip(")").split("; ")
        for_ring = [part.partition("ring8, grid25: ")[2] for part in defaults if "ring8" in part] or defaults[:1]
        for told, true in ((defaults[0], plain[name]), (for_ring[0], ring[name])):
            if true is None or isinstance(true, bool):
                assert told == ("on" if true else "off"), name
            elif isinstance(true, (int, float)):
                assert float(told) == true, name
            else:
                assert told == ",".join(map(str, [true] if isinstance(true, str) else true)), name


def test_doctor(here: Path) -> None:
    out, _ = run("doctor", folder=here)
    for words in ("fastgan 0.", "PyTorch 2.", "reference: available", "cpu:", "cuda:", "backend in force"):
        assert words in out


@pytest.mark.deep
def test_resume_after_kill_9(here: Path) -> None:
    process = start("train", "ring8", "--steps", 10**6, "--checkpoint-every", 5, *SMALL, folder=here)
    checkpoints = here / "runs/00000-ring8/checkpoints"
    wait_for(
        lambda: any(path.name not in ("step_0", "step_5") for path in complete_checkpoints(checkpoints)),
        process,
    )
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # And one that was being written, as the kill may or may not have left one.
    half = checkpoints / ".step_999999.writing"
    half.mkdir()
    (half / "generator.safetensors").write_bytes(b"half")
    step = int(complete_checkpoints(checkpoints)[-1].name.removeprefix("step_"))
    out, _ = run("resume", "--steps", step + 7, folder=here)
    assert f"at step {step} of {step + 7}" in out
    assert complete_checkpoints(checkpoints)[-1].name == f"step_{step + 7}"
    assert not list(checkpoints.glob(".*"))
    rows = [json.loads(line)["step"] for line in (here / "runs/00000-ring8/metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    assert rows[-1] == step + 7


@pytest.mark.deep
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt(here: Path, number: signal.Signals, code: int) -> None:
    process = start("train", "ring8", "--steps", 10**6, *SMALL, folder=here)
    metrics = here / "runs/00000-ring8/metrics.jsonl"
    wait_for(metrics.exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert "Go on with: fastgan resume runs/00000-ring8" in out
    assert "Traceback" not in err
    newest = complete_checkpoints(here / "runs/00000-ring8/checkpoints")[-1].name
    assert newest == f"step_{json.loads(metrics.read_text().splitlines()[-1])['step']}"
    assert newest != "step_0"


@pytest.mark.deep
def test_divergence(here: Path) -> None:
    _, err = run("train", "ring8", "--steps", 50, "--g-lr", "1e38", *SMALL, folder=here, code=2)
    assert "training stopped at step" in err
    assert "generator" in err
    assert "runs/00000-ring8/checkpoints/step_0" in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in (here / "runs/00000-ring8/checkpoints").iterdir()] == ["step_0"]


@pytest.mark.deep
def test_without_the_extra(here: Path) -> None:
    """Where typer is not installed, the command says what to install; `import fastgan` imports none of it."""
    (here / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n")
    _, err = run("train", "ring8", folder=here, code=2, fresh=True)
    assert err.strip().endswith('the command line needs typer: pip install "fastgan[train]"')
    extras = ["typer", "rich", "safetensors", "matplotlib", "PIL", "tomlkit", "sklearn"]
    code = f"import fastgan, sys; print([name for name in {extras} if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=here, check=True, text=True, capture_output=True
    ).stdout
    assert out.strip() == "[]"


def test_the_benchmark_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "fastgan.bench":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.startswith("fastgan.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    path = list(sys.path)
    assert refused("bench", words=("comes with an installation", "python -m bench"))
    assert sys.path == path


def idx_folder(here: Path) -> Path:
    """A small MNIST."""
    folder = here / "mnist"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
    head = bytes((0, 0, 8, 3, 0, 0, 0, 60, 0, 0, 0, 6, 0, 0, 0, 6))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    labels = bytes((0, 0, 8, 1, 0, 0, 0, 60)) + bytes(i % 4 for i in range(60))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.mark.deep
def test_train_on_files(here: Path) -> None:
    folder = idx_folder(here)
    out, _ = run("train", "mnist", "--steps", 6, "--conditional", "--batch-size", 16, *SMALL, folder=here)
    assert "60 samples of mnist" in out
    run("sample", "-o", "grid.png", "-n", 4, folder=here)
    assert Image.open(here / "grid.png").size == (4 * 54 + 5 * 4, 54 + 2 * 4)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    before = tree(here)
    _, err = run("train", "mnist", *SMALL, folder=here, code=2)
    assert len(err.strip().splitlines()) == 1
    assert "train-images-idx3-ubyte.gz is truncated" in err
    assert tree(here) == before


def test_bad_data_is_refused_in_one_line(here: Path) -> None:
    table = np.random.default_rng(0).normal(size=(40, 3))
    np.save(here / "good.npy", table)
    np.savez(here / "good.npz", samples=table, labels=np.arange(40) % 2)
    (here / "cut.npy").write_bytes((here / "good.npy").read_bytes()[:-9])
    (here / "cut.npz").write_bytes((here / "good.npz").read_bytes()[:-9])
    table[7, 2] = np.nan
    np.save(here / "nan.npy", table)
    (here / "bad.csv").write_text("a,label\n1,0\n2,zero\n")
    (here / "labels.csv").write_text("a,label\n1,0\n2,9\n")
    (here / "pictures").mkdir()
    (here / "pictures/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (here / "empty").mkdir()
    before = tree(here)
    for name, words in (
        ("nothing", ["'nothing'"]),
        ("cut.npy", ["cut.npy", "byte"]),
        ("cut.npz", ["cut.npz", "no intact .npz"]),
        ("nan.npy", ["nan.npy", "row 7, column 2"]),
        ("bad.csv", ["bad.csv", "line 3, column 2", "'zero'"]),
        ("labels.csv", ["labels.csv", "label 9 at index 1", "out of range"]),
        ("pictures", ["a.png", "no intact image"]),
        ("empty", ["empty holds neither"]),
    ):
        refused("train", name, words=tuple(words))
    assert tree(here) == before
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--real-target", "1.2"], "real_target must be in [0, 1], not 1.2"),
        (["--fake-target", "-1"], "fake_target must be in [0, 1], not -1.0"),
        (["--g-lr", "0"], "g_lr must be finite and greater than 0, not 0.0"),
        (["--d-lr", "-0.1"], "d_lr must be finite and greater than 0, not -0.1"),
        (
            ["--batch-size", "99999"],
            "batch_size must be at most 25000, the number of samples in ring8, not 99999",
        ),
        (["--latent-size", "0"], "latent_size must be at least 1, not 0"),
        (["--g-hidden", "16,x"], "g_hidden must be widths separated by commas, such as 256,512, not '16,x'"),
        (
            ["--loss", "wgan"],
            "loss must be one of non_saturating, minimax, relativistic, hinge, wasserstein, least_squares, not 'wgan'",
        ),
        (
            ["--loss", "hinge", "--real-target", "0.9"],
            NO_TARGET,
        ),
        (["--r2-gamma", "-1"], "r2_gamma must be finite and at least 0, not -1.0"),
        (["--gp-weight", "-1"], "gp_weight must be finite and at least 0, not -1.0"),
        (["--gp-center", "nan"], "gp_center must be finite and at least 0, not nan"),
        (["--pac", "0"], "pac must be at least 1, not 0"),
        (["--pac", "10", "--batch-size", "64"], "batch_size must be a multiple of pac=10, not 64"),
        (["--clip-grad-norm", "0"], "clip_grad_norm must be finite and greater than 0, not 0.0"),
        (["--instance-noise", "-0.1"], "instance_noise must be finite and at least 0, not -0.1"),
        (["--instance-noise-steps", "-1"], "instance_noise_steps must be at least 0, not -1"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        (["--steps", "0"], "steps must be at least 1, not 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(here: Path, arguments: list[str], sentence: str) -> None:
    assert refused("train", "ring8", *arguments) == f"fastgan: {sentence}"
    assert list(here.iterdir()) == []


def test_bad_checkpoints_leave_the_run_as_it_is(here: Path) -> None:
    refused("resume", words=("runs holds no run",))
    result = CliRunner().invoke(app, ["train", "ring8", "--steps", "6", *SMALL])
    assert result.exit_code == 0, result.output
    path = here / "runs/00000-ring8"
    good = tree(path)
    newest = path / "checkpoints/step_6"
    weights = newest / "generator.safetensors"

    def shape() -> None:
        save_file({**load_file(weights), "0.weight": np.zeros((3, 2), np.float32)}, weights)

    def version() -> None:
        manifest = json.loads((newest / "checkpoint.json").read_text())
        (newest / "checkpoint.json").write_text(json.dumps({**manifest, "format_version": 99}))

    for damage, words in (
        (lambda: weights.write_bytes(weights.read_bytes()[:-8]), ("generator.safetensors", "truncated")),
        (shape, ("0.weight", "shape (3, 2)", "(16, 2)")),
        (version, ("checkpoint.json", "format version 99", "version 1")),
        (lambda: (newest / "ema.safetensors").unlink(), ("ema.safetensors",)),
        (lambda: (path / "config.toml").unlink(), ("config.toml",)),
        (lambda: (path / "dataset.json").write_text("{}"), ("dataset.json",)),
    ):
        damage()
        damaged = tree(path)
        refused("resume", "0", words=words)
        refused("sample", path, words=words)
        assert tree(path) == damaged
        for name, content in good.items():
            (path / name).write_bytes(content)
    refused("resume", "5", words=("not '5'",))
    refused("resume", path, "--steps", 3, words=("steps must be at least 6",))
    refused("sample", "--label", 0, words=("not conditional",))
    refused("sample", "-n", 0, words=("count must be at least 1",))
    refused("sample", "-o", "x.jpg", words=(".png, .gif, .npy, .npz or .csv",))
    assert tree(path) == good
    assert sorted(found.name for found in here.iterdir()) == ["runs"]
