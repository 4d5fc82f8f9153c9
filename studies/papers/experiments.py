"""The experiments as data: which cells each has, how a cell is sampled, and what the papers have published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from gmmkernel import DDIMSampler, Mixture, gaussian_mixture, moment_report
from gmmkernel.samplers import Sampler

if TYPE_CHECKING:
    from gmmkernel.pipelines import ImagePipeline

COMPONENTS = 8
VARIANTS = {
    "RAND": ("rand", False),
    "ORTHO": ("ortho", False),
    "VUB": ("ortho-vub", False),
    "VUB*": ("ortho-vub", True),
}
"""By the papers' names: a name of `gaussian_mixture`, and whether all steps share one mixture."""

SIMPLE, SKIP, SCALED = "simple", "skip", "scaled"
MODELS = (SIMPLE, SKIP, SCALED)
"""Of S2-DM: two trainings, and the first one's output times the factor that the second loss's optimum has."""

SKIP_LOSS: dict[str, Any] = {"skip": 9, "tau": 0.99, "target": "independent"}
METHODS = {"ddim": "DDIM", "plms": "PNDM", "deis": "DEIS", "dpm-solver": "DPM-Solver++(2M)"}
"""By the names of `gmmkernel.samplers.methods`: what tables call them. PNDM is PLMS, which alone takes 1000 steps."""


@dataclass(frozen=True)
class Cell:
    """One FID: images of one sampler.

    Attributes:
        steps: of sampling.
        method: a name of `METHODS`.
        eta: share of fresh noise.
        variant: a mixture of `VARIANTS`; None: the Gaussian step.
        scale: of its offsets, s.
        control: not the mixture, but plain DDIM with isotropic noise of the variance that it has.
        model: of S2-DM, one of `MODELS`.
    """

    steps: int
    method: str = "ddim"
    eta: float = 0.0
    variant: str | None = None
    scale: float | None = None
    control: bool = False
    model: str | None = None

    @property
    def name(self) -> str:
        """What it is called in files."""
        parts = [] if self.model is None else [self.model]
        parts.append(str(self.steps))
        if self.model is None and self.method == "ddim":
            parts.append(f"eta{self.eta:g}")
        parts.append(self.method if self.variant is None else self.variant.lower().replace("*", "-shared"))
        if self.scale is not None:
            parts.append(f"{self.scale:g}")
        return "-".join([*parts, "control"] if self.control else parts)

    @property
    def calls(self) -> int:
        """Network calls for each image; with guidance each is of twice the batch."""
        return self.steps + (self.method == "plms")

    def mixture(self, elements: int) -> Mixture:
        """Return the mixture, of samples of so many elements."""
        assert self.variant is not None
        assert self.scale is not None
        variant, shared = VARIANTS[self.variant]
        return gaussian_mixture(
            variant,
            elements=elements,
            n_components=COMPONENTS,
            scale=self.scale,
            n_steps=None if shared else self.steps,
        )

    def sampler(self, pipeline: ImagePipeline) -> Sampler:
        """Return the sampler for a pipeline's network."""
        if self.variant is None:
            return pipeline.sampler(self.steps, method=self.method, eta=self.eta)
        mixture = self.mixture(prod(pipeline.shape))
        if not self.control:
            return pipeline.sampler(self.steps, method=self.method, eta=self.eta, mixture=mixture)
        plain = pipeline.sampler(self.steps, method=self.method, eta=self.eta)
        assert isinstance(plain, DDIMSampler)
        return plain.with_sigma(moment_report(mixture, plain.coefficients).control_sigma)


