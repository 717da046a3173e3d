"""Adversarial imitation: a policy learns to move as an expert does, and a discriminator's score is all its reward.

GAIL (arXiv:1606.03476) tells the expert's states and actions from the policy's, by cross-entropy. AMP
(arXiv:2104.02180) tells their transitions, from one state to the next, by least squares; its score is a reward of
style, to which a reward of a task may be added. Both have R1, a penalty on the slope at the expert's moves.

    python examples/imitation.py --kind amp --out imitation.png
"""

import argparse
from collections.abc import Callable

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

import fastgan
from fastgan.nn import MLP

MASSES, TIME, HORIZON = 256, 0.1, 50  # a state is a place and a velocity in the plane, an action is an acceleration


def expert(states: Tensor) -> Tensor:
    """Goes to the circle of radius 1 and around it, anticlockwise, at speed 1."""
    place, velocity = states.split(2, dim=1)
    out = place / place.norm(dim=1, keepdim=True).clamp(min=0.1)
    wanted = torch.stack([-out[:, 1], out[:, 0]], dim=1) + 2 * (out - place)
    return 4 * (wanted - velocity) - out


def roll(act: Callable[[Tensor], Tensor], masses: int) -> tuple[Tensor, Tensor]:
    """States (HORIZON + 1, masses, 4) and actions (HORIZON, masses, 2), from places and velocities at random."""
    states = [torch.cat([2.4 * torch.rand(masses, 2) - 1.2, torch.randn(masses, 2) / 2], dim=1)]
    actions = []
    for _ in range(HORIZON):
        actions.append(act(states[-1]))
        place, velocity = states[-1].split(2, dim=1)
        velocity = velocity + TIME * actions[-1].clamp(-8, 8)
        states.append(torch.cat([place + TIME * velocity, velocity], dim=1))
    return torch.stack(states), torch.stack(actions)


class Imitation:
    """A Gaussian policy, and the discriminator of GAIL or AMP that rewards it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.policy, self.log_std = MLP([4, 64, 64, 2], "tanh"), torch.full((2,), -0.5, requires_grad=True)
        self.optimizer = torch.optim.Adam([*self.policy.parameters(), self.log_std], lr=1e-3)
        self.judge = MLP([6 if kind == "gail" else 8, 100, 100, 1], "relu")
        # Without the penalty GAIL's discriminator soon knows each action of a policy that tries new ones.
        options = (
            {"r1_gamma": 1.0} if kind == "gail" else {"loss": "least_squares", "fake_target": -1.0, "r1_gamma": 0.2}
        )
        optimizer = torch.optim.Adam(self.judge.parameters(), lr=1e-3 if kind == "gail" else 3e-4)
        self.step = fastgan.DiscriminatorStep(self.judge, optimizer, **options)

    def seen(self, states: Tensor, actions: Tensor) -> Tensor:
        """What the discriminator is given, a row for each move."""
        # The next state differs from the last by a tenth of the velocities: added again on a scale that is seen.
        second = actions / 4 if self.kind == "gail" else states[1:] + (states[1:] - states[:-1]) / TIME
        return torch.cat([states[:-1], second], dim=2).flatten(end_dim=1)

    @torch.no_grad()
    def reward(self, moves: Tensor) -> Tensor:
        """GAIL: -log(1 - sigmoid(D)). AMP: max(0, 1 - (D - 1)^2 / 4), its eq. 7."""
        score = self.judge(moves)[:, 0]
        return torch.nn.functional.softplus(score) if self.kind == "gail" else (1 - (score - 1) ** 2 / 4).clamp(min=0)

    def train(self, demonstrations: Tensor) -> float:
        """A step of the discriminator, and some of the policy (PPO, arXiv:1707.06347, eq. 7); the mean reward."""
        with torch.no_grad():
            states, actions = roll(lambda s: Normal(self.policy(s), self.log_std.exp()).sample(), MASSES)
        moves = self.seen(states, actions)
        for chosen in torch.randperm(len(moves)).split(1280):  # of as many demonstrations, which differ in nothing else
            self.step.step(demonstrations[chosen], moves[chosen])
        rewards = self.reward(moves).view(HORIZON, MASSES)
        returns = rewards.clone()
        for t in reversed(range(HORIZON - 1)):
            returns[t] += 0.9 * returns[t + 1]
        advantage = (returns - returns.mean(dim=1, keepdim=True)).flatten()
        advantage /= advantage.std() + 1e-6
        states, actions, before = states[:-1].flatten(end_dim=1), actions.flatten(end_dim=1), None
        for _ in range(8):
            likelihood = Normal(self.policy(states), self.log_std.exp()).log_prob(actions).sum(dim=1)
            before = likelihood.detach() if before is None else before
            ratio = (likelihood - before).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return rewards.mean().item()


def main() -> None:
    """Imitate, and write a picture of the expert's ways and the policy's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="gail", choices=["gail", "amp"])
    parser.add_argument("--steps", type=int, default=150, help="of the policy, each of 256 masses over 50 moves")
    parser.add_argument("--out", default="imitation.png", help="the picture")
    args = parser.parse_args()

    torch.manual_seed(0)
    imitation = Imitation(args.kind)
    shown, actions = roll(expert, MASSES)
    demonstrations = imitation.seen(shown, actions)
    for i in range(args.steps):
        reward = imitation.train(demonstrations)
        if i % 25 == 0 or i == args.steps - 1:
            with torch.no_grad():
                own, _ = roll(imitation.policy, MASSES)
            distance = fastgan.metrics.frechet_distance(shown[25:].flatten(end_dim=1), own[25:].flatten(end_dim=1))
            print(f"step {i:3d}  mean reward {reward:.3f}  Frechet distance of the states {distance:.3f}")

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, states in zip(
        figure.subplots(1, 2), ("expert", f"policy ({args.kind})"), (shown, own), strict=True
    ):
        axes.plot(states[:, :12, 0].numpy(), states[:, :12, 1].numpy(), linewidth=0.8)
        axes.set(title=title, xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
