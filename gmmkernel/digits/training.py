"""Training of the digits U-Net, and losses on images that it has or has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gmmkernel.digits.data import load_digits
from gmmkernel.digits.unet import NULL_CLASS, DigitsUNet
from gmmkernel.schedules import noise_schedule
from gmmkernel.training import Trainer

_COMPARED = 355
"""Images of which losses are means: all those held out, and as many of the others."""


def digits_trainer(
    steps: int,
    *,
    seed: int = 0,
    skip: int = 9,
    tau: float = 0.99,
    target: str = "independent",
    device: torch.device | str = "cpu",
    distributed: bool = False,
) -> Trainer:
    """Return the trainer of a new U-Net for `load_digits("train")`, with everything but the loss as it was shipped.

    Batches of 128, AdamW with learning rate 2e-3 to 0 on a cosine, moving average 0.999, half of the labels dropped.

    Args:
        steps: after how many the learning rate is 0: those that it is meant to be trained for.
        seed: of the first weights and of every random choice, 0 to 2^63 - 1.
        skip: how many timesteps the loss looks back, as in `training_coefficients`.
        tau: weight of DDPM's loss in it; 1: that loss alone.
        target: what the other part compares with: "independent", "same" or "consistent".
        device: where to train.
        distributed: do this rank's share: put the model in DistributedDataParallel, with the default process group.

    Returns:
        The trainer; call its `fit(load_digits("train"), steps, ...)`, sample with its `average`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown.
    """
    unet = new_unet(seed, device)
    return Trainer(
        DistributedDataParallel(unet) if distributed else unet,
        noise_schedule("linear"),
        skip=skip,
        tau=tau,
        target=target,
        batch_size=128,
        learning_rate=2e-3,
        cosine_steps=steps,
        weight_decay=1e-4,
        ema_decay=0.999,
        conditioning_dropout=0.5,
        null_conditioning=[NULL_CLASS],
        seed=seed,
    )


def new_unet(seed: int, device: torch.device | str = "cpu") -> DigitsUNet:
    """Return a `DigitsUNet` to train, in channels-last layout, whose convolutions are faster on the CPU.

    Args:
        seed: of its random weights, which depend on nothing else.
        device: where to put them.

    Returns:
        A new float32 network in training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = DigitsUNet()
    return unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def denoising_loss(unet: DigitsUNet, split: str = "test", *, conditional: bool = False) -> float:
    """Mean squared error of the noise at timesteps 50, 150, ..., 950, with the same noise on every call.

    Args:
        unet: the model, on any device.
        split: "train" or "test", of which the first 355 images are used: all those held out, as many of the others.
        conditional: tell the model the class of each image.

    Returns:
        The mean over timesteps, images and pixels.

    Raises:
        ValueError: `split` is unknown.
        ImportError: scikit-learn is not installed.
    """
    alphas = noise_schedule("linear").alphas_cumprod[50::100]
    levels = zip(range(50, 1000, 100), alphas.sqrt(), (1 - alphas).sqrt(), strict=True)
    return _mean_loss(unet, split, conditional, levels, lambda _, noise: noise)


def velocity_loss(unet: DigitsUNet, split: str = "test", *, conditional: bool = False) -> float:
    """Mean squared error of a flow's velocity at t = 0.05, 0.15, ..., 0.95, with the same noise on every call.

    With x_t = (1 - t) x0 + t e the velocity is e - x0, and the model is called with 1000 t.

    Args:
        unet: the model, on any device.
        split: "train" or "test", of which the images are used that `denoising_loss` uses.
        conditional: tell the model the class of each image.

    Returns:
        The mean over times, images and pixels.

    Raises:
        ValueError: `split` is unknown.
        ImportError: scikit-learn is not installed.
    """
    levels = ((timestep, 1 - timestep / 1000, timestep / 1000) for timestep in range(50, 1000, 100))
    return _mean_loss(unet, split, conditional, levels, lambda images, noise: noise - images)


@torch.no_grad()
def _mean_loss(
    unet: DigitsUNet,
    split: str,
    conditional: bool,
    levels: Iterable[tuple[int, Tensor | float, Tensor | float]],
    target: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Compare predictions with `target(images, noise)` at levels, each a timestep, a signal and a noise."""
    images, labels = (tensor[:_COMPARED] for tensor in load_digits(split))
    device = unet.conv_in.weight.device
    generator = torch.Generator().manual_seed(1)
    losses: list[Tensor] = []
    for timestep, signal, scale in levels:
        noise = torch.randn(images.shape, generator=generator)
        noisy = (signal * images + scale * noise).to(device)
        output = unet(
            noisy, torch.tensor(timestep, device=device), labels.to(device) if conditional else None
        )
        losses.append(F.mse_loss(output.cpu(), target(images, noise)))
    return torch.stack(losses).mean().item()