class Figure(NamedTuple):
    """What a paper has published of a line.

    Attributes:
        fid: the distance.
        score: the Inception Score; None: not published.
        scale: s of the best mixture; None: not published, or none.
    """

    fid: float
    score: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Experiment:
    """What decides a table.

    Attributes:
        name: what the command calls it.
        title: what it is.
        count: images of each cell.
        steps: of sampling.
        batch_size: images made together, where nobody chooses.
        pipeline: its name on the Hugging Face Hub; None: the reader's, or trained.
        guidance: of classifier-free guidance.
        classes: whether images are of classes, as many of each.
        eta: shares of fresh noise.
        scales: of the offsets.
        recipe: of the trainings; None: a published model is sampled.
        published: by steps, eta and line; an eta of None: of no eta.
        source: where the published figures are from.
        claims: what else is published, as sentences.
        differs: what is otherwise than in the paper, as sentences.
    """

    name: str
    title: str
    count: int
    steps: tuple[int, ...]
    batch_size: int
    pipeline: str | None = None
    guidance: float | None = None
    classes: bool = False
    eta: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)
    scales: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    recipe: str | None = None
    published: dict[tuple[int, float | None, str], Figure] | None = None
    source: str = ""
    claims: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    def cells(
        self,
        steps: Sequence[int] | None = None,
        eta: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
    ) -> list[Cell]:
        """Return the cells in the order in which they are made; None: those of the full size.

        Every mixture is followed by its control: at eta = 0 the step has no variance to give, so that offsets add
        s^2/D (RAND) or s^2 (K - 1)/(K D) of it to each element, and that alone may be what helps.
        """
        steps = self.steps if steps is None else steps
        if self.recipe is not None:
            return [
                Cell(count, method, model=model) for count in steps for method in METHODS for model in MODELS
            ]
        found = []
        for count in steps:
            for place, share in enumerate(self.eta if eta is None else eta):
                found.append(Cell(count, eta=share))
                if place == 0:
                    found.append(Cell(count, "dpm-solver"))
                for variant in VARIANTS:
                    for scale in self.scales if scales is None else scales:
                        mixture = {"eta": share, "variant": variant, "scale": scale}
                        found += [Cell(count, **mixture), Cell(count, **mixture, control=True)]  # type: ignore[arg-type]
        return found


def _figures(table: str, scores: str = "") -> dict[tuple[int, float | None, str], Figure]:
    """Read a table whose first line has the steps, and each other an eta, a line's name, and FID or FID@s."""
    (_, _, *steps), *lines = (line.split() for line in table.strip().splitlines())
    more = [line.split()[2:] for line in scores.strip().splitlines()[1:]] or [[""] * len(steps)] * len(lines)
    found = {}
    for (eta, name, *values), line in zip(lines, more, strict=True):
        for count, value, score in zip(steps, values, line, strict=True):
            fid, _, scale = value.partition("@")
            key = int(count), None if eta == "-" else float(eta), name
            found[key] = Figure(float(fid), float(score) if score else None, float(scale) if scale else None)
    return found


_DDIM_GMM = (
    'P. Gabbur, "Improved DDIM Sampling with Moment Matching Gaussian Mixtures", arXiv 2311.04938, the version with '
    "rectified flows (v4 or later), appendix A"
)
_SAME = (
    "Timesteps, noise levels and the last step are those of the pipeline's scheduler.",
    "Offsets are made orthogonal by Gram-Schmidt, not by a singular value decomposition.",
)

_CELEBAHQ = """
eta method 10        20          50          100
0   DDIM   32.95     18.58       12.65       11.42
0   RAND   28.01@10  18.74@1     12.33@1     11.35@1
0   ORTHO  27.97@10  18.71@1     12.41@1     11.44@1
0   VUB    27.94@10  18.71@1     12.41@1     11.44@1
0   VUB*   27.84@10  18.53@1     12.62@1     11.42@0.1
0.2 DDIM   33.74     19.48       12.79       11.41
0.2 RAND   32.32@10  17.26@10    12.80@0.01  11.36@0.1
0.2 ORTHO  32.42@10  17.33@10    12.79@1     11.37@0.01
0.2 VUB    28.32@10  19.18@1     12.58@1     11.29@1
0.2 VUB*   27.68@10  19.77@0.01  12.81@1     11.34@1
0.5 DDIM   39.04     22.01       13.99       12.05
0.5 RAND   37.15@10  20.66@10    12.95@10    12.26@1
0.5 ORTHO  37.27@10  20.78@10    12.98@10    12.25@0.1
0.5 VUB    31.00@10  20.65@10    13.87@1     12.00@1
0.5 VUB*   31.42@10  20.89@10    14.09@1     11.91@1
1   DDIM   68.67     39.20       21.53       16.09
1   RAND   66.94@10  37.63@10    19.33@10    14.14@10
1   ORTHO  67.15@10  37.79@1     19.36@10    14.37@10
1   VUB    60.65@10  28.03@10    15.97@10    15.60@1
1   VUB*   61.15@10  27.41@10    16.48@10    15.94@1
"""

