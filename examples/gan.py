"""A GAN, trained by `TrainStep`: new samples in one pass through a network (Goodfellow et al. 2014, arXiv:1406.2661).

The same loop written by hand is in own_loop.py.

    python examples/gan.py --data digits --out gan.png
"""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fastgan
from fastgan.nn import MLP
from fastgan.training.pictures import save_samples


def fit(
    samples: Tensor,
    latent: int,
    hidden: Sequence[int],
    steps: int,
    batch: int = 128,
    r1_gamma: float = 0.0,
    output_activation: str | None = None,
) -> Callable[[int], Tensor]:
    """Train both networks; what is returned draws so many samples."""
    width = samples.shape[1]
    generator = MLP([latent, *hidden, width], activation="relu", output_activation=output_activation)
    discriminator = MLP([width, *reversed(hidden), 1])
    average = copy.deepcopy(generator).requires_grad_(False)  # of the generator's weights over the last steps
    step = fastgan.TrainStep(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
        torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
        reuse_fake=True,
        r1_gamma=r1_gamma,
        r1_every=8,
        ema=average,
        ema_decay=0.999,
    )
    for i in range(steps):
        stats = step.step(samples[torch.randint(len(samples), (batch,))])
        if i % 2000 == 0 or i == steps - 1:
            print(f"step {i:5d}  loss of D {stats.d_loss.item():.3f}  loss of G {stats.g_loss.item():.3f}")

    @torch.no_grad()
    def draw(number: int) -> Tensor:
        return average(torch.randn(number, latent))

    return draw


def main() -> None:
    """Train, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ring8", choices=["ring8", "digits"])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--out", default="gan.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load(args.data)
    if data.image_shape is None:
        draw = fit(data.samples, latent=2, hidden=(128, 128), batch=256, steps=args.steps)
        new = draw(2000)
        print(fastgan.metrics.mode_coverage(new, data.modes, data.mode_std))
    else:
        draw = fit(data.samples, 64, (256, 512), args.steps, r1_gamma=0.3, output_activation="tanh")
        new = draw(100)
    print(f"Frechet distance to the data {fastgan.metrics.frechet_distance(data.samples, new):.4f}")
    save_samples(new, data.image_shape, args.out, behind=data.samples[:2000])


if __name__ == "__main__":
    main()
