"""Train the digits model: classifier, reference statistics and U-Net, one safetensors file each.

The same seed, options, thread count, torch version and machine give the same weights. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gmmkernel.digits.classifier import DigitsClassifier
from gmmkernel.digits.data import load_digits
from gmmkernel.digits.distance import feature_statistics, frechet_distance
from gmmkernel.digits.loading import CLASSIFIER_FILE, STATISTICS_FILE, UNET_FILE
from gmmkernel.digits.unet import IMAGE_SHAPE, NULL_CLASS, DigitsUNet
from gmmkernel.schedules import noise_schedule

WEIGHTS = Path(__file__).resolve().parent.parent / "gmmkernel" / "digits" / "weights"
NUM_TIMESTEPS = 1000
BATCH = 128
EMA_DECAY = 0.999
LABEL_DROPOUT = 0.5
SAMPLING_STEPS = 50


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for the three files")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps of the U-Net")
    parser.add_argument(
        "--classifier-steps", type=int, default=2000, help="optimiser steps of the classifier"
    )
    parser.add_argument(
        "--samples", type=int, default=5000, help="images drawn to measure the digit-FID, in 5 groups"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights, the data order and the noise"
    )
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the weights depend on it")
    arguments = parser.parse_args()
    for name in ("steps", "classifier_steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    if arguments.samples < 10 or arguments.samples % 5:
        parser.error(f"--samples: expected a multiple of 5, at least 10, got {arguments.samples}")
    return arguments


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixels along each axis, background (-1) coming in."""
    batch = images.shape[0]
    offsets = torch.randint(0, 3, (2, batch, 1, 1), generator=generator)
    rows = offsets[0] + torch.arange(8)[None, :, None]
    columns = offsets[1] + torch.arange(8)[None, None, :]
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[torch.arange(batch)[:, None, None], 0, rows, columns].unsqueeze(1)


