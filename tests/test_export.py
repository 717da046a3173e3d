"""`fastgan export`: what is written gives the samples of the run, in processes that cannot import fastgan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import assert_close_in_float64, assert_within_bound
from torch import Tensor, nn
from typer.testing import CliRunner

import fastgan
from fastgan import reference
from fastgan.cli import app
from fastgan.nn import MLP, SegmentedActivation
from fastgan.training.export import BOUND, ExportError, export_run, plain_generator
from fastgan.training.run_samples import open_run, sample_run

pytestmark = [pytest.mark.above_kernels, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SMALL: dict[str, Any] = {"steps": 6, "g_hidden": (12, 10), "d_hidden": (8,), "ema_decay": 0.5, "log_every": 2}
TABLE = "age,pay,job\n" + "".join(f"{20 + i * 7 % 50},{(i * i) % 97 + 0.5},{'abc'[i % 3]}x\n" for i in range(120))
RUNS = ("plain", "conditional", "table", "table without conditions")

# Loads a format where fastgan cannot be imported, as docs/export.md shows it. argv: format, folder, inputs, output.
LOADS = """
import sys
class Nothing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "fastgan":
            raise ImportError("fastgan must not be imported")
sys.meta_path.insert(0, Nothing)
import json
import numpy as np
kind, folder, inputs, output = sys.argv[1:]
inputs = dict(np.load(inputs))
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(f"{folder}/generator.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == list(inputs)
    samples = session.run(["samples"], inputs)[0]
    assert "torch" not in sys.modules
else:
    import torch
    inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
if kind == "pt2":
    model = torch.export.load(f"{folder}/generator.pt2").module()
    latent = inputs.pop("latent")
    samples = model(latent, **inputs).numpy()
if kind == "state_dict":
    card = json.load(open(f"{folder}/model_card.json"))
    layers = [getattr(torch.nn, layer["name"])(**layer["arguments"]) for layer in card["layers"]]
    model = torch.nn.Sequential(*layers)
    model.load_state_dict(torch.load(f"{folder}/generator.pt", weights_only=True))
    x = inputs["latent"]
    if "label" in inputs:
        classes = next(each["classes"] for each in card["inputs"] if each["name"] == "label")
        x = torch.cat([x, torch.nn.functional.one_hot(inputs["label"], classes)], dim=1)
    with torch.no_grad():
        x = model(x)
    for step in card["after_layers"]:
        if step["operation"] == "divide":
            x = x / step["by"]
        else:
            parts = []
            for segment in step["segments"]:
                part = x[:, segment["first"] : segment["first"] + segment["width"]]
                if segment["activation"] == "tanh":
                    part = part.tanh()
                elif segment["activation"] == "gumbel_softmax":
                    at = segment["first_of_gumbel"]
                    gumbel = inputs["gumbel"][:, at : at + segment["width"]]
                    part = ((part + gumbel) / step["tau"]).softmax(dim=1)
                parts.append(part)
            x = torch.cat(parts, dim=1)
    samples = x.numpy()
np.save(output, samples)
assert not [name for name in sys.modules if name.partition(".")[0] == "fastgan"]
"""


class Made(dict[str, Path]):
    """Folders by name, each made when it is first asked for."""

    def __init__(self, make: Callable[[str], Path]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Path:
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that have trained for some steps, so that the average is not the generator."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "x.csv").write_text(TABLE)
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": ("ring8", {"data_scale": 3.0}),
        "conditional": ("digits", {}),
        "table": (folder / "x.csv", {"batch_size": 20}),
        "table without conditions": (folder / "x.csv", {"conditional": False, "batch_size": 20}),
    }

    def make(name: str) -> Path:
        data, more = options[name]
        return fastgan.Trainer(data, **{**SMALL, **more}, runs=str(folder / "runs")).train(quiet=True)

    return Made(make)


def inputs_of(run: Path, count: int, seed: int) -> dict[str, Tensor]:
    """What `sample_run(run, count, seed=seed)` draws, by the rule that docs/export.md gives."""
    opened = open_run(run)
    noise = torch.Generator().manual_seed(seed)
    inputs = {"latent": torch.randn(count, opened.config.latent_size, generator=noise)}
    if opened.config.conditional:
        if opened.table is None:
            inputs["label"] = torch.arange(count) % opened.num_classes
        else:
            shares = torch.tensor([rows for levels in opened.table.counts for rows in levels], dtype=torch.float64)
            bounds = (shares / shares.sum()).cumsum(0)
            draws = torch.rand(count, generator=noise, dtype=torch.float64)
            inputs["label"] = torch.searchsorted(bounds, draws, right=True).clamp_(max=len(bounds) - 1)
    last = opened.network[-1]
    if isinstance(last, SegmentedActivation):
        columns = sum(w for w, kind in zip(last.widths, last.kinds, strict=True) if kind == "gumbel_softmax")
        uniform = torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))
        inputs["gumbel"] = -(-uniform.clamp_min(2.0**-126).log()).log()
    return inputs


def defined(run: Path, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """The samples by PyTorch's own layers, of the parameters that the run has saved and the definitions of the ops."""
    opened = open_run(run)
    layers = nn.Sequential(*[m for m in opened.network if not isinstance(m, SegmentedActivation)]).to(dtype)
    x = inputs["latent"].to(dtype)
    if "label" in inputs:
        x = torch.cat([x, nn.functional.one_hot(inputs["label"], opened.num_classes)], dim=1)
    with torch.no_grad():
        x = nn.Sequential.forward(layers, x) / opened.config.data_scale
    last = opened.network[-1]
    if isinstance(last, SegmentedActivation):
        x = reference.segmented_activation(x, last.widths, last.kinds, last.tau, inputs["gumbel"].to(dtype))
    return x


def elsewhere(kind: str, folder: Path, inputs: dict[str, Tensor], tmp_path: Path) -> Tensor:
    np.savez(tmp_path / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [kind, str(folder), str(tmp_path / "inputs.npz"), str(tmp_path / "samples.npy")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(tmp_path / "samples.npy"))


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path]) -> dict[str, Path]:
    """Where each run's export is, in the formats that need no further package."""

    def make(name: str) -> Path:
        for kind in ("pt2", "state_dict"):
            export_run(runs[name], formats=kind)
        return runs[name] / "export"

    return Made(make)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["pt2", "onnx", "state_dict"])
