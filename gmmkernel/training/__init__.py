"""Training of diffusion models with the skip-step loss, or DDPM's: resumable to the bit."""

from gmmkernel.training.trainer import Trainer

__all__ = ["Trainer"]
