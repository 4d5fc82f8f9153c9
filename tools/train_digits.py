"""Train the digits model: classifier, reference statistics and U-Net, one safetensors file each, and measure them.

The same seed, options, thread count, torch version and machine give the same weights. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gmmkernel._files import write_whole
from gmmkernel.digits.classifier import DigitsClassifier
from gmmkernel.digits.data import load_digits
from gmmkernel.digits.distance import feature_statistics, frechet_distance
from gmmkernel.digits.loading import CLASSIFIER_FILE, STATISTICS_FILE, UNET_FILE
from gmmkernel.digits.training import denoising_loss, digits_trainer
from gmmkernel.digits.unet import IMAGE_SHAPE, NUM_CLASSES, DigitsUNet
from gmmkernel.samplers import DDIMSampler
from gmmkernel.schedules import noise_schedule

WEIGHTS = Path(__file__).resolve().parent.parent / "gmmkernel" / "digits" / "weights"
CLASSIFIER_BATCH = 128
HELD_OUT_EVERY = 1000
SAMPLING_STEPS = (50, 20, 10, 5)
CLASS_SAMPLES = 500
CHUNK = 500
"""Samples carried together: a network's bits depend on it."""


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
        "--keep-classifier",
        action="store_true",
        help="do not train it: read it and the statistics from the output folder, so that distances keep their scale",
    )
    parser.add_argument(
        "--keep-unet",
        action="store_true",
        help="do not train it: read it from the output folder, and measure",
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
        index = torch.randint(0, len(images), (CLASSIFIER_BATCH,), generator=generator)
        batch = shift(images[index], generator)
        batch = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        optimise(model, F.cross_entropy(model(batch.to(device)), labels[index].to(device)), optimiser)
        schedule.step()
    return model.eval()


def train_unet(steps: int, seed: int, device: str) -> DigitsUNet:
    """Train with the loss of DDPM; the held-out loss is printed on the way.

    Returns:
        The exponential moving average of the weights.
    """
    trainer = digits_trainer(steps, tau=1.0, seed=seed, device=device)
    unet = trainer.average
    assert isinstance(unet, DigitsUNet)
    for done in [*range(HELD_OUT_EVERY, steps, HELD_OUT_EVERY), steps]:
        trainer.fit(load_digits("train"), done)
        print(f"step {done}: held-out loss {denoising_loss(unet):.4f}", flush=True)
    return unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def sample_ddim(
    unet: DigitsUNet, steps: int, count: int, device: str, labels: Tensor | None = None
) -> Tensor:
    """Draw digits with deterministic DDIM steps, of any class or of those given, clamped to [-1, 1] at the end."""
    sampler = DDIMSampler(noise_schedule("linear"), steps, device=device)
    conditioning = () if labels is None else (labels,)
    drawn = sampler.sample(
        unet, torch.arange(count), IMAGE_SHAPE, conditioning=conditioning, batch_size=min(CHUNK, count)
    )
    return drawn.sample.clamp(-1, 1)


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


def nearest(images: Tensor, split: str) -> float:
    """Return the mean Euclidean distance of images from the nearest of 355 real ones."""
    real = load_digits(split)[0][:355].flatten(1)
    return float(torch.cdist(images.flatten(1).cpu(), real).amin(dim=1).mean())


def evaluate(
    unet: DigitsUNet,
    classifier: DigitsClassifier,
    reference: tuple[Tensor, Tensor],
    count: int,
    device: str,
) -> None:
    """Print the losses, the noise floor and the digit-FID of `count` samples in 5 groups."""
    for split in ("train", "test"):
        for conditional in (False, True):
            loss = denoising_loss(unet, split, conditional=conditional)
            print(f"U-Net: {split} loss {loss:.4f} ({'with' if conditional else 'without'} class)")
    print(f"noise floor, two halves of the real digits: {mean_and_error(noise_floor(classifier, device))}")
    for steps in SAMPLING_STEPS:
        samples = sample_ddim(unet, steps, count, device)
        distances = [
            frechet_distance(*feature_statistics(group, classifier), *reference) for group in samples.chunk(5)
        ]
        print(
            f"digit-FID of {steps}-step DDIM, 5 groups of {count // 5}: {mean_and_error(distances)}",
            flush=True,
        )
        if steps == SAMPLING_STEPS[0]:
            whole = frechet_distance(*feature_statistics(samples, classifier), *reference)
            print(f"the same, {count} as one group: {whole:.3f}")
            print(
                f"distance from the nearest real image: {nearest(samples, 'train'):.3f} (training), "
                f"{nearest(samples, 'test'):.3f} (held out)"
            )
    labels = torch.arange(min(count, CLASS_SAMPLES), device=device) % NUM_CLASSES
    drawn = sample_ddim(unet, SAMPLING_STEPS[0], len(labels), device, labels)
    right = (classifier(drawn).argmax(dim=1) == labels).double().mean().item()
    print(f"class asked for, {len(labels)} samples of {SAMPLING_STEPS[0]} steps: {right:.3f} right")


def write(path: Path, tensors: dict[str, Tensor], training: dict[str, object]) -> None:
    """Write a safetensors file whole or not at all; `training` goes into its metadata as JSON."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(tensors, {"training": json.dumps(training, sort_keys=True)}))


def main() -> None:
    """Train, write the files and print what was measured."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Deterministic algorithms on a GPU need it.
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    device, output = arguments.device, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    command = (
        f"python tools/train_digits.py --steps {arguments.steps} "
        f"--classifier-steps {arguments.classifier_steps} "
        f"--seed {arguments.seed} --device {device} --threads {arguments.threads}"
    )
    training: dict[str, object] = {"command": command, "seed": arguments.seed, "torch": torch.__version__}
    start = time.process_time()

    if arguments.keep_classifier:
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_file(output / CLASSIFIER_FILE))
        classifier = classifier.to(device).eval()
        statistics = load_file(output / STATISTICS_FILE)
        reference = statistics["mean"], statistics["cov"]
    else:
        classifier = train_classifier(arguments.classifier_steps, device, generator)
        write(output / CLASSIFIER_FILE, classifier.state_dict(), training)
        reference = feature_statistics(load_digits()[0].to(device), classifier)
        write(output / STATISTICS_FILE, {"mean": reference[0], "cov": reference[1]}, training)
    images, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (classifier(images.to(device)).argmax(dim=1).cpu() == labels).double().mean().item()
    print(f"classifier: held-out accuracy {accuracy:.4f}", flush=True)

    if arguments.keep_unet:
        unet = DigitsUNet()
        unet.load_state_dict(load_file(output / UNET_FILE))
        unet = unet.to(device).eval()
    else:
        unet = train_unet(arguments.steps, arguments.seed, device)
        write(output / UNET_FILE, unet.state_dict(), training)
    print(f"trained in {time.process_time() - start:.0f} s of processor time")
    with torch.no_grad():
        evaluate(unet, classifier, reference, arguments.samples, device)


if __name__ == "__main__":
    main()
