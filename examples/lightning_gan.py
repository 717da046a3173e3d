"""A GAN in Lightning with manual optimisation: its loop over fused layers, or a whole step in one call.

pip install lightning
python examples/lightning_gan.py --one-call --out lightning_gan.png
"""

import argparse
from collections.abc import Callable

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

import fastgan
from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP
from fastgan.training.pictures import save_samples


class GAN(lightning.LightningModule):
    """A generator and a discriminator; `one_call` trains them by `TrainStep`, else by the loop written out."""

    def __init__(
        self, generator: nn.Sequential, discriminator: nn.Sequential, one_call: bool, noise: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator, self.one_call, self.noise = generator, discriminator, one_call, noise

    def configure_optimizers(self) -> list[Optimizer]:
        networks = self.generator, self.discriminator
        return [Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in networks]

    def on_fit_start(self) -> None:
        # Lightning wraps the optimizers. TrainStep takes PyTorch's own, and updates their state in place.
        if self.one_call:
            optimizers = (wrapped.optimizer for wrapped in self.optimizers())
            self.step = fastgan.TrainStep(self.generator, self.discriminator, *optimizers, reuse_fake=True)

    def training_step(self, real: Tensor) -> None:
        noise = self.noise(real)
        if self.one_call:
            stats = self.step.step(real, noise=noise[None])
            d_loss, g_loss = stats.d_loss, stats.g_loss
        else:
            g_optimizer, d_optimizer = self.optimizers()
            fake = self.generator(noise)
            d_loss = discriminator_loss(self.discriminator(real), self.discriminator(fake.detach()))
            d_optimizer.zero_grad()
            self.manual_backward(d_loss)
            d_optimizer.step()
            g_loss = generator_loss(self.discriminator(fake))
            g_optimizer.zero_grad()
            self.manual_backward(g_loss)
            g_optimizer.step()
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss}, prog_bar=True)


def main() -> None:
    """Train, draw, and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-call", action="store_true", help="train by TrainStep")
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--out", default="lightning_gan.png", help="the picture")
    args = parser.parse_args()

    lightning.seed_everything(0)
    data = fastgan.data.load("digits")
    generator = MLP([64, 256, 512, 64], "relu", "tanh")
    module = GAN(generator, MLP([64, 512, 256, 1]), args.one_call, lambda real: torch.randn(len(real), 64))
    loader = DataLoader(data.samples, batch_size=128, shuffle=True, drop_last=True)
    # Lightning counts the steps of its wrapped optimizers; a step in one call is none. So the epochs are counted.
    epochs, rest = divmod(args.steps, len(loader))
    trainer = lightning.Trainer(
        max_epochs=max(1, epochs),
        limit_train_batches=len(loader) if epochs else rest,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    print({name: f"{value:.3f}" for name, value in trainer.callback_metrics.items()})
    with torch.no_grad():
        save_samples(generator(torch.randn(100, 64)), data.image_shape, args.out)


if __name__ == "__main__":
    main()
