"""Classifiers as judges of generated data: can they tell it from real data, and can they learn from it?

The data judged here are digits drawn from one Gaussian a class; `tools/models_page.py` judges all models with them.

    python examples/judges.py --out judges.png
"""

import argparse

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import fastgan
from fastgan.metrics import learned_from, two_sample


def grey_levels(x: Tensor) -> Tensor:
    """Pixels rounded to the 17 levels of the real ones: a forest sees at once whose values lie between them."""
    return (8 * x).round().clamp(-8, 8) / 8


def main() -> None:
    """Judge real data, one Gaussian a class, and pixels without their neighbours; write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=600, help="of samples, at most 800")
    parser.add_argument("--out", default="judges.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load("digits")
    order = torch.randperm(len(data))
    held_out, known, number = order[: args.number], order[-900:], args.number
    labels = data.labels[known[:number]]
    gaussian, mixed = torch.empty(number, 64), torch.empty(number, 64)
    for c in range(10):
        of_class, drawn = data.samples[known][data.labels[known] == c], labels == c
        covariance = of_class.T.cov() + 0.01 * torch.eye(64)
        normal = torch.distributions.MultivariateNormal(of_class.mean(dim=0), covariance)
        gaussian[drawn] = grey_levels(normal.sample((int(drawn.sum()),)))
        mixed[drawn] = of_class[torch.randint(len(of_class), (int(drawn.sum()), 64)), torch.arange(64)]

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    told_apart, learned = figure.subplots(1, 2, sharey=True)
    judged = {"real": data.samples[known[:number]], "a Gaussian a class": gaussian, "each pixel alone": mixed}
    for i, (name, samples) in enumerate(judged.items()):
        apart = two_sample(data.samples[held_out], samples)
        use = learned_from(samples, labels, data.samples[held_out], data.labels[held_out])
        for axes, found in ((told_apart, apart), (learned, use)):
            axes.bar([j + 0.27 * (i - 1) for j in range(len(found))], list(found.values()), 0.25, label=name)
            axes.set_xticks(range(len(found)), list(found), fontsize=8)
        for judge in apart:
            print(f"{name}, {judge}: told apart {apart[judge]:.3f}, learned from {use[judge]:.3f}")
    told_apart.axhline(0.5, color="0.5", linestyle="--")
    told_apart.set_title("told apart from real digits (1/2 is best)")
    learned.set_title("real digits classified right, after learning from these")
    told_apart.legend()
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
