"""Training of the digits U-Net, and its loss on images that it has or has not seen."""

from __future__ import annotations

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = DigitsUNet()
    # Channels-last convolutions are faster on the CPU.
    unet = unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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


@torch.no_grad()
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
    images, labels = (tensor[:_COMPARED] for tensor in load_digits(split))
    alphas_cumprod = noise_schedule("linear").alphas_cumprod
    device = unet.conv_in.weight.device
    generator = torch.Generator().manual_seed(1)
    losses: list[Tensor] = []
    for timestep in range(50, len(alphas_cumprod), 100):
        noise = torch.randn(images.shape, generator=generator)
        alpha = alphas_cumprod[timestep]
        noisy = (alpha.sqrt() * images + (1 - alpha).sqrt() * noise).to(device)
        output = unet(
            noisy, torch.tensor(timestep, device=device), labels.to(device) if conditional else None
        )
        losses.append(F.mse_loss(output.cpu(), noise))
    return torch.stack(losses).mean().item()
