"""What is compared: transitions of DDIM at given steps and eta, and what a user would pick instead.

A mixture's scale is either given, as s/sqrt(D) (as rho for exact moment matching), or follows the steps: by the
variance that each step loses. With B the coefficient of x0 in the mean of a step t -> s,

    B = sqrt(a_s) - sqrt(1 - a_s - sigma^2) sqrt(a_t) / sqrt(1 - a_t),

a step that replaces x0 by its mean given x_t loses the covariance B^2 E Cov(x0 | x_t), whatever the data: for
Gaussian data of variance v per element B^2 v (1 - a_t)/(a_t v + 1 - a_t), which at eta = 0 is the "variance" rule
v sin^2(phi_t - phi_s)/(a_t v + 1 - a_t); otherwise B^2 (1 - a_t)/a_t times the mean squared error of the noise that
the model predicts at t, which is its "loss". That is what the optimal variance of Analytic-DPM (Bao et al. 2022, arXiv
2201.06503) has beside sigma^2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel import Column, DDIMSampler, DPMSolverSampler, gaussian_mixture, moment_report, noise_schedule
from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import Sampler
from studies.quality.settings import Cell
from studies.quality.task import Task

SCALES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""s/sqrt(D); also the standard deviations of isotropic noise that is added."""

RHOS = (0.2, 0.4, 0.6, 0.8, 0.95)
ETAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RULES = ("variance", "loss")
COMPONENTS = 8
OTHER_COMPONENTS = (2, 64)

MIXTURES = {"RAND": "rand", "ORTHO": "ortho", "VUB": "ortho-vub", "VUB*": "ortho-vub", "EXACT": "exact"}
"""The variants by their names in the paper; VUB* is shared by all steps."""

DDIM, ISOTROPIC = "DDIM", "isotropic noise"


class Choice(NamedTuple):
    """One way to sample.

    Attributes:
        kind: a mixture, "DDIM", "isotropic noise", "eta" or a solver and its timesteps.
        level: the scale, rho, standard deviation or eta; a rule's name; None where there is nothing to choose.
        components: of a mixture.
        is_control: isotropic noise of the variance that the mixture adds, instead of the mixture.
    """

    kind: str
    level: float | str | None = None
    components: int = COMPONENTS
    is_control: bool = False


class Line(NamedTuple):
    """A line of a table.

    Attributes:
        name: what it is called.
        candidates: of which the best on other seeds is reported.
        has_control: the same with isotropic noise is reported below it.
    """

    name: str
    candidates: tuple[Choice, ...]
    has_control: bool = False


ALTERNATIVES = (
    Line("DDIM, best eta", tuple(Choice("eta", eta) for eta in (0.0, *ETAS))),
    Line("DDIM, linspace timesteps", (Choice("DDIM linspace"),)),
    Line("DDIM, quadratic timesteps", (Choice("DDIM quadratic"),)),
    Line("DPM-Solver++(2M)", (Choice("DPM trailing"),)),
    Line("DPM-Solver++(2M), linspace timesteps", (Choice("DPM linspace"),)),
    Line("DPM-Solver++(2M), quadratic timesteps", (Choice("DPM quadratic"),)),
)
"""What needs no more evaluations, and has no eta to be compared at."""


def lines(task: Task, cell: Cell) -> list[Line]:
    """Return what is compared in a cell.

    At eta = 0 all that the paper's variants subtract is clipped, so that VUB is ORTHO to the bit, and exact moment
    matching is DDIM: both are left out. At quadratic timesteps ORTHO stands for the mixtures.
    """
    if cell.eta is None:
        return list(ALTERNATIVES)
    is_main = cell.spacing == "trailing"
    found = [Line(DDIM, (Choice(DDIM),))]
    for kind in MIXTURES:
        if (cell.eta == 0 and kind in ("VUB", "EXACT")) or (kind != "ORTHO" and not is_main):
            continue
        levels = RHOS if kind == "EXACT" else SCALES
        candidates = tuple(Choice(kind, level) for level in levels)
        found.append(Line(kind, candidates, has_control=kind != "EXACT"))
        if kind == "ORTHO" or (task.thorough and kind != "EXACT"):
            found += [Line(f"{kind}, by {rule}", (Choice(kind, rule),)) for rule in RULES]
        if kind == "ORTHO" and task.thorough and is_main:
            found += [
                Line(f"{kind}, K = {count}", tuple(Choice(kind, level, count) for level in levels))
                for count in OTHER_COMPONENTS
                if count <= task.elements
            ]
    found.append(Line(ISOTROPIC, tuple(Choice(ISOTROPIC, level) for level in SCALES)))
    found += [Line(f"{ISOTROPIC}, by {rule}", (Choice(ISOTROPIC, rule),)) for rule in RULES]
    return found


def control_of(choice: Choice) -> Choice:
    """Return the isotropic noise of the variance that a mixture adds."""
    return choice._replace(is_control=True)


