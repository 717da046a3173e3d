"""A run's generator in the formats that others read: torch.export, ONNX, and a state_dict of plain layers.

What is written loads without fastgan. The model is deterministic: what `fastgan sample` draws is an input, the latents
and, of a table, the Gumbel draws, so that the same inputs give the same samples everywhere.

generator.pt2     `torch.export.load(file).module()(latent, label=..., gumbel=...)`
generator.onnx    the same inputs, for onnxruntime and others
generator.pt      the state_dict of an nn.Sequential of `layers` in the card; what follows these is in `after_layers`
model_card.json   layers, inputs, output, the data's units, and where the model is from
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import reference
from fastgan.nn import SegmentedActivation
from fastgan.training.run_samples import RunGenerator, open_run
from fastgan.training.sample_files import whole_file
from fastgan.version import __version__

FORMATS = ("pt2", "onnx", "state_dict")
CARD = "model_card.json"
CARD_VERSION = 1
# Of the largest sample, or of 1 where that is smaller: how far a written model may be from the run's generator.
BOUND = 1e-5
# Options of a run that say nothing of the model, or name folders of the machine that it was trained on.
_LEFT_OUT = ("data", "runs", "device", "report")


class ExportError(RuntimeError):
    """A model cannot be written, or does not give the samples of the run's generator."""


class PlainGenerator(nn.Module):
    """A generator of plain torch layers and ops, with what it draws as inputs.

    Args:
        layers: maps (batch, latent [+ classes]) to (batch, data).
        classes: of a conditional generator, else 0.
        data_scale: by which samples are divided.
        last: what the layers are followed by, of a table.
    """

    def __init__(
        self, layers: nn.Sequential, classes: int, data_scale: float, last: SegmentedActivation | None
    ) -> None:
        super().__init__()
        self.layers = layers
        self.data_scale = data_scale
        self.segments = None if last is None else (last.widths, last.kinds, last.tau)
        self.classes: Tensor | None
        self.register_buffer("classes", torch.arange(classes) if classes else None, persistent=True)

    def forward(self, latent: Tensor, label: Tensor | None = None, gumbel: Tensor | None = None) -> Tensor:
        """Samples (batch, data) of latents (batch, latent), labels (batch,) int64 and Gumbel draws (batch, columns)."""
        if self.classes is not None:
            assert label is not None
            # Looked up, so that a label that is none is an error and no row of zeros.
            asked = self.classes.index_select(0, label)
            latent = torch.cat([latent, (asked.unsqueeze(1) == self.classes).to(latent.dtype)], dim=1)
        samples: Tensor = self.layers(latent)
        if self.data_scale != 1:
            samples = samples / self.data_scale
        if self.segments is not None:
            widths, kinds, tau = self.segments
            samples = reference.segmented_activation(samples, widths, kinds, tau, gumbel)
        return samples


