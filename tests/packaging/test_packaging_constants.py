"""Numbers that are written down in more than one language: C header, extension, Python, build files."""

from __future__ import annotations

import re
from enum import IntEnum
from importlib import metadata

import pytest
from repository import ROOT

import gmmkernel
from gmmkernel import Column, Stream, _core
from gmmkernel.backends.constants import MAX_COMPONENTS, MAX_HISTORY, Prediction
from gmmkernel.ops.checks import SAMPLE_DTYPES

HEADER = (ROOT / "csrc/include/gmmkernel/gmmkernel.h").read_text(encoding="utf-8")


def header_enum(name: str, prefix: str) -> dict[str, int]:
    """Read an enum of the C interface."""
    (body,) = re.findall(rf"typedef enum {name} \{{(.*?)\}} {name};", HEADER, re.DOTALL)
    return {word: int(value) for word, value in re.findall(rf"{prefix}(\w+) = (\d+)", body)}


@pytest.mark.parametrize(
    ("name", "prefix", "ours", "extension"),
    [
        ("gmm_column", "GMM_", Column, _core.COLUMNS),
        ("gmm_stream", "GMM_STREAM_", Stream, _core.STREAMS),
        ("gmm_prediction", "GMM_PREDICTION_", Prediction, _core.PREDICTIONS),
    ],
)
def test_enums_agree(name: str, prefix: str, ours: type[IntEnum], extension: dict[str, int]) -> None:
    """HISTORY_0 stands for its four columns in C."""
    declared = header_enum(name, prefix)
    later_history = {f"HISTORY_{j}" for j in range(1, MAX_HISTORY)}
    assert declared == extension
    assert declared == {member.name: member.value for member in ours if member.name not in later_history}


def test_the_history_columns_follow_each_other() -> None:
    first = Column.HISTORY_0
    assert [Column[f"HISTORY_{j}"] for j in range(MAX_HISTORY)] == list(range(first, first + MAX_HISTORY))
    assert sorted(Column) == list(range(len(Column)))


def test_dtypes_agree() -> None:
    declared = {name.lower(): value for name, value in header_enum("gmm_dtype", "GMM_").items()}
    assert declared == _core.DTYPES
    assert sorted(declared) == sorted(str(dtype).removeprefix("torch.") for dtype in SAMPLE_DTYPES)


def test_instruction_sets_agree() -> None:
    declared = {name.lower(): value for name, value in header_enum("gmm_instruction_set", "GMM_").items()}
    assert declared == _core.INSTRUCTION_SETS | {"best": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_COMPONENTS", MAX_COMPONENTS), ("MAX_HISTORY", MAX_HISTORY), ("ROW_COLUMNS", len(Column))],
)
def test_limits_agree(name: str, value: int) -> None:
    assert re.findall(rf"#define GMM_{name} (\d+)$", HEADER, re.MULTILINE) == [str(value)]


def test_one_version_everywhere() -> None:
    (declared,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (cmake,) = re.findall(r"project\(gmmkernel VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    header = [
        re.findall(rf"#define GMM_VERSION_{part} (\d+)", HEADER) for part in ("MAJOR", "MINOR", "PATCH")
    ]
    newest = re.findall(r"^## \[?v?(\d[^\s\]]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    found = {
        "pyproject.toml": declared,
        "CMakeLists.txt": cmake,
        "gmmkernel.h": ".".join(number for (number,) in header),
        "CHANGELOG.md": newest,
        "the extension": _core.version,
        "gmmkernel.__version__": gmmkernel.__version__,
        "the installed package": metadata.version("gmmkernel"),
    }
    assert len(set(found.values())) == 1, found