@pytest.mark.deep
@pytest.mark.each_value
def test_the_same_samples_where_fastgan_cannot_be_imported(
    kind: str, name: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    files, left_out = export_run(runs[name], out=tmp_path / "out", formats=kind)
    assert not left_out
    for count in (7,) if kind == "pt2" else (7, 1):  # other batches than that of the export
        inputs = inputs_of(runs[name], count, seed=3)
        found, true = elsewhere(kind, tmp_path / "out", inputs, tmp_path), defined(runs[name], inputs)
        drawn, _ = sample_run(runs[name], count, seed=3)
        torchs = defined(runs[name], inputs, torch.float32)
        assert_within_bound(found, torchs, true)
        assert_within_bound(drawn, torchs, true)
    assert all(difference is None or difference <= BOUND for difference in files.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.deep if name in ("plain", RUNS[3]) else ()) for name in RUNS]
)
def test_what_is_written_is_what_sample_draws(name: str, exported: dict[str, Path], runs: dict[str, Path]) -> None:
    model = torch.export.load(exported[name] / "generator.pt2").module()
    for count in (9, 1):
        inputs = inputs_of(runs[name], count, seed=5)
        rest = {key: value for key, value in inputs.items() if key != "latent"}
        found = model(inputs["latent"], **rest)
        true, (drawn, _) = defined(runs[name], inputs), sample_run(runs[name], count, seed=5)
        torchs = defined(runs[name], inputs, torch.float32)
        assert_within_bound(found, torchs, true)
        assert_within_bound(drawn, torchs, true)
    # The average's, which is not the generator's.
    opened = open_run(runs[name])
    saved = torch.load(exported[name] / "generator.pt", weights_only=True)
    assert opened.weights == "ema"
    assert all(torch.equal(saved[key], value) for key, value in opened.network.state_dict().items())
    assert [key for key in saved] == list(opened.network.state_dict())


def test_a_program_of_ordinary_ops(exported: dict[str, Path]) -> None:
    for folder in (exported["conditional"], exported["table"]):
        graph = torch.export.load(folder / "generator.pt2").graph
        called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
        assert called
        assert all(name.startswith("aten.") or name == "<built-in function getitem>" for name in called), called


def test_the_card(exported: dict[str, Path], runs: dict[str, Path]) -> None:
    card = json.loads((exported["table"] / "model_card.json").read_text())
    assert [each["name"] for each in card["inputs"]] == ["latent", "label", "gumbel"]
    assert card["inputs"][1]["allowed"][2] == {"label": 2, "column": "job", "level": "cx", "rows": 40}
    assert card["provenance"]["step"] == 6
    assert card["provenance"]["metrics"]["step"] == 6
    assert card["provenance"]["versions"]["torch"] == torch.__version__
    assert set(card["files"]) == {"generator.pt"}  # of the last export
    assert str(runs["table"].parent) not in json.dumps(card)
    assert [column.get("value") for column in card["data"]["columns"]] == [0, 1 + card_width(card, 0), None]


def card_width(card: Any, column: int) -> int:
    return int(card["data"]["columns"][column]["levels_or_modes"])


@pytest.mark.deep
def test_the_card_of_numbers(exported: dict[str, Path], runs: dict[str, Path]) -> None:
    card = json.loads((exported["plain"] / "model_card.json").read_text())
    assert card["after_layers"] == [{"operation": "divide", "by": 3.0}]
    _, facts = sample_run(runs["plain"], 3)
    assert all(card["data"][name] == facts[name] for name in ("scale", "offset", "width", "image_shape"))


