"""What a config may say: an option of another scheduler is followed, known to be harmless, or refused by its name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
from diffusers import DDPMScheduler, SchedulerMixin

# Choosing another scheduler is choosing another solver: how the replaced one steps between the noise levels, or
# converts a model's output for itself, is no concern. Everything else that this package does not know might be.
_SOLVER = {
    *("algorithm_type", "corrector_order", "disable_corrector", "euler_at_final"),
    *("lower_order_final", "noise_sampler_seed", "predict_x0", "predictor_order", "skip_prk_steps"),
    *("solver_order", "solver_p", "solver_type", "tau_func", "variance_type"),
}
_BETAS = {"beta_start", "beta_end", "trained_betas"}

Values = tuple[object, ...]


class Rules(NamedTuple):
    """What a scheduler makes of the configs of others.

    An option that has no part in these rules is refused unless it is None, False or empty.

    Attributes:
        classes: diffusers' schedulers that it takes the place of.
        needed: options without which the config of a class that is not named does not say what the noise levels are.
        harmless: options of others that have no bearing, whatever their value.
        neutral: values that have none, of options that otherwise would; the first is what errors propose.
        without: options of its own to set where another scheduler's config has none.
        flow: whether it is for rectified flows.
    """

    classes: frozenset[str]
    needed: tuple[str, ...]
    harmless: frozenset[str]
    neutral: Mapping[str, Values]
    without: Mapping[str, object]
    flow: bool


DDIM = Rules(
    classes=frozenset(
        f"{name}Scheduler"
        for name in (
            *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
            *(
                "DPMSolverSDE",
                "DPMSolverSinglestep",
                "EulerAncestralDiscrete",
                "EulerDiscrete",
                "HeunDiscrete",
            ),
            *("KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep"),
        )
    ),
    needed=("num_train_timesteps", "beta_schedule"),
    harmless=frozenset(
        _SOLVER | {"flow_shift", "time_shift_type"}
    ),  # flow sigmas and their shifts are refused
    neutral={
        **dict.fromkeys(
            (f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta", "flow")), (False,)
        ),
        "use_lu_lambdas": (False,),
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero",),
        "lambda_min_clipped": (-math.inf,),
    },
    without={"clip_sample": False},
    flow=False,
)
"""For DDIM: schedulers of betas, whose levels are alphas_cumprod at the timesteps."""

FLOW = Rules(
    classes=frozenset(
        f"{name}Scheduler"
        for name in (
            *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"),
            *("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep"),
        )
    ),
    needed=("num_train_timesteps", "shift", "use_dynamic_shifting"),
    harmless=frozenset(
        (_SOLVER | _BETAS)
        | {"timestep_spacing", "steps_offset", "set_alpha_to_one"}
        | {"clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"}
    ),
    neutral={
        "prediction_type": ("flow_prediction",),
        "final_sigmas_type": ("zero",),
        "lambda_min_clipped": (-math.inf,),
    },
    without={},
    flow=True,
)
"""For rectified flow, which has no betas; schedulers that have them know flow as well."""

_SCHEDULERS = ("GMMDDIMScheduler", "GMMFlowMatchScheduler")  # of a noise schedule, and of a rectified flow

_OWN = frozenset({"timestep_spacing", "set_alpha_to_one"})
"""Options whose default is each class's own: where a solver's run begins and ends."""

_SIGMAS = frozenset({"sigma_min", "sigma_max", "sigma_data", "sigma_schedule"})
_FLOW = frozenset({"flow_shift", "use_flow_sigmas", "prediction_type", "beta_schedule"})


def check_config(config: object) -> Mapping[str, Any]:
    """Return the config of a scheduler.

    Raises:
        TypeError: it is something else, perhaps the scheduler itself.
    """
    if not isinstance(config, Mapping):
        hint = "; pass its .config" if isinstance(config, SchedulerMixin) else ""
        raise TypeError(f"config: expected the config of a scheduler, got {type(config).__name__}{hint}")
    return config


def is_flow(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config is that of a rectified flow; one that was not saved has no class's name."""
    return (
        str(config.get("_class_name", "")).startswith(("FlowMatch", "GMMFlowMatch"))
        or config.get("use_flow_sigmas") is True
        or config.get("prediction_type") == "flow_prediction"
        or ("_class_name" not in config and "shift" in config and "beta_schedule" not in config)
    )


