"""A run on one HTML page that needs no other file and no network: curves, pictures, metrics, warnings, options."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastgan import reference
from fastgan.data.dataset import Dataset
from fastgan.training import pictures
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import RunFolder

# Pictures of samples over time: the first, the last, and some between.
_PICTURES = 6
# No picture, script or font from anywhere else, whatever names the data has.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; } figure { margin: 0; } figcaption { color: #666; font-size: 0.85rem; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
table { border-collapse: collapse; } td { padding: 0.15rem 0.8rem 0.15rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff3d6; border-left: 4px solid #d99a00; padding: 0.4rem 0.8rem; margin: 0.5rem 0; }
.good { background: #e6f4e6; border-left: 4px solid #3a8f3a; padding: 0.4rem 0.8rem; }
.changed { font-weight: 600; } .options { columns: 2; }
"""


def write(
    run: RunFolder, config: TrainConfig, dataset: Dataset, warnings: Sequence[Mapping[str, Any]], plan: str
) -> Path:
    """Write run.report from the run folder's files.

    Args:
        run: the folder, with metrics and pictures.
        config: the options in force.
        dataset: the data.
        warnings: of the Diagnosis.
        plan: of the TrainStep.

    Returns:
        Its path.

    Raises:
        OSError: it cannot be written.
    """
    rows = run.read_metrics()
    last: Mapping[str, float] = rows[-1] if rows else {}
    title = f"{run.path.name}: {config.loss.replace('_', '-')} GAN on {dataset.name}"
    done = f"{int(last.get('step', 0)):,} of {config.steps:,} steps in {_duration(last.get('seconds', 0.0))}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{len(dataset):,} samples of {dataset.width} values; {done}. Plan: {_text(plan)}.</p>",
        "<h2>Warnings</h2>",
        *(f'<div class="warning">Step {int(each["step"]):,}: {_text(each["text"])}</div>' for each in warnings),
        "" if warnings else '<div class="good">None: no fault that fastgan looks for was seen.</div>',
        "<h2>Losses and scores</h2>",
        _curves(rows, config),
        "<h2>Samples over time</h2>",
        f'<div class="row">{"".join(_pictures(run))}</div>',
        "<h2>Metrics</h2>",
        _metrics(rows),
        "<h2>Options</h2>",
        "<p>In bold what differs from the defaults for such data.</p>",
        f'<div class="options"><table>{"".join(_options(config, dataset))}</table></div>',
    ]
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    aside = run.report.with_name(f".{run.report.name}.writing")
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return aside.replace(run.report)


def _curves(rows: Sequence[dict[str, float]], config: TrainConfig) -> str:
    if not rows:
        return "<p>No reading was taken.</p>"
    content = io.BytesIO()
    pictures.save_loss_plot(rows, content, config.loss, "svg")
    told = "Both losses and both scores over the steps"
    if reference.GAN_LOSSES[config.loss].discriminator == "bce":
        told += "; dashed, where the discriminator cannot tell real from fake"
    found = [_image(content.getvalue(), "svg+xml", told)]
    if sum("distance" in row for row in rows) > 1:
        content = io.BytesIO()
        pictures.save_curve(rows, "distance", "distance to the data", content)
        told = "Sliced Wasserstein distance of samples to the data, at each checkpoint: the smaller, the nearer"
        found.append(_image(content.getvalue(), "svg+xml", told))
    return "".join(found)


def _pictures(run: RunFolder) -> Iterable[str]:
    steps = {int(match[1]): path for path in run.samples.iterdir() if (match := _FAKES.fullmatch(path.name))}
    order = sorted(steps)
    most = min(_PICTURES, len(order))
    chosen = sorted({order[round(i * (len(order) - 1) / max(1, most - 1))] for i in range(most)})
    real = run.samples / "real.png"
    if real.exists():
        yield _image(real.read_bytes(), "png", "The data")
    for step in chosen:
        yield _image(steps[step].read_bytes(), "png", f"Step {step:,}")


_FAKES = re.compile(r"fakes_step_(\d+)\.png")


def _metrics(rows: Sequence[Mapping[str, float]]) -> str:
    """The last reading, and the best distance."""
    if not rows:
        return "<p>No reading was taken.</p>"
    names = {
        "d_loss": "discriminator's loss",
        "g_loss": "generator's loss",
        "real_score": "mean score of real samples",
        "fake_score": "mean score of fakes",
        "samples_per_second": "samples a second",
        "distance": "distance to the data",
    }
    found = [
        (f"{name}, step {int(rows[-1]['step']):,}", rows[-1][key]) for key, name in names.items() if key in rows[-1]
    ]
    having = [row for row in rows if "distance" in row]
    if having:
        best = min(having, key=lambda row: row["distance"])
        found.append((f"smallest distance to the data, step {int(best['step']):,}", best["distance"]))
    cells = (f'<tr><td>{_text(name)}</td><td class="number">{value:,.5g}</td></tr>' for name, value in found)
    return f"<table>{''.join(cells)}</table>"


def _options(config: TrainConfig, dataset: Dataset) -> Iterable[str]:
    usual = asdict(TrainConfig.for_dataset(dataset, config.data))
    for name, value in asdict(config).items():
        kind = ' class="changed"' if value != usual[name] else ""
        yield f"<tr{kind}><td>{_text(name)}</td><td>{_text(_in_words(value))}</td></tr>"


def _in_words(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _image(content: bytes, kind: str, told: str) -> str:
    data = base64.b64encode(content).decode()
    source = f"data:image/{kind};base64,{data}"
    return f'<figure><img alt="{_text(told)}" src="{source}"><figcaption>{_text(told)}</figcaption></figure>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
