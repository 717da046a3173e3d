"""Adversarial imitation: a policy learns to move as an expert does, from a discriminator's score (arXiv:1606.03476)."""

import torch

import fastgan
from fastgan.nn import MLP

torch.manual_seed(0)
states, actions = 4, 2
expert = torch.nn.Linear(states, actions).requires_grad_(False)  # to be imitated, and seen through samples alone
policy = MLP([states, 64, actions], activation="tanh")
judge = MLP([states + actions, 64, 64, 1], activation="relu")
policy_optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
judge_optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
step = fastgan.DiscriminatorStep(
    judge, judge_optimizer, loss="least_squares", fake_target=-1.0, r1_gamma=0.1, clip_grad_norm=1.0
)
print(step.plan)
for i in range(801):
    seen, own = torch.randn(256, states), torch.randn(256, states)
    moves = policy(own) + 0.1 * torch.randn(256, actions)
    stats = step.step(torch.cat([seen, expert(seen)], dim=1), torch.cat([own, moves], dim=1))

    # The reward of a move is what the judge says of it; here it is differentiable, and so is the policy.
    reward = judge(torch.cat([own, moves], dim=1)).mean()
    policy_optimizer.zero_grad()
    (-reward).backward(inputs=list(policy.parameters()))
    policy_optimizer.step()

    if i % 200 == 0:
        with torch.no_grad():
            error = (policy(own) - expert(own)).norm(dim=1).mean().item()
        print(
            f"step {i:3d}  D {stats.d_loss.item():.3f}  penalty {stats.penalty.item():.3f}  "
            f"distance from the expert's moves {error:.3f}"
        )
