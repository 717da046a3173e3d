"""A conditional GAN: both networks see the label, and you choose what is drawn (Mirza & Osindero, arXiv:1411.1784).

python examples/conditional_gan.py --data digits --out conditional_gan.png
"""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.nn import MLP
from fastgan.training.pictures import save_samples


def fit(
    samples: Tensor,
    labels: Tensor,
    latent: int,
    hidden: Sequence[int],
    steps: int,
    batch: int = 128,
    r1_gamma: float = 0.0,
    output_activation: str | None = None,
) -> Callable[[Tensor], Tensor]:
    """Train both networks; what is returned draws a sample for each label that it is given."""
    width, classes = samples.shape[1], int(labels.max()) + 1
    # A label is a vector with a 1 at its place, beside the noise and beside the sample.
    generator = MLP([latent + classes, *hidden, width], activation="relu", output_activation=output_activation)
    discriminator = MLP([width + classes, *reversed(hidden), 1])
    average = copy.deepcopy(generator).requires_grad_(False)
    step = fastgan.TrainStep(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
        torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
        num_classes=classes,  # the step appends the vectors itself
        reuse_fake=True,
        r1_gamma=r1_gamma,
        r1_every=8,
        ema=average,
        ema_decay=0.999,
    )
    for i in range(steps):
        chosen = torch.randint(len(samples), (batch,))
        stats = step.step(samples[chosen], labels[chosen])
        if i % 2000 == 0 or i == steps - 1:
            print(f"step {i:5d}  loss of D {stats.d_loss.item():.3f}  loss of G {stats.g_loss.item():.3f}")

    @torch.no_grad()
    def draw(labels: Tensor) -> Tensor:
        return average(torch.cat([torch.randn(len(labels), latent), F.one_hot(labels, classes).float()], dim=1))

    return draw


def main() -> None:
    """Train, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=["ring8", "digits"])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--out", default="conditional_gan.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load(args.data)
    if data.image_shape is None:
        draw = fit(data.samples, data.labels, latent=2, hidden=(128, 128), batch=256, steps=args.steps)
        new = draw(torch.arange(2000) % 8)
        print(fastgan.metrics.mode_coverage(new, data.modes, data.mode_std))
    else:
        draw = fit(data.samples, data.labels, 64, (256, 512), args.steps, r1_gamma=0.3, output_activation="tanh")
        new = draw(torch.arange(100) % 10)
    print(f"Frechet distance to the data {fastgan.metrics.frechet_distance(data.samples, new):.4f}")
    save_samples(new, data.image_shape, args.out, behind=data.samples[:2000], classes=data.num_classes)


if __name__ == "__main__":
    main()
