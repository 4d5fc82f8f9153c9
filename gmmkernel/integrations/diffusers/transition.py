"""What a step takes besides its tensors: coefficient rows, mixture and seeds, made once a run and kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import (
    INT64_MAX,
    INT64_MIN,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_numbers,
)
from gmmkernel.backends.constants import MAX_COMPONENTS, Column
from gmmkernel.integrations.diffusers.memory import check_fits
from gmmkernel.integrations.diffusers.seeds import RunSeeds
from gmmkernel.integrations.diffusers.timesteps import Timesteps
from gmmkernel.mixtures import VARIANTS, Mixture, check_rho, gaussian_mixture
from gmmkernel.ops import MixtureTables
from gmmkernel.ops.checks import arithmetic_dtype

_KEPT_PLANS = 8


@dataclass(frozen=True)
class MixtureOptions:
    """The options of a scheduler's config that describe its mixture; `gaussian_mixture` explains them.

    Raises:
        TypeError: one has the wrong type.
        ValueError: one is out of range or unknown.
    """

    n_components: int
    offset_scale: float
    variant: str
    shared_mixture: bool
    weights: tuple[float, ...] | None
    mixture_seed: int
    rho: float | None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        if self.rho is not None:
            check_rho(self.rho)
            if not self.variant.endswith("exact"):
                raise ValueError(
                    f"rho: expected None for variant={self.variant!r}, which does not match moments exactly, "
                    f"got {self.rho!r}"
                )
            if self.offset_scale != 0:
                raise ValueError(
                    f"offset_scale: expected 0 beside rho, which gives each step its own, got {self.offset_scale!r}"
                )
        for index, weight in enumerate(self.weights or ()):
            if not 0 < weight < math.inf:
                raise ValueError(f"weights: expected positive numbers, got {weight} at index {index}")

    @classmethod
    def of(cls, config: Any) -> MixtureOptions:
        """Return those of a scheduler's config, with numbers of Python's own."""
        given = {name: config[name] for name in cls.__dataclass_fields__}
        count = given["n_components"] = check_integer(
            "n_components", given["n_components"], 1, MAX_COMPONENTS
        )
        given["offset_scale"] = check_number("offset_scale", given["offset_scale"], low=0)
        check_flag("shared_mixture", given["shared_mixture"])
        given["mixture_seed"] = check_integer("mixture_seed", given["mixture_seed"], INT64_MIN, INT64_MAX)
        if given["weights"] is not None:
            given["weights"] = tuple(check_numbers("weights", given["weights"], count).tolist())
        return cls(**given)

    @property
    def gaussian(self) -> bool:
        """Whether there is nothing to add to the Gaussian step."""
        return self.n_components == 1 or not (self.offset_scale or self.rho)

    @property
    def deviations(self) -> int:
        """Rows of variances in a step of the mixture: components of unequal weight have their own."""
        return self.n_components if self.weights is not None and len(set(self.weights)) > 1 else 1

    def make(self, elements: int, steps: int) -> Mixture:
        """Return the mixtures of `steps` steps, 1 to be shared by all, for samples of `elements` elements."""
        return gaussian_mixture(
            self.variant,
            elements=elements,
            n_components=self.n_components,
            scale=self.offset_scale if self.rho is None else 1.0,
            n_steps=steps,
            weights=self.weights,
            seed=self.mixture_seed,
            rho=self.rho,
        )


class Run:
    """What `set_timesteps` decided on for the steps to come; nobody changes it.

    It is no dataclass, since Dynamo hashes those by their fields.

    Attributes:
        options: the mixture wanted.
        timesteps: of the run.
        rows: rows(eta=..., dtype=..., ...) returns coefficients [S, 16] on the CPU, of NaN where a step cannot be done;
            with at=timesteps, one row for each of those, or the error that says why it cannot be done.
        signature: what `rows` depends on besides its arguments.
    """

    def __init__(
        self,
        options: MixtureOptions,
        timesteps: Timesteps,
        rows: Callable[..., Tensor],
        signature: tuple[object, ...],
    ) -> None:
        self.options = options
        self.timesteps = timesteps
        self.rows = rows
        self.signature = signature

    def __deepcopy__(self, memo: dict[int, object]) -> Run:
        return self


class Plan(NamedTuple):
    """What the steps of a run share.

    Attributes:
        coefficients: [S, 16] on the samples' device, of the type they are computed in.
        tables: the mixture bound to them, or None.
        draws: whether a step has anything to draw.
        refused: the rows that cannot be stepped.
    """

    coefficients: Tensor
    tables: MixtureTables | None
    draws: bool
    refused: frozenset[int]


class Transition:
    """Makes and keeps what a scheduler's steps take. Copies share what has been made, which nobody changes.

    Attributes:
        seeds: the seeds of the runs.
    """

    def __init__(self) -> None:
        self.seeds = RunSeeds()
        self._own: Mixture | None = None
        self._last: Run | None = None
        self._mixtures: dict[tuple[object, ...], Mixture] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again."""
        return {"seeds": self.seeds, "_own": self._own, "_last": self._last}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def __deepcopy__(self, memo: dict[int, object]) -> Transition:
        made = Transition()
        with self._lock:
            made.__setstate__({**self.__getstate__(), "seeds": self.seeds.copy()})
            made._mixtures, made._plans = dict(self._mixtures), dict(self._plans)
        return made

    def use(self, mixture: Mixture | None) -> None:
        """Use a mixture in place of the one that the config describes; None: that one again."""
        if mixture is not None and not isinstance(mixture, Mixture):
            raise TypeError(f"mixture: expected a Mixture or None, got {type(mixture).__name__}")
        with self._lock:
            self._own = mixture
            self._plans.clear()

    def begin(self, run: Run) -> Run:
        """Begin a run; return the last one where that is alike, for which everything has been made."""
        self.seeds.begin()
        with self._lock:
            last = self._last
            if last is None or (last.options, last.signature) != (run.options, run.signature):
                self._last = run
                return run
            return last

    def is_gaussian(self, run: Run) -> bool:
        """Return whether the steps of a run have no mixture."""
        return self._own is None and run.options.gaussian

    def plan(
        self,
        run: Run,
        sample: Tensor,
        eta: float,
        given_noise: bool = False,
        at: tuple[int, ...] | None = None,
        **options: bool,
    ) -> Plan:
        """Return what the steps of samples like this one take.

        Args:
            run: the run.
            sample: [B, ...].
            eta: share of the noise that is drawn.
            given_noise: the noise is not drawn but given, as the first history tensor.
            at: timesteps to make rows for, one for each row; None: those of the run.
            options: the other arguments of the rows.
        """
        elements = math.prod(sample.shape[1:])
        key = (run, at, eta, given_noise, *options.values(), sample.dtype, sample.device, elements)
        plan = self._plans.get(key)
        if plan is None:
            with self._lock:
                plan = self._make(run, sample, elements, eta, given_noise, at, options)
                while len(self._plans) >= _KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = plan
        return plan

    # Tables are constants, also where the loop is differentiated or runs under inference_mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(
        self,
        run: Run,
        sample: Tensor,
        elements: int,
        eta: float,
        given_noise: bool,
        at: tuple[int, ...] | None,
        options: dict[str, bool],
    ) -> Plan:
        dtype, device = arithmetic_dtype(sample), sample.device
        if at is not None:
            options = {**options, "at": at}  # type: ignore[dict-item]
        rows = run.rows(eta=eta, dtype=dtype, **options)
        refused = rows.isnan().any(1)
        rows[refused] = 0  # which any mixture can be bound to
        mixture = self._mixture(run, sample, elements, dtype)
        if mixture is not None and at is not None:
            mixture = _of_steps(mixture, [run.timesteps.nearest(timestep) for timestep in at])
        if given_noise:
            if mixture is not None:
                raise ValueError(
                    "variance_noise: expected None with a mixture, whose noise has a standard deviation that depends "
                    "on the component drawn, got a tensor (offset_scale=0 makes Gaussian steps)"
                )
            rows[:, Column.HISTORY_0], rows[:, Column.SIGMA] = rows[:, Column.SIGMA], 0
        rows = rows if mixture is None else mixture.scaled(rows)
        tables = None if mixture is None else self._bind(mixture, rows)
        draws = tables is not None or bool((rows[:, Column.SIGMA] != 0).any())
        if tables is not None:
            tables = MixtureTables(*(_to(table, device) for table in tables))  # type: ignore[arg-type]
        rows[refused] = math.nan
        return Plan(
            rows.to(device, non_blocking=True), tables, draws, frozenset(refused.nonzero()[:, 0].tolist())
        )

    def _bind(self, mixture: Mixture, rows: Tensor) -> MixtureTables:
        try:
            return mixture.bind(rows)
        except ValueError as error:
            if self._own is None and str(error).startswith("scale: "):  # the option's name here
                raise ValueError(f"offset_{error}") from None
            raise

    def _mixture(self, run: Run, sample: Tensor, elements: int, dtype: torch.dtype) -> Mixture | None:
        if self._own is not None:
            _check_own(self._own, sample, elements, len(run.timesteps))
            return self._own
        options = run.options
        if options.gaussian:
            return None
        steps = 1 if options.shared_mixture else len(run.timesteps)
        key = (options, steps, elements)
        if key not in self._mixtures:
            self._mixtures.clear()  # one at a time: they are large
            if not options.variant.startswith("rand") and options.n_components > elements:
                raise ValueError(
                    f"n_components: expected at most D = {elements}, the elements of a sample of shape "
                    f"{tuple(sample.shape[1:])}, for variant={options.variant!r}, whose offsets are orthogonal, "
                    f"got {options.n_components}"
                )
            check_fits(steps, options.n_components, options.deviations, elements, sample.device, dtype)
            self._mixtures[key] = options.make(elements, steps)
        return self._mixtures[key]


def _check_own(mixture: Mixture, sample: Tensor, elements: int, steps: int) -> None:
    if mixture.elements != elements:
        raise ValueError(
            f"mixture: expected one made for D = {elements} elements, because the pipeline's samples have the "
            f"shape {tuple(sample.shape[1:])}, got one made for D = {mixture.elements}"
        )
    if mixture.n_steps not in (None, steps):
        raise ValueError(
            f"mixture: expected one made for the {steps} steps of set_timesteps, or shared by all, "
            f"got one made for {mixture.n_steps}"
        )


def _of_steps(mixture: Mixture, steps: list[int]) -> Mixture:
    """Return the mixtures of these steps, where each has its own."""

    def chosen(table: Tensor) -> Tensor:
        return table if table.shape[0] == 1 else table[steps]

    found = mixture.directions
    if found is not None:
        found = replace(found, **{name: chosen(table) for name, table in vars(found).items()})
    return replace(
        mixture, offsets=chosen(mixture.offsets), reductions=chosen(mixture.reductions), directions=found
    )


def _to(table: Tensor | None, device: torch.device) -> Tensor | None:
    return None if table is None else table.to(device, non_blocking=True)