_FFHQ = """
eta method 10        20          50          100
0   DDIM   28.73     15.68       11.67       11.17
0   RAND   26.55@10  15.64@1     11.83@0.01  11.12@0.01
0   ORTHO  26.46@10  15.67@1     11.83@0.01  11.12@0.01
0   VUB    26.46@10  15.67@1     11.83@0.01  11.12@0.01
0   VUB*   27.18@10  15.43@1     11.77@0.1   11.24@0.1
0.2 DDIM   29.33     15.83       11.66       11.07
0.2 RAND   29.27@0.1 16.03@0.1   11.87@0.01  10.92@0.01
0.2 ORTHO  29.09@10  16.01@1     11.87@0.01  10.92@0.01
0.2 VUB    26.90@10  15.96@1     11.87@0.01  10.91@0.1
0.2 VUB*   27.35@10  15.85@0.01  11.62@0.01  11.11@0.01
0.5 DDIM   35.53     17.83       11.89       10.53
0.5 RAND   35.16@10  18.01@10    11.85@1     10.49@0.01
0.5 ORTHO  35.00@10  17.92@10    11.87@0.1   10.47@0.1
0.5 VUB    29.03@10  18.16@1     11.78@1     10.45@0.1
0.5 VUB*   28.73@10  17.89@1     11.92@1     10.81@1
1   DDIM   81.88     37.09       15.45       11.33
1   RAND   79.93     35.85@10    15.17@10    11.50@1
1   ORTHO  80.18@10  35.93@10    15.03@10    11.51@1
1   VUB    69.25@10  23.88@1     15.44@0.1   11.44@1
1   VUB*   67.72@10  23.76@10    15.56@1     11.38@0.1
"""

_IMAGENET = """
eta method 10     100
0   DDIM   10.15  9.57
0   RAND   6.90   9.23
0   ORTHO  6.90   9.20
0   VUB    6.94   9.13
0   VUB*   6.72   9.22
0.2 DDIM   10.35  9.67
0.2 RAND   8.52   9.70
0.2 ORTHO  8.54   9.73
0.2 VUB    7.06   9.27
0.2 VUB*   6.75   9.38
0.5 DDIM   11.15  10.70
0.5 RAND   10.28  10.60
0.5 ORTHO  10.29  10.56
0.5 VUB    7.59   10.27
0.5 VUB*   7.44   10.38
1   DDIM   17.50  12.97
1   RAND   15.95  10.84
1   ORTHO  15.94  10.86
1   VUB    12.38  12.80
1   VUB*   12.34  12.80
-   DPM-Solver 9.75 9.30
"""

_IMAGENET_SCORES = """
eta method 10     100
0   DDIM   196.73 237.98
0   RAND   209.90 238.63
0   ORTHO  207.65 238.97
0   VUB    207.85 240.88
0   VUB*   200.89 238.97
0.2 DDIM   196.15 241.48
0.2 RAND   209.22 239.52
0.2 ORTHO  209.02 238.85
0.2 VUB    208.91 243.14
0.2 VUB*   204.41 241.09
0.5 DDIM   193.44 250.97
0.5 RAND   198.14 251.02
0.5 ORTHO  197.84 250.27
0.5 VUB    211.93 251.72
0.5 VUB*   210.79 251.74
1   DDIM   148.96 272.39
1   RAND   157.54 270.73
1   ORTHO  158.41 270.28
1   VUB    187.49 273.73
1   VUB*   185.85 271.89
-   DPM-Solver 225.68 239.11
"""

