"""The shipped U-Nets and classifier: interface, determinism, and that they were trained."""

from __future__ import annotations

import re

import pytest
import torch

from gmmkernel import FlowSampler, digits
from gmmkernel.schedules import noise_schedule

Digits = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def held_out() -> Digits:
    return digits.load_digits("test")


@pytest.fixture(scope="module")
def unet() -> digits.DigitsUNet:
    return digits.load_unet()


@pytest.mark.parametrize("batch", [0, 1, 3, 63])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@torch.no_grad()
def test_unet_keeps_the_shape(unet: digits.DigitsUNet, batch: int, per_sample: bool, labelled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 1, 8, 8, generator=generator)
    timestep = torch.randint(0, 1000, (batch,) if per_sample else (), generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator) if labelled else None
    output = unet(sample, timestep, labels)
    assert output.shape == sample.shape
    assert output.dtype == torch.float32
    assert bool(output.isfinite().all())
    assert torch.equal(output, unet(sample, timestep, labels))


@torch.no_grad()
def test_no_labels_is_the_null_class(unet: digits.DigitsUNet) -> None:
    sample = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor(400)
    unconditional = unet(sample, timestep)
    assert torch.equal(unconditional, unet(sample, timestep, torch.full((3,), digits.NULL_CLASS)))
    assert not torch.allclose(unconditional, unet(sample, timestep, torch.tensor([1, 2, 3])), atol=1e-3)


@torch.no_grad()
def test_one_timestep_is_that_step_for_each(unet: digits.DigitsUNet) -> None:
    sample = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unet(sample, torch.tensor(7)), unet(sample, torch.full((3,), 7)))
    assert not torch.equal(unet(sample, torch.tensor(7)), unet(sample, torch.tensor(8)))


@torch.no_grad()
def test_floating_point_timesteps(unet: digits.DigitsUNet) -> None:
    sample = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([0, 7, 500, 999])
    assert torch.equal(unet(sample, timestep), unet(sample, timestep.float()))
    assert torch.equal(unet(sample, timestep), unet(sample, timestep.double()))
    between = [unet(sample, timestep + offset) for offset in (0.0, 0.25, 0.26)]
    far, near = (between[1] - between[0]).abs().amax(), (between[2] - between[1]).abs().amax()
    assert 0 < near < far / 5


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    model = digits.load_unet()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 1, 8, 8, generator=generator)
    model(sample, torch.tensor([0, 10, 500, 999]), torch.tensor([1, 2, 3, 10])).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


def test_float64_weights_take_float64_samples() -> None:
    sample = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single = digits.load_unet()(sample, torch.tensor(300))
        double = digits.load_unet().double()(sample.double(), torch.tensor(300))
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


