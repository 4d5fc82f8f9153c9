"""A small real model: 8x8 digits, their U-Net, a classifier, and a Frechet distance on its features."""

from gmmkernel.digits.classifier import NUM_FEATURES, DigitsClassifier
from gmmkernel.digits.data import load_digits
from gmmkernel.digits.distance import (
    digit_fid,
    digit_fid_by_group,
    digit_fid_with_error,
    feature_statistics,
    frechet_distance,
)
from gmmkernel.digits.loading import load_classifier, load_flow_unet, load_statistics, load_unet
from gmmkernel.digits.training import denoising_loss, digits_trainer, velocity_loss
from gmmkernel.digits.unet import IMAGE_SHAPE, NULL_CLASS, NUM_CLASSES, DigitsUNet, SmallUNet

__all__ = [
    "IMAGE_SHAPE",
    "NULL_CLASS",
    "NUM_CLASSES",
    "NUM_FEATURES",
    "DigitsClassifier",
    "DigitsUNet",
    "SmallUNet",
    "denoising_loss",
    "digit_fid",
    "digit_fid_by_group",
    "digit_fid_with_error",
    "digits_trainer",
    "feature_statistics",
    "frechet_distance",
    "load_classifier",
    "load_digits",
    "load_flow_unet",
    "load_statistics",
    "load_unet",
    "velocity_loss",
]