def follow(
    scheduler: type, config: Mapping[str, Any], given: Mapping[str, Any], rules: Rules, *, strict: bool
) -> dict[str, Any]:
    """Return the config that a scheduler is to be made of by `from_config`.

    Args:
        scheduler: the class that the config is for.
        config: the config, of any class.
        given: the options given beside it.
        rules: those of the class.
        strict: refuse options that nobody knows.

    Raises:
        TypeError: an option given is not one of the scheduler's, nor of the config.
        ValueError: the config is for the other scheduler of this package; an option that the scheduler cannot follow is
            set, or one that it needs is not; or the config says that the model predicts its variance, and nobody says
            what is to become of it.
    """
    known = _options(scheduler)
    words = rules.harmless.union(rules.neutral, _FLOW)
    unknown = [name for name in given if not (name in known or name in words or name in config)]
    if strict and unknown:
        raise TypeError(f"from_config: expected options of {scheduler.__name__}, got {', '.join(unknown)}")

    replaced = config.get("_class_name")
    foreign = getattr(diffusers, replaced, None) if isinstance(replaced, str) else None
    other = DDIM if rules.flow else FLOW
    chosen = {**config, **given}
    if foreign is not None and replaced not in rules.classes:
        fits_other = replaced in other.classes
    elif rules.flow:  # a config that says neither lacks options, which are named below
        fits_other = "beta_schedule" in chosen and not is_flow(chosen)
    else:
        fits_other = is_flow(chosen)
    if fits_other:
        kinds = ("a noise schedule", "a rectified flow")
        raise ValueError(
            f"config: {scheduler.__name__} expected one of {kinds[rules.flow]}, got one of {kinds[other.flow]}"
            f"{f', {replaced}' if replaced else ''}; {_SCHEDULERS[other.flow]} is for those"
        )
    if foreign is not None and replaced not in rules.classes:
        raise ValueError(
            f"_class_name: {scheduler.__name__} does not follow {replaced}, whose noise levels are others or which "
            f"nobody has compared; expected one of {', '.join(sorted(rules.classes))}"
        )
    theirs = {} if foreign is None else _options(foreign)
    made = {**rules.without, **_defaults_of(theirs, known), **config}
    # diffusers drops what a scheduler had by default, for what the next one has by default.
    unchosen = frozenset(config.get("_use_default_values", ()))
    shared = _FLOW.union(_options(scheduler.__bases__[-1])) - _OWN
    made["_use_default_values"] = [
        name for name in unchosen if name not in shared or made[name] == known.get(name)
    ]
    followed = set(known) | rules.harmless
    if config.get("dynamics") is None and "sigma_max" not in given:
        followed.discard("sigma_max")  # that of another class, the largest sigma of its schedule
    if "shift" in known:
        followed |= _follow_flow(scheduler, made, given, theirs)
    merged = {**made, **given}
    for name, value in merged.items():
        if name.startswith("_") or name in followed or name in unknown or not _is_set(value):
            continue
        if name in _SIGMAS and name in unchosen and "beta_schedule" in merged:
            continue  # the way back from a scheduler without betas, of whose sigmas nobody chose any
        neutral = rules.neutral.get(name)
        if neutral is None or value not in neutral:
            raise _unsupported(scheduler, name, neutral[0] if neutral else None, value)
    for name in rules.needed if foreign is None else ():
        if name not in merged:
            raise ValueError(
                f"{name}: expected it in the config, which does not say without it what the noise levels are, got "
                f"{', '.join(name for name in merged if name[0] != '_')}"
            )
    if "learned_variance" in known:
        _follow_variance(made, config, merged, theirs)
    return made


