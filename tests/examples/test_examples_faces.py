"""The faces, their network and their pictures: what they show is what they say."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.faces import pictures, render
from examples.faces.model import CLASSES, PREDICTION_TYPE, faces_schedule, load_faces_unet
from gmmkernel import DDIMSampler, DPMSolverSampler, add_noise, draw_components, training_coefficients


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.fixture(scope="module")
def model() -> pictures.Model:
    return pictures.guided(load_faces_unet())


def test_a_face_has_hair_of_its_class() -> None:
    """The same choices draw the same face; what tells it from other classes' has its class's colour."""
    colours = np.array([[int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in render.HAIR.values()])
    for number, hair in enumerate(render.HAIR):
        face, again, other = (
            np.asarray(render.render_face(random.Random(5), each), dtype=int)
            for each in (hair, hair, "red" if hair != "red" else "pink")
        )
        assert face.shape == (32, 32, 3)
        assert np.array_equal(face, again)
        changed = face[(face != other).any(axis=2)]
        assert len(changed) > 50
        assert abs(np.median(changed, axis=0) - colours).sum(axis=1).argmin() == number


def test_the_network_has_learned_faces() -> None:
    """Half hidden by noise, a face that it has not seen is told much better than by the mean of all."""
    choose = random.Random(1)
    faces = np.stack([np.asarray(render.render_face(choose, hair)) for hair in CLASSES for _ in range(4)])
    data = torch.from_numpy(faces).movedim(-1, 1).float() / 127.5 - 1
    timestep, seeds = torch.full((len(data),), 500), torch.arange(len(data))
    rows = training_coefficients(faces_schedule(), prediction_type=PREDICTION_TYPE)
    noised = add_noise(data, rows, row=timestep, seeds=seeds)
    kept = faces_schedule().alphas_cumprod[500].float()
    with torch.no_grad():
        v = load_faces_unet()(noised, timestep, torch.arange(len(CLASSES)).repeat_interleave(4))
    found = kept.sqrt() * noised - (1 - kept).sqrt() * v
    assert (found - data).square().mean() < 0.25 * (data - data.mean(0)).square().mean()


def test_hair_has_the_colour_asked_for(model: pictures.Model) -> None:
    sampler = DPMSolverSampler(faces_schedule(), 10, **pictures.OPTIONS)
    drawn = pictures.draw(model, sampler, 2 * len(CLASSES))
    colours = torch.tensor(
        [[int(render.HAIR[name][at : at + 2], 16) for at in (1, 3, 5)] for name in CLASSES]
    )
    apart = (drawn[:, None] - (colours / 127.5 - 1).view(1, -1, 3, 1, 1)).abs().amax(dim=2)
    near = (apart < 0.2).sum(dim=(2, 3))
    right = near.argmax(dim=1) == torch.arange(len(drawn)) % len(CLASSES)
    assert right.float().mean() >= 0.75


def test_components_one_by_one(model: pictures.Model) -> None:
    """The tables draw that component, whatever the seed; in one step, after which faces differ."""
    tables = DDIMSampler(faces_schedule(), 10, mixture=pictures.ortho(25.0), **pictures.OPTIONS).tables
    assert tables is not None
    for component in (0, 3, 7):
        drawn = draw_components(torch.arange(50), pictures.only(tables, component).cdf, row=0)
        assert drawn.tolist() == [component] * 50
    plain, first, last = (pictures.draw_component(model, 25.0, which, 1) for which in (None, 0, 7))
    assert not torch.equal(plain, first)
    assert not torch.equal(first, last)


def test_rows_of_images_become_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "new" / "picture.png"
    rows = {"dark": torch.full((2, 3, 4, 4), -1.0), "light": torch.full((3, 3, 4, 4), 0.5)}
    pictures.write(path, rows, ["a", "b", "c"])
    with Image.open(path) as picture:
        assert picture.width > 3 * 60
        colours = {colour[:3] for _, colour in picture.convert("RGB").getcolors(maxcolors=100_000)}
    assert {(0, 0, 0), (191, 191, 191)} <= colours
