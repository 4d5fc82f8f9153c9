"""Gaussian mixtures for the transition of DDIM-GMM (Gabbur, arXiv 2311.04938)."""

from __future__ import annotations

from gmmkernel.mixtures.mixture import Mixture, cdf, check_rho
from gmmkernel.mixtures.variants import VARIANTS, gaussian_mixture

__all__ = ["VARIANTS", "Mixture", "cdf", "check_rho", "gaussian_mixture"]