def _options(kind: type) -> dict[str, Any]:
    """Return the options of a class, and their defaults."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _defaults_of(theirs: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config leaves out, written by hand or by an old version, that its class has by default."""
    return {
        name: default
        for name, default in theirs.items()
        if name in known and name not in _OWN and default is not inspect.Parameter.empty
    }


def _is_set(value: object) -> bool:
    return not (value is None or value is False or (isinstance(value, (list, tuple)) and not value))


def _unsupported(scheduler: type, name: str, wanted: object, value: object) -> ValueError:
    written = "float('-inf')" if wanted == -math.inf else repr(wanted)
    return ValueError(
        f"{name}: {scheduler.__name__} does not support it; expected {written}, got {value!r} "
        f"(from_config(config, {name}={written}) leaves it out)"
    )


def _follow_flow(
    scheduler: type, made: dict[str, Any], given: Mapping[str, Any], theirs: Mapping[str, Any]
) -> set[str]:
    """Understand a solver that is set to rectified flow; return the options that are understood with that."""
    merged = {**made, **given}
    if "shift" not in given and "flow_shift" in merged:
        shift = merged["flow_shift"]
        if "flow_shift" not in given and "flow_shift" not in theirs and made.get("shift", shift) != shift:
            raise ValueError(
                f"flow_shift: expected {made['shift']!r} beside shift={made['shift']!r}, which is the same option of "
                f"{scheduler.__name__}, got {shift!r} (from_config(config, shift=...) decides)"
            )
        made["shift"] = shift
    if "flow_shift" in made:  # for the way back
        made["flow_shift"] = {**made, **given}["shift"]
    predicts = merged.get("prediction_type")
    if merged.get("use_flow_sigmas") is not True:
        return {"flow_shift"}
    if predicts != "flow_prediction":
        raise _unsupported(scheduler, "prediction_type", "flow_prediction", predicts)
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if merged.get(name):  # there of sigmas that are not these
            raise _unsupported(scheduler, name, False, merged[name])
    made.setdefault("use_dynamic_shifting", False)  # SASolverScheduler has no such option
    return {"flow_shift", "use_flow_sigmas", "beta_schedule"}


def _follow_variance(
    made: dict[str, Any], config: Mapping[str, Any], merged: Mapping[str, Any], theirs: Mapping[str, Any]
) -> None:
    """Take the transition of DDPM from a config of it, and have a learned variance decided on.

    Raises:
        ValueError: the variance is none that DDIM has.
    """
    variance = merged.get("variance_type", theirs.get("variance_type"))
    if variance in ("learned", "learned_range") and "learned_variance" not in merged:
        raise ValueError(
            f"variance_type: got {variance!r}, a variance that DDIM has no use for; from_config(config, "
            "learned_variance=True) drops that half of the model's output in every step, learned_variance=False is "
            "for pipelines that drop it themselves, as DiTPipeline does"
        )
    # A config that has been this scheduler's says so by the second option, and keeps what it had.
    if "eta" in merged or "use_clipped_model_output" in config or not _is_ddpm(config):
        return
    if variance != "fixed_small":
        raise ValueError(
            f"variance_type: expected 'fixed_small', which is eta = 1, in a config of DDPM, got {variance!r}; "
            "from_config(config, eta=1.0) draws the noise of 'fixed_small' in every step for which a pipeline chooses "
            "no eta, eta=0.0 none"
        )
    made.update(eta=1.0, use_clipped_model_output=True)


def _is_ddpm(config: Mapping[str, Any]) -> bool:
    """Return whether a config is DDPM's own. Its options may also be left over in that of a later class."""
    if isinstance(config.get("_class_name"), str):
        return config["_class_name"] in ("DDPMScheduler", "DDPMParallelScheduler")
    if config.get("variance_type") is None:
        return False
    options = {name for name in config if not name.startswith("_")}
    return "variance_type" in config.get("_use_default_values", ()) or options <= set(_options(DDPMScheduler))
