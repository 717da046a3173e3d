"""WGAN-GP: the gradient penalty is a second derivative, taken through the fused layers (arXiv:1704.00028)."""

import torch

from fastgan.functional import gradient_penalty
from fastgan.nn import MLP

torch.manual_seed(0)
generator = MLP([2, 128, 128, 2], activation="relu")
critic = MLP([2, 128, 128, 1])
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))

center = torch.tensor([3.0, -2.0])
for step in range(301):
    for _ in range(5):
        real = center + 0.5 * torch.randn(256, 2)
        fake = generator(torch.randn(256, 2)).detach()
        penalty = gradient_penalty(critic, real, fake)
        critic_loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()

    g_loss = -critic(generator(torch.randn(256, 2))).mean()
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()

    if step % 100 == 0:
        estimate = (critic(real).mean() - critic(fake).mean()).item()  # the critic's loss has the penalty in it too
        mean = generator(torch.randn(1000, 2)).mean(dim=0).tolist()
        print(f"step {step:3d}  Wasserstein estimate {estimate:.3f}  mean {mean[0]:.2f}, {mean[1]:.2f}")
