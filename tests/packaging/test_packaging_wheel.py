"""A user's way: sdist, wheel built from it, a fresh environment, another directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from repository import ROOT, files

import gmmkernel
from gmmkernel import DDIMSampler, noise_schedule
from gmmkernel.digits import IMAGE_SHAPE, load_unet

pytestmark = pytest.mark.slow

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "GMM_CUDA_ARCHITECTURES": "90",  # one is quicker
}


def run(*command: str | Path, directory: Path) -> str:
    """Run a command and return what it printed; a failure shows all of it."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist, in a copy of the repository, isolated as for a user."""
    copy = tmp_path_factory.mktemp("source")
    for path in files():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)
    run(sys.executable, "-m", "build", "--outdir", copy / "dist", copy, directory=copy.parent)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and sees this environment's other packages."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, directory=folder.parent)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(sys.executable, *install, distributions[1], directory=folder.parent)
    # After the installation, or pip would take the package here for the one wanted. A path in a .pth file does not
    # bring the .pth files of that path with it, so an editable installation there stays out of sight.
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(python, "-c", query, directory=folder).strip())
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "dependencies.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
    return python


def test_the_sdist_has_what_a_build_needs(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    needed = [path.as_posix() for path in files() if path.parts[0] == "csrc" and "tests" not in path.parts]
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", *needed):
        assert name in names, name
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_wheel_has_what_a_user_needs(distributions: tuple[Path, Path]) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with zipfile.ZipFile(distributions[1]) as archive:
        names = set(archive.namelist())
    installed = {name for name in names if ".dist-info/" not in name}
    expected = {path.as_posix() for path in files() if path.parts[0] == "gmmkernel"}
    with_cuda = {f"gmmkernel/_cuda{suffix}"} if shutil.which("nvcc") else set()
    assert installed == expected | {f"gmmkernel/_core{suffix}"} | with_cuda
    networks = ("unet", "flow_unet", "classifier", "statistics")
    data = [f"digits/weights/{name}.safetensors" for name in networks]
    assert {f"gmmkernel/{name}" for name in ("golden.json", "py.typed", "_core.pyi", *data)} <= installed
    assert [name for name in names if name.endswith("LICENSE")]
    assert distributions[1].stat().st_size < 5_000_000


def test_the_installed_package_is_the_one_used(python: Path, tmp_path: Path) -> None:
    code = """
import json, gmmkernel
from importlib import metadata
found = [gmmkernel.__file__, gmmkernel._core.__file__, gmmkernel.__version__, metadata.version("gmmkernel")]
print(json.dumps(found))
"""
    *modules, version, installed = json.loads(run(python, "-c", code, directory=tmp_path))
    assert all(Path(module).is_relative_to(python.parents[1]) for module in modules), modules
    assert version == installed == gmmkernel.__version__


def test_its_bits_are_right(python: Path, tmp_path: Path) -> None:
    out = run(python, "-m", "gmmkernel", "verify", directory=tmp_path)
    assert out.endswith("every bit as committed\n")
    assert "reference: " in out
    assert "cpu portable: " in out


def test_it_samples(python: Path, tmp_path: Path) -> None:
    words = "sample --sampler ddim --count 4 --steps 2 --spacing trailing --npz made.npz"
    run(python, "-m", "gmmkernel", *words.split(), directory=tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sampler = DDIMSampler(noise_schedule(), 2, spacing="trailing")
        expected = sampler.sample(load_unet(), torch.arange(4), IMAGE_SHAPE, progress=False).sample
    finally:
        torch.set_num_threads(threads)
    with np.load(tmp_path / "made.npz") as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)