_S2DM = 'Y. Wang and S. Li, "S2-DMs: Skip-Step Diffusion Models", arXiv 2401.01520 v2, abstract'
_SUBMITTED = (
    "An earlier version (submitted to ICLR 2024, abstract) has an FID of {} in ten steps with the skip-step loss; it "
    "does not say with which sampler."
)
_S2DM_DIFFERS = (
    "PNDM is PLMS, which calls the network S + 1 times; F-PNDM, with S + 9, cannot take all 1000 timesteps.",
    'Nothing is clipped while sampling; timesteps are evenly spaced from 0 ("leading").',
    "DPM-Solver++(2M) and the model of the simple loss with scaled output are controls that the paper lacks.",
    "One training of each loss: how much FID differs between seeds is not known from it.",
)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "ddim-gmm-celebahq",
            "DDIM-GMM, CelebA-HQ 256x256, without conditions",
            count=5000,
            steps=(10, 20, 50, 100),
            batch_size=50,
            pipeline="CompVis/ldm-celebahq-256",
            published=_figures(_CELEBAHQ),
            source=f"{_DDIM_GMM}, table 7 (CelebAHQ)",
            claims=("DDPM in 1000 steps has an FID of 11.59 there.",),
            differs=(
                "The paper trained its own latent diffusion model (64x64x3 latents of a VQ-VAE, as here); the one here "
                "was published with latent diffusion (Rombach et al. 2022). The figures stand beside each other; "
                "they are not of the same model.",
                *_SAME,
            ),
        ),
        Experiment(
            "ddim-gmm-ffhq",
            "DDIM-GMM, FFHQ 256x256, without conditions",
            count=10000,
            steps=(10, 20, 50, 100),
            batch_size=50,
            published=_figures(_FFHQ),
            source=f"{_DDIM_GMM}, table 8 (FFHQ)",
            claims=("DDPM in 1000 steps has an FID of 9.69 there.",),
            differs=(
                "The paper trained its own latent diffusion model (64x64x3 latents of a VQ-VAE); the one here is the "
                "reader's. The figures stand beside each other; they are not of the same model.",
                *_SAME,
            ),
        ),
        Experiment(
            "ddim-gmm-imagenet",
            "DDIM-GMM, ImageNet 256x256, of classes, guidance 2.5",
            count=50000,
            steps=(10, 100),
            batch_size=50,
            pipeline="facebook/DiT-XL-2-256",
            guidance=2.5,
            classes=True,
            published=_figures(_IMAGENET, _IMAGENET_SCORES),
            source=f"{_DDIM_GMM}, tables 11 and 12 (guidance 2.5), and the comparison with DPM-Solver in A.11",
            claims=("DDPM in 1000 steps has an FID of 12.61 and an Inception Score of 277.40 there.",),
            differs=(
                "The paper trained its own latent diffusion model, a U-Net of 32x32 latents of a VQ-VAE; the one here "
                "is DiT-XL/2 (Peebles and Xie 2023), or the reader's. The figures stand beside each other; they are "
                "not of the same model.",
                "The paper's DPM-Solver is that of Lu et al. (2022); here it is DPM-Solver++(2M).",
                *_SAME,
            ),
        ),
        Experiment(
            "s2dm-cifar10",
            "S2-DM, CIFAR-10 32x32",
            count=50000,
            steps=(10, 20, 50, 100, 200, 500, 1000),
            batch_size=500,
            eta=(),
            scales=(),
            recipe="cifar10",
            source=_S2DM,
            claims=("The paper claims an FID that is 3.27 to 14.06% lower.", _SUBMITTED.format("8.01")),
            differs=_S2DM_DIFFERS,
        ),
        Experiment(
            "s2dm-celeba",
            "S2-DM, CelebA 64x64",
            count=50000,
            steps=(10, 20, 50, 100, 200, 500, 1000),
            batch_size=250,
            eta=(),
            scales=(),
            recipe="celeba64",
            source=_S2DM,
            claims=("The paper claims an FID that is 8.97 to 27.08% lower.", _SUBMITTED.format("6.41")),
            differs=_S2DM_DIFFERS,
        ),
    )
}
"""By their names."""
