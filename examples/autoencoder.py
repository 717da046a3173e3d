"""An autoencoder whose decoder makes new data: from new codes, drawn from a Gaussian mixture of the old ones.

python examples/autoencoder.py --data digits --out autoencoder.png
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

import fastgan
from fastgan.nn import MLP
from fastgan.training.pictures import save_samples


def train(samples: Tensor, code: int, hidden: int, steps: int, batch: int = 128) -> tuple[MLP, MLP]:
    """An encoder to codes of so many numbers, and a decoder back, with the least squared error."""
    width = samples.shape[1]
    encoder = MLP([width, hidden, hidden, code], activation="relu")
    decoder = MLP([code, hidden, hidden, width], activation="relu")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = samples[torch.randint(len(samples), (batch,))]
        loss = torch.nn.functional.mse_loss(decoder(encoder(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 1000 == 0 or step == steps - 1:
            print(f"step {step:4d}  squared error {loss.item():.5f}")
    return encoder, decoder


def fit(
    samples: Tensor, labels: Tensor, code: int, hidden: int, components: int, steps: int
) -> Callable[[Tensor], Tensor]:
    """An autoencoder, and for each class a mixture of its codes; what is returned draws a sample for each label.

    An autoencoder alone is no model of the data: it does not say which codes are likely. The mixture does.
    """
    encoder, decoder = train(samples, code, hidden, steps)
    with torch.no_grad():
        codes = encoder(samples).double().numpy()
    mixtures = [
        GaussianMixture(components, random_state=0).fit(codes[(labels == c).numpy()])
        for c in range(int(labels.max()) + 1)
    ]

    @torch.no_grad()
    def draw(labels: Tensor) -> Tensor:
        new = torch.empty(len(labels), code)
        for c in labels.unique().tolist():
            drawn, _ = mixtures[c].sample(int((labels == c).sum()))
            order = torch.randperm(len(drawn))  # scikit-learn gives them component by component
            new[labels == c] = torch.from_numpy(drawn).float()[order]
        return decoder(new)

    return draw


def main() -> None:
    """Train, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=["ring8", "digits"])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", default="autoencoder.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load(args.data)
    if data.image_shape is None:  # points in the plane, of which one number is to say enough
        no_labels = torch.zeros(len(data), dtype=torch.long)
        draw = fit(data.samples, no_labels, code=1, hidden=128, components=24, steps=args.steps)
        new = draw(torch.zeros(2000, dtype=torch.long))
        print(fastgan.metrics.mode_coverage(new, data.modes, data.mode_std))
    else:
        draw = fit(data.samples, data.labels, code=12, hidden=256, components=3, steps=args.steps)
        new = draw(torch.arange(100) % 10)
    print(f"Frechet distance to the data {fastgan.metrics.frechet_distance(data.samples, new):.4f}")
    save_samples(new, data.image_shape, args.out, behind=data.samples[:2000], classes=data.num_classes)


if __name__ == "__main__":
    main()
