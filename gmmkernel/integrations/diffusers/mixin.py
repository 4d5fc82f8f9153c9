"""What the schedulers with mixtures share besides their step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gmmkernel._checks import check_device
from gmmkernel.backends.constants import Stream
from gmmkernel.integrations.diffusers.configs import Rules, check_config, follow
from gmmkernel.integrations.diffusers.transition import MixtureOptions, Transition
from gmmkernel.mixtures import Mixture
from gmmkernel.ops import standard_normal


class MixtureScheduler:
    """Configs, seeds and mixtures of a scheduler; comes before the diffusers scheduler it is mixed into."""

    _rules: ClassVar[Rules]
    _transition: Transition
    config: Any  # diffusers' own

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler from the config of another, as diffusers' schedulers do.

        Where the two share an option, its value is taken, the default of the other's class included; only
        `timestep_spacing` and `set_alpha_to_one` are by default this class's own, unless they were chosen.

        Args:
            config: a config, of this or of another scheduler that it can take the place of.
            return_unused_kwargs: also return the options that were not used.
            kwargs: options that take the place of the config's.

        Returns:
            The scheduler, and with `return_unused_kwargs` the options that were not used.

        Raises:
            TypeError: `config` is no config, a scheduler for example, or `kwargs` has something that is no option.
            ValueError: the config sets an option that this scheduler does not support, does not say which noise levels
                the model was trained with, or is that of a class with others.
        """
        config = follow(cls, check_config(config), kwargs, cls._rules, strict=not return_unused_kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    def _prepare(self) -> None:
        """Check the options of the mixture; called at the end of `__init__`."""
        # What a config can be saved with: numbers of Python's own, and lists.
        plain: dict[str, Any] = {}
        for name, value in self.config.items():
            if isinstance(value, (np.generic, np.ndarray, Tensor)):
                plain[name] = value.tolist()
        options = MixtureOptions.of({**self.config, **plain})
        if options.weights is not None:
            plain["weights"] = list(options.weights)
        if "_use_default_values" in self.config:
            # A default gets lost in the config of another scheduler, where `follow` is to find this one.
            unchosen = set(self.config["_use_default_values"]) - {"use_clipped_model_output"}
            plain["_use_default_values"] = sorted(unchosen)
        self.register_to_config(**plain)  # type: ignore[attr-defined]
        self._transition = Transition()

    def set_seeds(self, seeds: Tensor | None) -> None:
        """Use these seeds, one for each sample, in every run from now on, in place of those from generators.

        They are the seeds of all runs then: another run with the same draws the same noise. What a pipeline draws
        before the first step, its initial latents, is its own affair; `initial_noise` makes those of the seeds.

        Args:
            seeds: int64 [B], or None: from generators again.

        Raises:
            TypeError: they are not an int64 tensor.
            ValueError: they are not 1-D.
        """
        self._transition.seeds.use(seeds)

    def initial_noise(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the noise that samples of the seeds given to `set_seeds` start from: a pipeline's `latents=`.

        It is `standard_normal` of stream INITIAL, which no step draws from. Pipelines multiply their latents with
        `init_noise_sigma` where there is one, given ones as well; here it is 1.

        Args:
            shape: [B, ...], B the number of seeds.
            dtype: what the pipeline computes in.
            device: where to make it; None: where the seeds are.

        Returns:
            Standard normals of that shape.

        Raises:
            TypeError: `dtype` is not float32, bfloat16, float16 or float64.
            ValueError: there are no seeds, or not one for each sample; or `device` is not there.
        """
        seeds = self._transition.seeds.given
        if len(shape) < 1 or shape[0] != seeds.shape[0]:
            raise ValueError(
                f"shape: expected ({seeds.shape[0]}, ...), one sample a seed, got {tuple(shape)}"
            )
        if device is not None:
            device = check_device("device", device)
        return standard_normal(seeds.to(device), shape[1:], stream=Stream.INITIAL, dtype=dtype)

    def set_mixture(self, mixture: Mixture | None) -> None:
        """Use a mixture of one's own, with learned offsets for example, in place of the one that the config describes.

        Args:
            mixture: made for the elements of a sample and shared by all steps, or for as many as a run has. It is
                not saved with the config. None: the config's again.

        Raises:
            TypeError: it is something else.
        """
        self._transition.use(mixture)