def export_run(
    run: str | os.PathLike[str] | int | None,
    *,
    out: str | os.PathLike[str] | None = None,
    formats: str = "all",
    checkpoint: str | int | None = None,
    runs: str | os.PathLike[str] = "runs",
) -> tuple[dict[Path, float | None], str]:
    """Write the generator of a run, its EMA generator if it has one, and a card that says how to use it.

    Each model is run after it was written, and compared with the run's own generator.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        out: the folder of the files; None for `export` in the run folder.
        formats: `pt2`, `onnx`, `state_dict` or `all`.
        checkpoint: the step of one that is kept, `best`, or `newest`, which None is too.
        runs: the folder of run folders.

    Returns:
        The files, each model's with the largest difference of a sample from the run's generator, None where it was not
        run; and a sentence about what was left out, or nothing.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        ExportError: a written model gives other samples.
        TypeError, ValueError: formats or checkpoint is out of range, or the format needs a package that is missing.
        OSError: a file cannot be written.
    """
    if formats not in (*FORMATS, "all"):
        raise ValueError(f"format must be {', '.join(FORMATS)} or all, not {formats!r}")
    missing = next((name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None), None)
    lacks = f'format onnx needs {missing}: pip install "fastgan[export]"'
    if missing and formats == "onnx":
        raise ValueError(lacks)
    wanted = [name for name in FORMATS if formats in (name, "all") and not (name == "onnx" and missing)]
    opened = open_run(run, runs, checkpoint)
    folder = opened.folder.path / "export" if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, not the file {str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    model, inputs = plain_generator(opened)
    samples = model(**inputs)
    files: dict[Path, float | None] = {}
    digests = {}
    write: dict[str, tuple[str, Callable[..., tuple[bytes, Tensor | None]]]] = {
        "pt2": ("generator.pt2", _pt2),
        "onnx": ("generator.onnx", _onnx),
        "state_dict": ("generator.pt", _state_dict),
    }
    for name in wanted:
        file, make = write[name]
        content, found = make(model, inputs)
        files[folder / file] = None if found is None else _difference(file, found, samples)
        with whole_file(folder / file) as opened_file:
            opened_file.write(content)
        digests[file] = {"format": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with whole_file(folder / CARD) as opened_file:
        opened_file.write((json.dumps(model_card(opened, model, digests), indent=1) + "\n").encode())
    files[folder / CARD] = None
    return files, f"generator.onnx is left out: {lacks}" if missing and formats == "all" else ""


def plain_generator(opened: RunGenerator) -> tuple[PlainGenerator, dict[str, Tensor]]:
    """The generator of a run in plain layers, in eval mode, and inputs of a batch of 5, each by its name."""
    modules = list(opened.network.children())
    last = modules.pop() if modules and isinstance(modules[-1], SegmentedActivation) else None
    classes = opened.num_classes if opened.config.conditional else 0
    model = PlainGenerator(
        nn.Sequential(*modules),
        classes,
        opened.config.data_scale,
        last if isinstance(last, SegmentedActivation) else None,
    ).eval()
    model.requires_grad_(False)
    seeded = torch.Generator("cpu").manual_seed(0)
    inputs = {"latent": torch.randn(5, opened.config.latent_size, generator=seeded, device="cpu")}
    if classes:
        allowed = torch.tensor(opened.labels if opened.table is None else range(classes), device="cpu")
        inputs["label"] = allowed[torch.arange(5, device="cpu") % len(allowed)]
    if _gumbel_columns(last):
        uniform = torch.rand(5, _gumbel_columns(last), generator=seeded, device="cpu")
        inputs["gumbel"] = -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()
    return model, inputs


def model_card(opened: RunGenerator, model: PlainGenerator, files: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of the files needs, and where they are from, as JSON has it."""
    config, facts, table = opened.config, opened.facts, opened.table
    batch = "batch"
    scale = "" if config.latent_scale == 1 else f", times {config.latent_scale:g} as fastgan sample draws it"
    inputs: list[dict[str, Any]] = [
        {
            **{"name": "latent", "shape": [batch, config.latent_size], "dtype": "float32"},
            "distribution": f"standard normal{scale}",
        }
    ]
    after: list[dict[str, Any]] = []
    classes = 0 if model.classes is None else len(model.classes)
    if classes:
        allowed: list[Any] = opened.labels
        if table is not None:
            discrete = [column for column in table.columns if column.kind == "discrete"]
            allowed = [
                {"column": column.name, "level": level, "rows": rows}
                for column in discrete
                for level, rows in zip(column.levels, column.counts, strict=True)
            ]
            allowed = [{"label": i, **level} for i, level in enumerate(allowed)]
        inputs.append(
            {
                **{"name": "label", "shape": [batch], "dtype": "int64", "classes": classes, "allowed": allowed},
                "layers": "appended to latent as a one-hot vector of so many classes",
            }
        )
    if config.data_scale != 1:
        after.append({"operation": "divide", "by": config.data_scale})
    if model.segments is not None:
        widths, kinds, tau = model.segments
        segments, start, used = [], 0, 0
        for width, kind in zip(widths, kinds, strict=True):
            segment: dict[str, Any] = {"first": start, "width": width, "activation": kind}
            if kind == "gumbel_softmax":
                segment["first_of_gumbel"] = used
                used += width
            segments.append(segment)
            start += width
        after.append({"operation": "segments", "tau": tau, "segments": segments})
        if used:
            inputs.append(
                {
                    **{"name": "gumbel", "shape": [batch, used], "dtype": "float32"},
                    "distribution": "standard Gumbel: -log(-log(u)) of u uniform in (0, 1); zeros give the likeliest "
                    "level",
                    "layers": "not an input of the layers: gumbel_softmax is softmax((x + gumbel) / tau)",
                }
            )
    return {
        "card": "a generator written by fastgan export",
        "card_version": CARD_VERSION,
        "files": dict(files),
        "layers": [_layer(module) for module in model.layers],
        "after_layers": after,
        "inputs": inputs,
        "output": {"name": "samples", "shape": [batch, facts["width"]], "dtype": "float32"},
        "data": _data_card(opened),
        "provenance": {
            "run": opened.folder.path.resolve().name,
            "step": opened.step,
            "weights": opened.weights,
            "config": {name: value for name, value in config.as_dict().items() if name not in _LEFT_OUT},
            "metrics": next(
                (row for row in reversed(opened.folder.read_metrics()) if row["step"] <= opened.step), None
            ),
            "versions": {
                **{"fastgan": __version__, "torch": torch.__version__, "python": platform.python_version()},
                **({"onnx": metadata.version("onnx")} if "generator.onnx" in files else {}),
            },
        },
    }


def _data_card(opened: RunGenerator) -> dict[str, Any]:
    """What the data was, and how samples become values in its own units."""
    facts, table = opened.facts, opened.table
    known = {name: facts[name] for name in ("name", "count", "width", "image_shape", "fingerprint")}
    if table is None:
        units = {"units": "value = sample * scale + offset", "scale": facts["scale"], "offset": facts["offset"]}
        if "layout" in facts:
            units["columns"] = [column["name"] for column in facts["layout"]["columns"]]
        return {**known, **units}
    columns = []
    for i, column in enumerate(table.columns):
        described = column.as_json()
        if i in table.starts:
            start, widths = table.starts[i], column.widths
            if column.modes is not None:
                described["value"] = start
            described["first_level"], described["levels_or_modes"] = start + len(widths) - 1, widths[-1]
        columns.append(described)
    units = {
        "units": "a level is that of the largest of its columns; a number is mean + 4 std * value of the largest of "
        "its modes (Gaussians, then spikes, then missing), within low and high",
        "columns": columns,
    }
    return {**known, **units}


def _layer(module: nn.Module) -> dict[str, Any]:
    """A plain layer of torch as `getattr(torch.nn, layer["name"])(**layer["arguments"])` makes it."""
    if type(module) is nn.Linear:
        arguments = {
            **{"in_features": module.in_features, "out_features": module.out_features},
            "bias": module.bias is not None,
        }
        return {"name": "Linear", "arguments": arguments}
    known = next((each for each in reference.ACTIVATIONS.values() if each.module is type(module)), None)
    if known is None:
        raise ExportError(f"the generator has a {type(module).__name__}, which is no plain layer of a run's networks")
    arguments = {name: getattr(module, name) for name in known.options if name != "inplace"}
    return {"name": type(module).__name__, "arguments": arguments}


def _gumbel_columns(last: nn.Module | None) -> int:
    if not isinstance(last, SegmentedActivation):
        return 0
    return sum(width for width, kind in zip(last.widths, last.kinds, strict=True) if kind == "gumbel_softmax")


def _exported(model: PlainGenerator, inputs: Mapping[str, Tensor]) -> Any:
    batch = torch.export.Dim("batch")
    rest = {name: value for name, value in inputs.items() if name != "latent"}
    shapes: dict[str, Any] = {name: {0: batch} for name in inputs}
    return torch.export.export(model, (inputs["latent"],), rest, dynamic_shapes=shapes)


def _pt2(model: PlainGenerator, inputs: Mapping[str, Tensor]) -> tuple[bytes, Tensor]:
    content = io.BytesIO()
    torch.export.save(_exported(model, inputs), content)
    content.seek(0)
    rest = {name: value for name, value in inputs.items() if name != "latent"}
    found: Tensor = torch.export.load(content).module()(inputs["latent"], **rest)
    return content.getvalue(), found


def _onnx(model: PlainGenerator, inputs: Mapping[str, Tensor]) -> tuple[bytes, Tensor | None]:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # tells of packages that are not needed
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            program = torch.onnx.export(
                _exported(model, inputs), output_names=["samples"], dynamo=True, verbose=False, external_data=False
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return content, None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["samples"], {name: value.numpy() for name, value in inputs.items()})
    return content, torch.from_numpy(found)


def _state_dict(model: PlainGenerator, inputs: Mapping[str, Tensor]) -> tuple[bytes, Tensor]:
    content = io.BytesIO()
    torch.save({name: value.contiguous().clone() for name, value in model.layers.state_dict().items()}, content)
    content.seek(0)
    layers = (_layer(module) for module in model.layers)
    again = nn.Sequential(*(getattr(nn, layer["name"])(**layer["arguments"]) for layer in layers))
    again.load_state_dict(torch.load(content, weights_only=True))
    last = None if model.segments is None else SegmentedActivation(*model.segments)
    classes = 0 if model.classes is None else len(model.classes)
    with torch.no_grad():
        found: Tensor = PlainGenerator(again, classes, model.data_scale, last)(**inputs)
    return content.getvalue(), found


def _difference(file: str, found: Tensor, samples: Tensor) -> float:
    """The largest difference of two batches of samples; ExportError where it is no rounding."""
    difference = float((found - samples).abs().max())
    bound = BOUND * max(1.0, float(samples.abs().max()))
    if not difference <= bound:
        raise ExportError(
            f"{file} is not written: its samples differ from those of the run's generator by {difference:.3g}, more "
            f"than {bound:.3g}"
        )
    return difference