def test_the_card_tells_the_scale_of_latents(tmp_path: Path) -> None:
    for scale, words in ((1.0, "standard normal"), (1.5, "standard normal, times 1.5 as fastgan sample draws it")):
        path = fastgan.Trainer("ring8", **SMALL, latent_scale=scale, runs=str(tmp_path / "runs")).train(quiet=True)
        export_run(path, out=tmp_path / "out", formats="state_dict")
        card = json.loads((tmp_path / "out/model_card.json").read_text())
        assert card["inputs"][0]["distribution"] == words


def test_a_label_that_is_none_is_an_error(exported: dict[str, Path]) -> None:
    model = torch.export.load(exported["conditional"] / "generator.pt2").module()
    for label in (10, -1):
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.zeros(2, 64), label=torch.tensor([0, label]))


def test_checkpoints_and_refusals(runs: dict[str, Path], tmp_path: Path) -> None:
    first = fastgan.Trainer("ring8", **{**SMALL, "checkpoint_every": 2}, runs=str(tmp_path)).train(quiet=True)
    for checkpoint, step in (("4", 4), (2, 2), ("newest", 6), (None, 6), ("best", None)):
        export_run(first, out=tmp_path / "out", formats="state_dict", checkpoint=checkpoint)
        card = json.loads((tmp_path / "out/model_card.json").read_text())
        assert step is None or card["provenance"]["step"] == step
        saved = torch.load(tmp_path / "out/generator.pt", weights_only=True)
        opened = open_run(first, checkpoint=checkpoint)
        assert all(torch.equal(saved[name], value) for name, value in opened.network.state_dict().items())
    for words, sentence in (
        (["--checkpoint", "5"], "checkpoint must be best, newest or a step that"),
        (["--format", "h5"], "format must be pt2, onnx, state_dict or all, not 'h5'"),
        (["--out", str(first / "config.toml")], "out must be a folder, not the file"),
    ):
        result = CliRunner().invoke(app, ["export", str(first), *words])
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1
    result = CliRunner().invoke(app, ["export", str(first), "--format", "state_dict"])
    assert result.exit_code == 0, result.output
    assert "generator.pt: " in result.output
    assert "of the run's own samples" in result.output


def test_without_onnx(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find(name, *a))
    with pytest.raises(ValueError, match=r'format onnx needs onnx: pip install "fastgan\[export\]"'):
        export_run(runs["conditional"], formats="onnx")
    files, left_out = export_run(runs["conditional"], out=tmp_path)
    assert [file.name for file in files] == ["generator.pt2", "generator.pt", "model_card.json"]
    assert left_out == 'generator.onnx is left out: format onnx needs onnx: pip install "fastgan[export]"'


def test_a_model_that_gives_other_samples_is_not_written(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgan.training import export

    right = export._state_dict

    def wrong(model: Any, inputs: Any) -> Any:
        content, found = right(model, inputs)
        return content, found + 0.01

    monkeypatch.setattr(export, "_state_dict", wrong)
    with pytest.raises(ExportError, match=r"generator\.pt is not written: its samples differ"):
        export_run(runs["conditional"], out=tmp_path / "out", formats="state_dict")
    assert not (tmp_path / "out/generator.pt").exists()
    assert not list((tmp_path / "out").iterdir())


def test_the_plain_generator_is_of_torchs_own_classes(runs: dict[str, Path]) -> None:
    model, _ = plain_generator(open_run(runs["table"]))
    assert {type(m).__module__.partition(".")[0] for m in model.layers.modules()} == {"torch"}


# A SegmentedActivation itself, in the hands of torch's recorders.

SEGMENTS = ((1, 4, 2, 3), ("tanh", "gumbel_softmax", "identity", "softmax"))
RECORDED: dict[str, Any] = {
    "trace": lambda m, x: torch.jit.trace(m, x, check_trace=False),
    "script": lambda m, x: torch.jit.script(m),
    "export": lambda m, x: torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module(),
    "export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_generator_of_tables_draws_the_same(name: str) -> None:
    torch.manual_seed(0)
    generator = MLP([4, 8, 10], dtype=torch.float64)
    generator.append(SegmentedActivation(*SEGMENTS))
    x = torch.randn(3, 4, dtype=torch.float64)
    recorded = RECORDED[name](generator, x)
    torch.manual_seed(1)
    expected = generator(x)
    torch.manual_seed(1)
    assert_close_in_float64(recorded(x), expected, bound=1e-14)
    text = str(recorded.inlined_graph) if hasattr(recorded, "inlined_graph") else str(recorded.graph)
    assert "fastgan::" not in text
    assert "ops.fastgan" not in text
    assert "softmax" in text


def test_a_scripted_one_refuses_other_columns() -> None:
    scripted = torch.jit.script(SegmentedActivation(*SEGMENTS))
    with pytest.raises(torch.jit.Error, match="input must have 10 columns, as widths say, not 11"):
        scripted(torch.randn(2, 11))
    with pytest.raises(torch.jit.Error, match="noise must have 4 columns, those of gumbel_softmax, not 5"):
        scripted(torch.randn(2, 10), torch.randn(2, 5))
