"""A GAN on eight Gaussians with fastgan's layers and losses in a hand-written alternating loop."""

import math

import torch

from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP

torch.manual_seed(0)
generator = MLP([2, 128, 128, 2], activation="relu")
discriminator = MLP([2, 128, 128, 1])
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))

angles = torch.arange(8) * (2 * math.pi / 8)
modes = torch.stack([angles.cos(), angles.sin()], dim=1)

for step in range(2001):
    real = modes[torch.randint(8, (256,))] + 0.02 * torch.randn(256, 2)

    fake = generator(torch.randn(256, 2))
    d_loss = discriminator_loss(discriminator(real), discriminator(fake.detach()))
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()

    g_loss = generator_loss(discriminator(fake))
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()

    if step % 500 == 0:
        with torch.no_grad():
            distance = torch.cdist(generator(torch.randn(1000, 2)), modes).min(dim=1).values.mean()
        print(f"step {step:4d}  D {d_loss.item():.3f}  G {g_loss.item():.3f}  mean distance to a mode {distance:.3f}")
