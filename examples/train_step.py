"""A conditional GAN trained by `TrainStep`: the whole alternating step in one call, with an averaged generator."""

import copy

import torch

import fastgan
from fastgan.nn import MLP

torch.manual_seed(0)
latent, classes = 2, 4
centers = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])

generator = MLP([latent + classes, 64, 64, 2], activation="relu")
discriminator = MLP([2 + classes, 64, 64, 1])
average = copy.deepcopy(generator).requires_grad_(False)
step = fastgan.TrainStep(
    generator,
    discriminator,
    torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
    torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
    num_classes=classes,
    real_target=0.9,
    ema=average,
    ema_decay=0.99,
)
print(step.plan)
for i in range(1001):
    labels = torch.randint(classes, (256,))
    stats = step.step(centers[labels] + 0.05 * torch.randn(256, 2), labels)
    if i % 250 == 0:
        print(f"step {i:4d}  D {stats.d_loss.item():.3f}  G {stats.g_loss.item():.3f}")

labels = torch.arange(classes)
one_hot = torch.nn.functional.one_hot(labels, classes).float()
print(average(torch.cat([torch.zeros(classes, latent), one_hot], dim=1)))
