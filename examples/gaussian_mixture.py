"""A Gaussian mixture fitted by EM, and new samples drawn from it (Dempster, Laird & Rubin 1977).

python examples/gaussian_mixture.py --data digits --out mixture.png
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import fastgan
from fastgan.training.pictures import save_samples


def expectation(mixture: MixtureSameFamily, x: Tensor) -> Tensor:
    """(N, K): how likely it is that sample n came from component k, given the mixture."""
    log_joint = mixture.mixture_distribution.logits + mixture.component_distribution.log_prob(x[:, None])
    return log_joint.softmax(dim=1)


def maximisation(x: Tensor, responsibilities: Tensor, least_variance: float) -> MixtureSameFamily:
    """The mixture that is the most likely, given which component each sample came from."""
    counts = responsibilities.sum(dim=0) + 1e-12
    means = responsibilities.T @ x / counts[:, None]
    centred = x[:, None] - means  # (N, K, data)
    covariances = torch.einsum("nk,nki,nkj->kij", responsibilities, centred, centred) / counts[:, None, None]
    # A pixel that is the same in all images has no variance, and a Gaussian needs some.
    covariances += least_variance * torch.eye(x.shape[1], dtype=x.dtype)
    return MixtureSameFamily(Categorical(counts / counts.sum()), MultivariateNormal(means, covariances))


def em(x: Tensor, components: int, steps: int, least_variance: float = 1e-6, seed: int = 0) -> MixtureSameFamily:
    """EM from the clusters of k-means. Each step makes the data more likely, or as likely."""
    x = x.double()
    clusters = KMeans(components, n_init=1, random_state=seed).fit_predict(x.numpy())
    responsibilities = torch.nn.functional.one_hot(torch.from_numpy(clusters).long(), components).double()
    mixture = maximisation(x, responsibilities, least_variance)
    for _ in range(steps):
        mixture = maximisation(x, expectation(mixture, x), least_variance)
    return mixture


def fit(
    samples: Tensor, labels: Tensor, components: int, steps: int, least_variance: float = 1e-6
) -> Callable[[Tensor], Tensor]:
    """A mixture for each class. What is returned draws a sample for each label that it is given."""
    mixtures = [em(samples[labels == c], components, steps, least_variance) for c in range(int(labels.max()) + 1)]

    def draw(labels: Tensor) -> Tensor:
        drawn = torch.empty(len(labels), samples.shape[1])
        for c in labels.unique().tolist():
            drawn[labels == c] = mixtures[c].sample((int((labels == c).sum()),)).float()
        return drawn

    return draw


def main() -> None:
    """Fit, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ring8", choices=["ring8", "digits"])
    parser.add_argument("--steps", type=int, default=50, help="of EM")
    parser.add_argument("--out", default="gaussian_mixture.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = fastgan.data.load(args.data)
    if data.image_shape is None:  # one mixture of eight Gaussians, which is what the data came from
        draw = fit(data.samples, torch.zeros(len(data), dtype=torch.long), 8, args.steps)
        new = draw(torch.zeros(2000, dtype=torch.long))
        print(fastgan.metrics.mode_coverage(new, data.modes, data.mode_std))
    else:  # three Gaussians for each digit
        draw = fit(data.samples, data.labels, 3, args.steps, least_variance=0.01)
        new = draw(torch.arange(100) % 10)
    print(f"Frechet distance to the data {fastgan.metrics.frechet_distance(data.samples, new):.4f}")
    save_samples(new, data.image_shape, args.out, behind=data.samples[:2000], classes=data.num_classes)


if __name__ == "__main__":
    main()
