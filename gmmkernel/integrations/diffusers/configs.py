"""What a config may say: options of other schedulers that would be lost are named, not ignored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

Unsupported = Mapping[str, tuple[object, ...]]
_WITHOUT = (False, None)

DDIM_UNSUPPORTED: Unsupported = {
    "use_karras_sigmas": _WITHOUT,
    "use_exponential_sigmas": _WITHOUT,
    "use_beta_sigmas": _WITHOUT,
    "use_lu_lambdas": _WITHOUT,
    "use_flow_sigmas": _WITHOUT,
    "timestep_type": ("discrete", None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "sigma_data": (None,),
    "snr_shift_scale": (None,),
}
"""Options of other schedulers that decide on the noise levels, and the values that mean "without"."""

FLOW_UNSUPPORTED: Unsupported = {"beta_schedule": (None,), "invert_sigmas": _WITHOUT}
"""The same for rectified flow, which has no betas."""


def check_config(
    scheduler: type,
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    unsupported: Unsupported,
    *,
    strict: bool,
) -> None:
    """Accept a config for `from_config`, with the options given beside it.

    Options of a solver that the scheduler replaces (orders, algorithm types, ...) are no concern: choosing another
    scheduler is choosing another solver. What would change the noise levels, or what the model predicts, is.

    Args:
        scheduler: the class that the config is for.
        config: the config.
        given: the options given beside it.
        unsupported: options of other schedulers, and the values that mean "without".
        strict: refuse options that nobody knows.

    Raises:
        TypeError: an option given is not one of the scheduler's, nor of the config.
        ValueError: an option that the scheduler cannot follow is set; or the config says that the model predicts its
            variance, and nobody says what is to become of it.
    """
    known = set(inspect.signature(scheduler.__init__).parameters) - {"self"}  # type: ignore[misc]
    unknown = [name for name in given if name not in known and name not in unsupported and name not in config]
    if strict and unknown:
        raise TypeError(f"from_config: expected options of {scheduler.__name__}, got {', '.join(unknown)}")
    merged = {**config, **given}
    for name, without in unsupported.items():
        if merged.get(name) not in without:
            raise ValueError(
                f"{name}: {scheduler.__name__} does not support it; expected {without[0]!r}, got {merged[name]!r} "
                f"(from_config(config, {name}={without[0]!r}) leaves it out)"
            )
    learned = config.get("variance_type") in ("learned", "learned_range")
    if "learned_variance" in known and learned and "learned_variance" not in merged:
        raise ValueError(
            f"variance_type: got {config['variance_type']!r}, a variance that DDIM has no use for; from_config(config, "
            "learned_variance=True) drops that half of the model's output in every step, learned_variance=False is "
            "for pipelines that drop it themselves, as DiTPipeline does"
        )
