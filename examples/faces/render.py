"""Cartoon faces of 32x32 pixels in one folder for each hair colour: `python -m examples.faces.render faces`.

The faces are random avatars of the package python_avatars (MIT), which draws them from Pablo Stanley's parts
(avataaars.com, free for personal and commercial use): `pip install python-avatars resvg-py pillow`.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path
from typing import Any

SIZE = 32
OVERSAMPLING = 4
WINDOW = (36, 16, 228, 208)
"""Left, top, right and bottom of the head and shoulders in an avatar of 264x280 units."""

HAIR = {
    "black": "#2C1B18",
    "blonde": "#D6B370",
    "brown": "#724133",
    "pink": "#F59797",
    "red": "#C93305",
    "silver": "#E8E1E1",
}
"""The classes; their order is that of the folders' names."""

BACKGROUNDS = ["#B1E2FF", "#A7FFC4", "#FFDEB5", "#FFFFB1", "#D9CCFF"]
SKINS = ["PALE", "LIGHT", "BROWN", "DARK_BROWN", "BLACK"]
LEFT_OUT = {"vomit", "x_dizzy", "astronout", "bride", "frida", "hat", "shaved_sides", "sides", "straight_2"}
"""Parts that are no expression, that hide the hair, or whose hair has a colour of its own."""


def render_face(choose: random.Random, hair: str) -> Any:
    """Return a face with hair of the colour `hair`, a Pillow image of 32x32 in RGB."""
    import python_avatars
    import resvg_py
    from PIL import Image

    def part(kind: str, none: float = 0.0) -> Any:
        if choose.random() < none:
            return getattr(python_avatars, kind).NONE
        parts = [p for p in getattr(python_avatars, kind) if p.value not in LEFT_OUT and p.name != "NONE"]
        return choose.choice(parts)

    avatar = python_avatars.Avatar(
        style=python_avatars.AvatarStyle.TRANSPARENT,
        top=part("HairType"),
        hair_color=HAIR[hair],
        facial_hair=part("FacialHairType", none=0.75),
        facial_hair_color=HAIR[hair],
        skin_color=python_avatars.SkinColor[choose.choice(SKINS)],
        eyebrows=part("EyebrowType"),
        eyes=part("EyeType"),
        nose=part("NoseType"),
        mouth=part("MouthType"),
        accessory=part("AccessoryType", none=0.7),
        clothing=part("ClothingType"),
        clothing_color=part("ClothingColor"),
        shirt_graphic=part("ClothingGraphic"),
    )
    left, top, right, bottom = WINDOW
    scale = OVERSAMPLING * SIZE / (right - left)
    drawn = resvg_py.svg_to_bytes(svg_string=avatar.render(), width=round(264 * scale))
    face = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    whole = Image.new("RGBA", face.size, choose.choice(BACKGROUNDS))
    whole.alpha_composite(face)
    window = whole.crop(
        (round(left * scale), round(top * scale), round(right * scale), round(bottom * scale))
    )
    return window.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Write `--count` faces of each hair colour as PNG files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="faces of each hair colour (default 2000)")
    arguments = parser.parse_args()
    choose = random.Random(0)
    for hair in HAIR:
        folder = arguments.folder / hair
        folder.mkdir(parents=True)
        for index in range(arguments.count):
            render_face(choose, hair).save(folder / f"{index:05d}.png")


if __name__ == "__main__":
    main()
