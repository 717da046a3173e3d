"""A small diffusion model: an MLP learns to tell noise from data, and new samples are made of noise alone.

The model of Ho et al. (arXiv:2006.11239), with the schedule of Nichol & Dhariwal (arXiv:2102.09672, eq. 17).

    python examples/diffusion.py --data digits --out diffusion.png
"""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.nn import MLP
from fastgan.training.pictures import save_samples

LEVELS = 200  # of noise: 0 is hardly any, the last is noise alone
times = (torch.arange(LEVELS + 1) / LEVELS + 0.008) / 1.008
signal = (times * math.pi / 2).cos().square()
BETAS = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
ALPHAS = 1 - BETAS
ALPHA_BARS = ALPHAS.cumprod(dim=0)  # x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise
FREQUENCIES = 2.0 ** torch.arange(8) * math.pi


def waves(x: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines of each column, from which an MLP learns fine details (arXiv:2006.10739)."""
    angles = (x[:, :, None] * frequencies).flatten(start_dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fit(
    samples: Tensor, labels: Tensor, hidden: int, steps: int, batch: int = 256, frequencies: int = 0
) -> Callable[[Tensor], Tensor]:
    """Train a denoiser; what is returned draws a sample for each label that it is given."""
    classes, width = int(labels.max()) + 1, samples.shape[1]
    inputs = width + 2 * width * frequencies + 2 * len(FREQUENCIES) + classes
    network = MLP([inputs, hidden, hidden, hidden, width], activation="silu")

    def predict(x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        given = x, waves(x, FREQUENCIES[:frequencies] / 2), waves(level[:, None] / LEVELS, FREQUENCIES)
        return network(torch.cat([*given, F.one_hot(labels, classes)], dim=1))

    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        chosen, level = torch.randint(len(samples), (batch,)), torch.randint(LEVELS, (batch,))
        noise, alpha_bar = torch.randn(batch, width), ALPHA_BARS[level, None]
        noisy = alpha_bar.sqrt() * samples[chosen] + (1 - alpha_bar).sqrt() * noise
        turned = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * samples[chosen]  # "v" of arXiv:2202.00512
        loss = F.mse_loss(predict(noisy, level, labels[chosen]), turned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 1000 == 0:
            print(f"step {step:4d}  squared error {loss.item():.4f}")

    @torch.no_grad()
    def draw(labels: Tensor) -> Tensor:
        (low, high), x = samples.aminmax(), torch.randn(len(labels), width)
        for t in reversed(range(LEVELS)):
            turned = predict(x, torch.full((len(x),), t), labels)
            clean = (ALPHA_BARS[t].sqrt() * x - (1 - ALPHA_BARS[t]).sqrt() * turned).clamp(low, high)
            before = ALPHA_BARS[t - 1] if t > 0 else torch.ones(())  # one level down: eq. 7
            x = (before.sqrt() * BETAS[t] * clean + ALPHAS[t].sqrt() * (1 - before) * x) / (1 - ALPHA_BARS[t])
            x += (BETAS[t] * (1 - before) / (1 - ALPHA_BARS[t])).sqrt() * torch.randn(x.shape)
        return x

    return draw


def main() -> None:
    """Train, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ring8", choices=["ring8", "digits"])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", default="diffusion.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load(args.data)
    if data.image_shape is None:
        no_labels = torch.zeros(len(data), dtype=torch.long)
        draw = fit(data.samples, no_labels, 128, args.steps, frequencies=4)
        new = draw(torch.zeros(2000, dtype=torch.long))
        print(fastgan.metrics.mode_coverage(new, data.modes, data.mode_std))
    else:
        draw = fit(data.samples, data.labels, 256, args.steps)
        new = draw(torch.arange(100) % 10)
    print(f"Frechet distance to the data {fastgan.metrics.frechet_distance(data.samples, new):.4f}")
    save_samples(new, data.image_shape, args.out, behind=data.samples[:2000], classes=data.num_classes)


if __name__ == "__main__":
    main()