class Losses:
    """The error of a task's model at the timesteps of the samplers, measured once.

    Args:
        task: whose model it is.
        samples: of the data, for each timestep.
    """

    def __init__(self, task: Task, samples: int) -> None:
        self._task, self._samples = task, samples
        self._found: dict[int, float] = {}
        self._alphas = noise_schedule("linear").alphas_cumprod

    @torch.no_grad()
    def __call__(self, timestep: int) -> float:
        """Return the mean squared error of the predicted noise."""
        if timestep not in self._found:
            data = self._task.held_out(self._samples, seed=7)
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(timestep))
            alpha = self._alphas[timestep]
            noisy = (alpha.sqrt() * data + (1 - alpha).sqrt() * noise).float()
            chunks = [
                self._task.predict(
                    chunk.to(self._task.device),
                    torch.full((len(chunk),), timestep, device=self._task.device),
                )
                for chunk in noisy.split(self._task.chunk)
            ]
            self._found[timestep] = float((torch.cat(chunks).cpu() - noise).square().mean())
        return self._found[timestep]

    def variance(self) -> float:
        """Return the data's variance per element."""
        return float(self._task.held_out(self._samples, seed=7).double().var(0).mean())


def lost_variance(rule: str, sampler: Sampler, losses: Losses) -> Tensor:
    """Return the variance per element that each step loses, float64 [S]; 0 for the last, which adds nothing.

    Args:
        rule: "variance" or "loss".
        sampler: DDIM, whose `timesteps` and noise levels are meant.
        losses: of the model.
    """
    timesteps = sampler.timesteps.tolist()
    alphas = noise_schedule("linear").alphas_cumprod[timesteps].tolist()
    sigmas = sampler.coefficients[:, Column.SIGMA].tolist()
    lost = []
    for timestep, a_t, a_s, sigma in zip(timesteps[:-1], alphas, alphas[1:], sigmas, strict=False):
        coefficient = math.sqrt(a_s) - math.sqrt(1 - a_s - sigma**2) * math.sqrt(a_t / (1 - a_t))
        if rule == "loss":
            left = (1 - a_t) / a_t * losses(timestep)
        else:
            v = losses.variance()
            left = v * (1 - a_t) / (a_t * v + 1 - a_t)
        lost.append(coefficient**2 * left)
    return torch.tensor([*lost, 0.0], dtype=torch.float64)


def make_sampler(task: Task, cell: Cell, choice: Choice, seed: int, losses: Losses) -> Sampler:
    """Return the sampler that a choice stands for in a cell; a mixture's offsets come from `seed`."""
    schedule, steps = noise_schedule("linear"), cell.steps
    if choice.kind == "eta":
        assert isinstance(choice.level, float)
        return DDIMSampler(schedule, steps, eta=choice.level, spacing=cell.spacing, device=task.device)
    solver, _, spacing = choice.kind.partition(" ")
    if solver == "DPM":
        return DPMSolverSampler(schedule, steps, spacing=spacing, device=task.device)
    if solver == "DDIM" and spacing:
        return DDIMSampler(schedule, steps, spacing=spacing, device=task.device)
    assert cell.eta is not None
    plain = DDIMSampler(schedule, steps, eta=cell.eta, spacing=cell.spacing, device=task.device)
    if choice.kind == DDIM:
        return plain
    sigma = plain.coefficients[:, Column.SIGMA].double().cpu()
    is_last = torch.arange(steps) == steps - 1
    if choice.kind == ISOTROPIC:
        if isinstance(choice.level, str):
            added = lost_variance(choice.level, plain, losses)
        else:
            assert choice.level is not None
            added = torch.full((steps,), choice.level**2, dtype=torch.float64)
        return plain.with_sigma((sigma.square() + torch.where(is_last, 0.0, added)).sqrt())
    mixture, rows = _mixture(task, plain, choice, seed, losses)
    if choice.is_control:
        return plain.with_sigma(moment_report(mixture, rows).control_sigma)
    return Sampler(plain.timesteps, rows, mixture=mixture, device=task.device)


def _mixture(
    task: Task, plain: DDIMSampler, choice: Choice, seed: int, losses: Losses
) -> tuple[Mixture, Tensor]:
    """Return a mixture and the rows of coefficients that scale it."""
    variant = MIXTURES[choice.kind]
    count = choice.components if variant == "rand" else min(choice.components, task.elements)
    steps = plain.coefficients.shape[0]
    rows = plain.coefficients.clone()
    scale, rho = 1.0, None
    if isinstance(choice.level, str):
        # The offsets of RAND have length s, those of ORTHO s sqrt(1 - 1/K).
        share = 1.0 if variant == "rand" else 1 - 1 / count
        lost = lost_variance(choice.level, plain, losses)
        rows[:, Column.OFFSET] *= (lost * (task.elements / share)).sqrt().to(rows)
    elif choice.kind == "EXACT":
        assert isinstance(choice.level, float)
        rho = choice.level
    else:
        assert isinstance(choice.level, float)
        scale = choice.level * math.sqrt(task.elements)
    mixture = gaussian_mixture(
        variant,
        elements=task.elements,
        n_components=count,
        scale=scale,
        n_steps=None if choice.kind == "VUB*" else steps,
        seed=seed,
        rho=rho,
    )
    return mixture, rows