SAMPLE = torch.zeros(2, 1, 8, 8)
STEP = torch.tensor(5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 8, 8), STEP), ValueError, "sample: expected shape [B, 1, 8, 8], got [2, 8, 8]"),
        (
            (torch.zeros(2, 3, 8, 8), STEP),
            ValueError,
            "sample: expected shape [B, 1, 8, 8], got [2, 3, 8, 8]",
        ),
        (
            (SAMPLE.double(), STEP),
            TypeError,
            "sample: expected torch.float32, the weights' type, got torch.float64",
        ),
        (
            (SAMPLE, STEP.half()),
            TypeError,
            "timestep: expected torch.int64, torch.float32 or torch.float64, got torch.float16",
        ),
        (
            (SAMPLE, STEP.int()),
            TypeError,
            "timestep: expected torch.int64, torch.float32 or torch.float64, got torch.int32",
        ),
        (
            (SAMPLE, torch.zeros(3, dtype=torch.int64)),
            ValueError,
            "timestep: expected shape [] or [2], got [3]",
        ),
        (
            (SAMPLE, torch.zeros(1, dtype=torch.int64)),
            ValueError,
            "timestep: expected shape [] or [2], got [1]",
        ),
        ((SAMPLE, STEP, torch.zeros(2)), TypeError, "class_labels: expected torch.int64, got torch.float32"),
        ((SAMPLE, STEP, STEP), ValueError, "class_labels: expected shape [2], got []"),
    ],
)
def test_unet_refuses(
    unet: digits.DigitsUNet, arguments: tuple[torch.Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        unet(*arguments)


def test_classifier_refuses() -> None:
    classifier = digits.load_classifier()
    with pytest.raises(ValueError, match=re.escape("images: expected shape [B, 1, 8, 8], got [2, 64]")):
        classifier(torch.zeros(2, 64))
    with pytest.raises(TypeError, match=re.escape("images: expected torch.float32")):
        classifier.features(SAMPLE.double())


@pytest.mark.parametrize("load", [digits.load_unet, digits.load_flow_unet, digits.load_classifier])
def test_loading_twice_gives_equal_and_separate_weights(load: object) -> None:
    first, second = load(), load()  # type: ignore[operator]
    assert not first.training
    assert all(weight.dtype == torch.float32 for weight in first.parameters())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert bool(next(second.parameters()).any())


def test_classifier_knows_the_held_out_digits(held_out: Digits) -> None:
    images, labels = held_out
    classifier = digits.load_classifier()
    with torch.no_grad():
        features, logits = classifier.features(images), classifier(images)
    assert features.shape == (355, digits.NUM_FEATURES)
    assert logits.shape == (355, 10)
    assert (logits.argmax(dim=1) == labels).double().mean() > 0.98


def linear_denoising_loss(images: torch.Tensor, alpha: torch.Tensor) -> float:
    """Loss of the best affine estimate of the noise: mean of a l / (a l + 1 - a), l the variances."""
    variances = torch.linalg.eigvalsh(images.flatten(1).double().T.cov())
    return float((alpha * variances / (alpha * variances + 1 - alpha)).mean())


def losses(
    model: digits.DigitsUNet, data: Digits, timestep: int, *labels: torch.Tensor | None
) -> list[float]:
    """Mean squared error of the predicted noise for each choice of labels, with the same noise."""
    noise = torch.randn(data[0].shape, generator=torch.Generator().manual_seed(timestep))
    alpha = noise_schedule("linear").alphas_cumprod[timestep]
    noisy = (alpha.sqrt() * data[0] + (1 - alpha).sqrt() * noise).float()
    return [
        float((model(noisy, torch.tensor(timestep), classes) - noise).square().mean()) for classes in labels
    ]


# Without a class the best denoiser is nearly linear from about timestep 400 on, so there is less to show there.
@pytest.mark.parametrize(
    ("timestep", "labelled"),
    [(25, False), (50, False), (100, False), (200, False), (25, True), (200, True), (400, True), (500, True)],
)
@torch.no_grad()
def test_unet_denoises_better_than_any_linear_filter(
    unet: digits.DigitsUNet, held_out: Digits, timestep: int, labelled: bool
) -> None:
    alpha = noise_schedule("linear").alphas_cumprod[timestep]
    bound = 0.75 * linear_denoising_loss(digits.load_digits()[0], alpha)
    classes = held_out[1] if labelled else None
    assert losses(unet, held_out, timestep, classes)[0] < bound
    torch.manual_seed(0)
    assert losses(digits.DigitsUNet(), held_out, timestep, classes)[0] > 1.5 * bound


@torch.no_grad()
def test_class_labels_help(unet: digits.DigitsUNet, held_out: Digits) -> None:
    right, none, wrong = losses(unet, held_out, 500, held_out[1], None, (held_out[1] + 1) % 10)
    assert right < none < wrong


def test_flow_unet_knows_the_velocity_better_than_any_linear_filter() -> None:
    """The best affine estimate of e - x0 from x_t leaves l / ((1 - t)^2 l + t^2), l the variances of the images."""
    variances = torch.linalg.eigvalsh(digits.load_digits()[0].flatten(1).double().T.cov())
    times = torch.arange(0.05, 1, 0.1, dtype=torch.float64)[:, None]
    linear = float((variances / ((1 - times) ** 2 * variances + times**2)).mean())
    unet = digits.load_flow_unet()
    alone, told = (digits.velocity_loss(unet, conditional=conditional) for conditional in (False, True))
    assert told < alone < 0.75 * linear


@torch.no_grad()
def test_a_flow_draws_the_digits_asked_for() -> None:
    labels = torch.arange(100) % 10
    drawn = FlowSampler(20).sample(
        digits.load_flow_unet(),
        torch.arange(100),
        digits.IMAGE_SHAPE,
        conditioning=(labels,),
        progress=False,
    )
    images = drawn.sample.clamp(-1, 1)
    assert (digits.load_classifier()(images).argmax(dim=1) == labels).double().mean() > 0.9
    assert digits.digit_fid(images) < 12  # of as much white noise it is above 400
