"""Recipes: settings of published trainings, and the user's own, in TOML."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from gmmkernel._checks import suggestion
from gmmkernel.recipes.settings import Settings, kind_of

RECIPES = ("celeba64", "cifar10")
"""Names of the recipes that are part of the package."""


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read a recipe.

    Args:
        recipe: one of `RECIPES`, or the path of a .toml file whose keys are fields of `Settings`.

    Returns:
        The settings that it has, checked one by one.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the name is unknown; or the file is no TOML, has a key that is no setting, or a value that none is.
    """
    if recipe in RECIPES:
        name = f"{recipe}.toml"
        text = resources.files("gmmkernel.recipes").joinpath(name).read_bytes()
    elif recipe.endswith(".toml"):
        name = recipe
        try:
            text = Path(recipe).read_bytes()
        except OSError as error:
            raise OSError(f"recipe: cannot read {recipe!r}: {error.strerror}") from error
    else:
        guess = suggestion(recipe, RECIPES)
        raise ValueError(f"recipe: expected {', '.join(RECIPES)} or a .toml file, got {recipe!r}{guess}")
    try:
        found = tomllib.loads(text.decode("utf-8"))
    except ValueError as error:  # of TOML and of UTF-8
        raise ValueError(f"recipe: expected TOML in {name!r}: {error}") from error
    known = {setting.name: setting for setting in fields(Settings)}
    unknown = [key for key in found if key not in known]
    if unknown:
        raise ValueError(
            f"recipe: expected settings in {name!r} ({', '.join(known)}), "
            f"got the unknown {', '.join(map(repr, unknown))}{suggestion(unknown[0], list(known))}"
        )
    checked = {}
    for key, value in found.items():
        try:
            checked[key] = kind_of(known[key]).check(key, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe: {name!r}: {error}") from error
    return checked
