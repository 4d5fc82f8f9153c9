"""What the schedulers with mixtures share besides their step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gmmkernel.integrations.diffusers.configs import Unsupported, check_config
from gmmkernel.integrations.diffusers.transition import MixtureOptions, Transition
from gmmkernel.integrations.diffusers.visited import Visited
from gmmkernel.mixtures import Mixture


class MixtureScheduler:
    """Configs, seeds and mixtures of a scheduler; comes before the diffusers scheduler it is mixed into."""

    _unsupported: ClassVar[Unsupported]
    _transition: Transition
    _visited: Visited | None
    config: Any  # diffusers' own

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler from the config of another, as diffusers' schedulers do.

        Args:
            config: a config, of this or of a compatible scheduler.
            return_unused_kwargs: also return the options that were not used.
            kwargs: options that take the place of the config's.

        Returns:
            The scheduler, and with `return_unused_kwargs` the options that were not used.

        Raises:
            TypeError: `kwargs` has something that is no option.
            ValueError: the config sets an option that this scheduler does not support.
        """
        if isinstance(config, Mapping):
            check_config(cls, config, kwargs, cls._unsupported, strict=not return_unused_kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    def _prepare(self) -> None:
        """Check the options of the mixture; called at the end of `__init__`."""
        weights = MixtureOptions.of(self.config).weights
        if weights is not None:  # as a list, which a config can be saved with
            self.register_to_config(weights=list(weights))  # type: ignore[attr-defined]
        self._transition = Transition()
        self._visited = None

    def set_seeds(self, seeds: Tensor | None) -> None:
        """Use these seeds, one for each sample, in every run from now on, in place of those from generators.

        Args:
            seeds: int64 [B], or None: from generators again.

        Raises:
            TypeError: they are not an int64 tensor.
            ValueError: they are not 1-D.
        """
        self._transition.seeds.use(seeds)

    def set_mixture(self, mixture: Mixture | None) -> None:
        """Use a mixture of one's own, with learned offsets for example, in place of the one that the config describes.

        Args:
            mixture: made for the elements of a sample and shared by all steps, or for as many as a run has. It is
                not saved with the config. None: the config's again.

        Raises:
            TypeError: it is something else.
        """
        self._transition.use(mixture)
