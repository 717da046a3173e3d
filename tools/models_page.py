"""The tables and pictures of docs/models.md: `python -m tools.models_page`, which takes some minutes.

The models of examples/ learn the same data, and the same measures judge them. The tables go between the lines
`<!-- models: ring8 -->` and `<!-- end of models: ring8 -->` of the page, the pictures into a folder beside it.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fastgan
from examples import autoencoder, conditional_gan, diffusion, gan, gaussian_mixture, judges, logistic_regression
from fastgan.data.dataset import Dataset

from . import models_pictures

Draw = Callable[[Tensor], Tensor]
# Samples, labels and the share of the steps to a function that draws a sample for each label.
Fit = Callable[[Tensor, Tensor, float], Draw]
Table = list[list[str]]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
REAL = "real data"


class Model(NamedTuple):
    """A model of a data set.

    Attributes:
        fit: how it learns.
        uses_labels: whether it is told the labels; otherwise it is given zeros.
    """

    fit: Fit
    uses_labels: bool


class Found(NamedTuple):
    """What was found of a model: its samples and their measures, by the titles of the columns."""

    samples: Tensor
    measures: dict[str, str]
    told_apart: dict[str, float]
    learned_from: dict[str, float]


def _steps(share: float, steps: int) -> int:
    return max(2, int(share * steps))


RING8 = {
    "Gaussian mixture": Model(lambda x, y, share: gaussian_mixture.fit(x, y, 8, _steps(share, 50)), False),
    "autoencoder": Model(lambda x, y, share: autoencoder.fit(x, y, 1, 128, 24, _steps(share, 4000)), False),
    "diffusion": Model(lambda x, y, share: diffusion.fit(x, y, 128, _steps(share, 4000), frequencies=4), False),
    "GAN": Model(
        lambda x, _, share: _without_labels(gan.fit(x, 2, (128, 128), _steps(share, 10_000), batch=256)), False
    ),
    "conditional GAN": Model(
        lambda x, y, share: conditional_gan.fit(x, y, 2, (128, 128), _steps(share, 10_000), batch=256), True
    ),
}
_IMAGES = {"latent": 64, "hidden": (256, 512), "r1_gamma": 0.3, "output_activation": "tanh"}
DIGITS = {
    "Gaussian mixture": Model(lambda x, y, share: gaussian_mixture.fit(x, y, 3, _steps(share, 50), 0.01), True),
    "autoencoder": Model(lambda x, y, share: autoencoder.fit(x, y, 12, 256, 3, _steps(share, 4000)), True),
    "diffusion": Model(lambda x, y, share: diffusion.fit(x, y, 256, _steps(share, 4000)), True),
    "GAN": Model(lambda x, _, share: _without_labels(gan.fit(x, steps=_steps(share, 8000), **_IMAGES)), False),
    "conditional GAN": Model(lambda x, y, share: conditional_gan.fit(x, y, steps=_steps(share, 8000), **_IMAGES), True),
}
MODELS = {"ring8": RING8, "digits": DIGITS}
HELD_OUT = {"ring8": 2000, "digits": 600}


def _without_labels(draw: Callable[[int], Tensor]) -> Draw:
    return lambda labels: draw(len(labels))


def judge(
    data: Dataset, samples: Tensor, labels: Tensor | None, known: Tensor, real: Tensor, real_labels: Tensor
) -> Found:
    """All measures of a model's samples.

    Args:
        data: where all came from.
        samples: (N, data) of the model, rounded as the data is.
        labels: (N,) their labels, where the model has any.
        known: (M, data) what the model learned from.
        real: (N, data) what it has not seen.
        real_labels: (N,) their labels.
    """
    measures = {}
    if data.modes is not None:
        coverage = fastgan.metrics.mode_coverage(samples, data.modes, data.mode_std)
        measures = {"modes": str(coverage.modes), "near a mode": f"{coverage.high_quality:.1%}"}
    precision, recall = fastgan.metrics.precision_recall(real, samples)
    distance = fastgan.metrics.frechet_distance(real, samples)
    measures |= {"Fréchet distance": f"{distance:.4f}" if data.modes is not None else f"{distance:.2f}"}
    measures |= {"precision": f"{precision:.2f}", "recall": f"{recall:.2f}"}
    if data.image_shape is not None:
        nearest, expected = (torch.cdist(x, known).amin(dim=1).median() for x in (samples, real))
        measures |= {"nearest known": f"{(nearest / expected).item():.2f}"}
    use = {} if labels is None else judges.learned_from(samples, labels, real, real_labels)
    return Found(samples, measures, judges.two_sample(real, samples), use)


def compare(name: str, share: float = 1.0, held_out: int | None = None) -> dict[str, Found]:
    """Every model of a data set, and real data in its place first."""
    torch.manual_seed(0)
    data = fastgan.data.load(name)
    assert data.labels is not None
    number = held_out or HELD_OUT[name]
    order = torch.randperm(len(data))
    real, real_labels = data.samples[order[:number]], data.labels[order[:number]]
    known, known_labels = data.samples[order[number:]], data.labels[order[number:]]
    found = {REAL: judge(data, known[:number], known_labels[:number], known[number:], real, real_labels)}
    for title, model in MODELS[name].items():
        torch.manual_seed(0)
        draw = model.fit(known, known_labels if model.uses_labels else torch.zeros_like(known_labels), share)
        labels = torch.arange(number) % data.num_classes
        samples = draw(labels if model.uses_labels else torch.zeros_like(labels))
        if data.image_shape is not None:
            samples = judges.grey_levels(samples)
        found[title] = judge(data, samples, labels if model.uses_labels else None, known, real, real_labels)
        print(f"{name}: {title}: {found[title].measures}", file=sys.stderr)
    return found


def tables(name: str, found: dict[str, Found]) -> list[Table]:
    """The measures, and what the judges say, with the models as rows."""
    first = found[REAL]
    result = [
        [[name, *first.measures], *([title, *each.measures.values()] for title, each in found.items())],
        [["told apart by", *first.told_apart], *([t, *_shares(e.told_apart)] for t, e in found.items())],
    ]
    if name == "digits":
        learned = {title: each.learned_from for title, each in found.items() if each.learned_from}
        result.append([["learned from, by", *first.learned_from], *([t, *_shares(e)] for t, e in learned.items())])
    return result


def _shares(values: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in values.values()]


def markdown(name: str, found: dict[str, Found]) -> str:
    """The part of the page that a data set has."""
    build = fastgan.info()["build"]
    kernels = build["cpu_instructions"] if build else "not compiled"
    where = f"*Seed 0, {date.today().isoformat()}, {platform.machine()} ({kernels}), PyTorch {torch.__version__}.*"
    parts = ["\n".join(_rows(table)) for table in tables(name, found)]
    return "\n\n".join([*parts, where])


def _rows(table: Table) -> list[str]:
    head, *body = ([*row] for row in table)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def put(text: str, name: str, part: str) -> str:
    """A page's text with a data set's part between its two lines.

    Raises:
        ValueError: the page lacks one of the lines.
    """
    begin, end = f"<!-- models: {name} -->", f"<!-- end of models: {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the page must have the lines {begin} and {end}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, draw, and write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.models_page", description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--write", type=Path, default=PAGE, help="the page")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, to try it")
    parser.add_argument("--held-out", type=int, help="samples that the models do not see, and are compared with")
    options = parser.parse_args(arguments)
    folder = options.write.parent / options.write.stem
    folder.mkdir(exist_ok=True)
    logistic_regression.compare(_steps(options.share, 3000), folder / "logistic_regression.png")
    for name in options.data:
        found = compare(name, options.share, options.held_out)
        models_pictures.save_all(fastgan.data.load(name), {t: each.samples for t, each in found.items()}, folder)
        models_pictures.save_judges({t: each.told_apart for t, each in found.items()}, folder / f"{name}_judges.png")
        text = put(options.write.read_text(encoding="utf-8"), name, markdown(name, found))
        options.write.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
