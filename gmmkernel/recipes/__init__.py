"""Training on the user's own images: recipes, their settings, images, a U-Net of diffusers, the pipeline it ends as."""

from gmmkernel.recipes.images import DamagedImageError, Images, load_images
from gmmkernel.recipes.recipe import RECIPES, read_recipe
from gmmkernel.recipes.save import PIPELINE_FOLDER, save_pipeline
from gmmkernel.recipes.settings import Settings
from gmmkernel.recipes.training import image_trainer
from gmmkernel.recipes.unet import Denoiser, new_unet

__all__ = [
    "PIPELINE_FOLDER",
    "RECIPES",
    "DamagedImageError",
    "Denoiser",
    "Images",
    "Settings",
    "image_trainer",
    "load_images",
    "new_unet",
    "read_recipe",
    "save_pipeline",
]
