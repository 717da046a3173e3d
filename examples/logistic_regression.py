"""Logistic regression is a discriminator with no hidden layer: `DiscriminatorStep` finds what scikit-learn finds.

The data are real: thirty measures of 569 tumours, malignant or benign, which come with scikit-learn.

    python examples/logistic_regression.py --out logistic_regression.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import fastgan


def fit(real: Tensor, fake: Tensor, steps: int, c: float = 1.0) -> torch.nn.Linear:
    """The layer whose output is the logit of being real, with scikit-learn's L2 penalty of strength 1/c.

    scikit-learn minimises |w|^2 / 2 + c * (the sum of the losses). DiscriminatorStep's loss is the mean over real
    samples plus the mean over fakes. With class_weight="balanced" scikit-learn's sum is n / 2 times that.
    """
    layer = torch.nn.Linear(real.shape[1], 1).to(real.dtype)
    penalty = 2 / (c * (len(real) + len(fake)))
    optimizer = torch.optim.Adam(
        [{"params": [layer.weight], "weight_decay": penalty}, {"params": [layer.bias]}], lr=0.05
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = fastgan.DiscriminatorStep(layer, optimizer)
    for i in range(steps):
        stats = step.step(real, fake)  # all samples in each step, so that there is no chance in it
        schedule.step()
        if i % 1000 == 0 or i == steps - 1:
            print(f"step {i:4d}  loss {stats.d_loss.item():.4f}")
    return layer


def compare(steps: int, out: str | Path) -> None:
    """Fit both, compare, and write a picture."""
    torch.manual_seed(0)
    bunch = load_breast_cancer()
    x = torch.from_numpy(bunch.data)
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    benign = torch.from_numpy(bunch.target == 1)
    layer = fit(x[benign], x[~benign], steps)
    theirs = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000).fit(x.numpy(), benign.numpy())

    ours = layer.weight.detach()[0]
    with torch.no_grad():
        logits = layer(x)[:, 0]
    difference = (ours - torch.from_numpy(theirs.coef_[0])).abs().max()
    print(f"largest difference of a coefficient from scikit-learn's: {difference.item():.1e}")
    print(f"share of tumours told right: {((logits > 0) == benign).double().mean().item():.3f}")

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    bars, probabilities = figure.subplots(1, 2)
    places = np.arange(len(ours))
    bars.barh(places - 0.2, ours.numpy(), 0.4, label="DiscriminatorStep")
    bars.barh(places + 0.2, theirs.coef_[0], 0.4, label="scikit-learn")
    bars.set_yticks(places, bunch.feature_names, fontsize=7)
    bars.set_xlabel("coefficient, of standardised measures")
    bars.legend(fontsize=8)
    for name, chosen in (("benign", benign), ("malignant", ~benign)):
        probabilities.hist(logits[chosen].sigmoid().numpy(), bins=25, range=(0, 1), alpha=0.6, label=name)
    probabilities.set_xlabel("probability of being benign")
    probabilities.set_ylabel("tumours")
    probabilities.legend()
    figure.savefig(out, dpi=100)


def main() -> None:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", default="logistic_regression.png", help="the picture")
    args = parser.parse_args()
    compare(args.steps, args.out)


if __name__ == "__main__":
    main()