def optimise(model: nn.Module, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Make one step with the gradient's norm clipped to 1."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def train_classifier(steps: int, device: str, generator: torch.Generator) -> DigitsClassifier:
    """Train on shifted images with a little noise."""
    images, labels = load_digits("train")
    model = DigitsClassifier().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in tqdm(range(steps), desc="classifier", mininterval=1.0):
        index = torch.randint(0, len(images), (BATCH,), generator=generator)
        batch = shift(images[index], generator)
        batch = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        optimise(model, F.cross_entropy(model(batch.to(device)), labels[index].to(device)), optimiser)
        schedule.step()
    return model.eval()


def diffuse(images: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Noise clean images [B, 1, 8, 8] to the given timesteps [B]."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return (alpha.sqrt() * images + (1 - alpha).sqrt() * noise).to(torch.float32)


def train_unet(steps: int, device: str, alphas_cumprod: Tensor, generator: torch.Generator) -> DigitsUNet:
    """Minimise the squared error of the noise; antithetic timesteps, half of the labels dropped.

    Returns:
        The exponential moving average of the weights.
    """
    images, labels = load_digits("train")
    # Channels-last convolutions are faster on the CPU; the weights that are kept get the usual layout again.
    model = DigitsUNet().to(device)
    set_layout(model, torch.channels_last)
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    progress = tqdm(range(steps), desc="U-Net", mininterval=1.0)
    for step in progress:
        index = torch.randint(0, len(images), (BATCH,), generator=generator)
        half = torch.randint(0, NUM_TIMESTEPS, (BATCH // 2,), generator=generator)
        timesteps = torch.cat([half, NUM_TIMESTEPS - 1 - half])
        noise = torch.randn(BATCH, *IMAGE_SHAPE, generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < LABEL_DROPOUT
        classes = labels[index].masked_fill(dropped, NULL_CLASS)
        noisy = diffuse(images[index], noise, alphas_cumprod, timesteps)
        output = model(noisy.to(device), timesteps.to(device), classes.to(device))
        loss = F.mse_loss(output, noise.to(device))
        optimise(model, loss, optimiser)
        schedule.step()
        update_average(average, model, min(EMA_DECAY, (1 + step) / (10 + step)))
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if step % 1000 == 999:
            held_out = denoising_loss(average, "test", device, alphas_cumprod, conditional=False)
            progress.write(f"step {step + 1}: held-out loss {held_out:.4f}")
    set_layout(average, torch.contiguous_format)
    return average.eval()


def set_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Store the convolutions' weights in `layout`."""
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=layout)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average's weights towards the model's by 1 - decay."""
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


@torch.no_grad()
def denoising_loss(
    model: DigitsUNet, split: str, device: str, alphas_cumprod: Tensor, conditional: bool
) -> float:
    """Mean squared error of the noise at timesteps 50, 150, ..., 950, with the same noise on every call.

    Of either split the first 355 images are used: all those held out, and as many of the others.
    """
    images, labels = (tensor[:355] for tensor in load_digits(split))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for timestep in range(50, NUM_TIMESTEPS, 100):
        timesteps = torch.full((len(images),), timestep)
        noise = torch.randn(images.shape, generator=generator)
        noisy = diffuse(images, noise, alphas_cumprod, timesteps)
        output = model(noisy.to(device), timesteps.to(device), labels.to(device) if conditional else None)
        losses.append(F.mse_loss(output.cpu(), noise))
    return torch.stack(losses).mean().item()


@torch.no_grad()
def sample_ddim(model: DigitsUNet, count: int, device: str, alphas_cumprod: Tensor) -> Tensor:
    """Draw digits with 50 deterministic DDIM steps, clamped to [-1, 1] at the end."""
    sample = torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(2)).to(device)
    stride = NUM_TIMESTEPS // SAMPLING_STEPS
    for timestep in tqdm(range(NUM_TIMESTEPS - stride, -1, -stride), desc="DDIM", mininterval=1.0):
        alpha = float(alphas_cumprod[timestep])
        alpha_next = float(alphas_cumprod[timestep - stride]) if timestep else 1.0
        noise = torch.cat(
            [model(chunk, torch.tensor(timestep, device=device)) for chunk in sample.split(500)]
        )
        clean = (sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        sample = alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    return sample.clamp(-1, 1)


def noise_floor(classifier: DigitsClassifier, device: str) -> list[float]:
    """Distances between random halves (898 and 899 images) of the real digits, for ten splits."""
    images = load_digits()[0].to(device)
    generator = torch.Generator().manual_seed(3)
    distances = []
    for _ in range(10):
        order = torch.randperm(len(images), generator=generator)
        first, second = images[order].tensor_split(2)
        distances.append(
            frechet_distance(*feature_statistics(first, classifier), *feature_statistics(second, classifier))
        )
    return distances


def mean_and_error(values: list[float]) -> str:
    """Write the mean and its standard error."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{float(tensor.mean()):.3f} +- {float(tensor.std()) / len(values) ** 0.5:.3f}"


def evaluate(
    unet: DigitsUNet,
    classifier: DigitsClassifier,
    reference: tuple[Tensor, Tensor],
    count: int,
    device: str,
    alphas_cumprod: Tensor,
) -> None:
    """Print the losses, the noise floor and the digit-FID of `count` samples in 5 groups."""
    for split in ("train", "test"):
        for conditional in (False, True):
            loss = denoising_loss(unet, split, device, alphas_cumprod, conditional)
            print(f"U-Net: {split} loss {loss:.4f} ({'with' if conditional else 'without'} class)")
    print(f"noise floor, two halves of the real digits: {mean_and_error(noise_floor(classifier, device))}")
    samples = sample_ddim(unet, count, device, alphas_cumprod)
    distances = [
        frechet_distance(*feature_statistics(group, classifier), *reference) for group in samples.chunk(5)
    ]
    groups = f"5 groups of {count // 5}"
    print(f"digit-FID of {SAMPLING_STEPS}-step DDIM, {groups}: {mean_and_error(distances)}")


def write(path: Path, tensors: dict[str, Tensor], training: dict[str, object]) -> None:
    """Write a safetensors file whole or not at all; `training` goes into its metadata as JSON."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(tensors, {"training": json.dumps(training, sort_keys=True)}))
    os.replace(partial, path)


def main() -> None:
    """Train, write the three files and print what was measured."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Deterministic algorithms on a GPU need it.
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    device = arguments.device
    arguments.output.mkdir(parents=True, exist_ok=True)
    alphas_cumprod = noise_schedule("linear").alphas_cumprod
    command = (
        f"python tools/train_digits.py --steps {arguments.steps} "
        f"--classifier-steps {arguments.classifier_steps} "
        f"--seed {arguments.seed} --device {device} --threads {arguments.threads}"
    )
    training: dict[str, object] = {"command": command, "seed": arguments.seed, "torch": torch.__version__}
    start = time.perf_counter()

    classifier = train_classifier(arguments.classifier_steps, device, generator)
    images, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (classifier(images.to(device)).argmax(dim=1).cpu() == labels).double().mean().item()
    write(arguments.output / CLASSIFIER_FILE, classifier.state_dict(), training)
    print(f"classifier: held-out accuracy {accuracy:.4f}", flush=True)

    reference = feature_statistics(load_digits()[0].to(device), classifier)
    write(arguments.output / STATISTICS_FILE, {"mean": reference[0], "cov": reference[1]}, training)

    unet = train_unet(arguments.steps, device, alphas_cumprod, generator)
    write(arguments.output / UNET_FILE, unet.state_dict(), training)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    evaluate(unet, classifier, reference, arguments.samples, device, alphas_cumprod)


if __name__ == "__main__":
    main()
