"""Numbers that are written down in more than one language: C header, extension, Python, build files."""

from __future__ import annotations

import re
from enum import IntEnum
from importlib import metadata
from typing import get_args

import pytest
from repository import ROOT

import gmmkernel
from gmmkernel import Column, Stream, TrainingColumn, _core
from gmmkernel.backends import available_backends
from gmmkernel.backends.constants import MAX_COMPONENTS, MAX_HISTORY, Prediction
from gmmkernel.backends.reference import elementary, normal
from gmmkernel.mixtures import VARIANTS
from gmmkernel.ops.checks import SAMPLE_DTYPES
from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.methods import METHODS
from gmmkernel.schedules import SPACINGS, TARGETS
from gmmkernel.schedules.flow_sde import FLOW_DYNAMICS
from gmmkernel.schedules.noise import NOISE_SCHEDULES
from gmmkernel.schedules.rows import PREDICTION_TYPES

INCLUDE = ROOT / "csrc/include/gmmkernel"
HEADER = (INCLUDE / "gmmkernel.h").read_text(encoding="utf-8")


def header_enum(name: str, prefix: str) -> dict[str, int]:
    """Read an enum of the C interface."""
    (body,) = re.findall(rf"typedef enum {name} \{{(.*?)\}} {name};", HEADER, re.DOTALL)
    return {word: int(value) for word, value in re.findall(rf"{prefix}(\w+) = (\d+)", body)}


@pytest.mark.parametrize(
    ("name", "prefix", "ours", "extension"),
    [
        ("gmm_column", "GMM_", Column, _core.COLUMNS),
        ("gmm_training_column", "GMM_TRAINING_", TrainingColumn, _core.TRAINING_COLUMNS),
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
    [
        ("MAX_COMPONENTS", MAX_COMPONENTS),
        ("MAX_HISTORY", MAX_HISTORY),
        ("ROW_COLUMNS", len(Column)),
        ("TRAINING_COLUMNS", len(TrainingColumn)),
    ],
)
def test_limits_agree(name: str, value: int) -> None:
    assert re.findall(rf"#define GMM_{name} (\d+)$", HEADER, re.MULTILINE) == [str(value)]


def literals(text: str) -> list[float]:
    """Return the hexadecimal floating-point literals, in their order."""
    return [float.fromhex(literal) for literal in re.findall(r"-?0x[\d.a-f]+p[+-]?\d+", text)]


def test_coefficients_of_normals_agree() -> None:
    """C++ writes them as it uses them, the highest degree first."""
    header = (INCLUDE / "normal.h").read_text(encoding="utf-8")
    log, cos_sin = re.findall(r"minus_two_log\(typename.*?\n}\n|cos_sin\(typename.*?\n}\n", header, re.DOTALL)
    assert literals(log) == [-(2.0**-31), *normal.LOG_Q[::-1], normal.TWO_LN_2]
    assert literals(cos_sin) == [2.0**-32, *normal.SIN_S[::-1], *normal.COS_C[::-1]]


@pytest.mark.parametrize(("name", "form"), [("Float32", elementary.FLOAT32), ("Float64", elementary.FLOAT64)])
def test_constants_of_logarithm_and_exponential_agree(name: str, form: elementary._Format) -> None:
    header = (INCLUDE / "elementary.h").read_text(encoding="utf-8")
    (body,) = re.findall(rf"struct {name}Elementary {{(.*?)\n}};", header, re.DOTALL)
    polynomials = dict(re.findall(r" (\w+_p)\(.*?return horner<Lanes>\((.*?)\);", body, re.DOTALL))
    assert {key: literals(written) for key, written in polynomials.items()} == {
        "log_p": list(form.log_p),
        "exp_p": list(form.exp_p),
    }
    numbers = dict(re.findall(r"constexpr \w+ (\w+) = (-?\d.*?)f?;", body))
    assert float(numbers.pop("subnormal_exponent")) == form.fraction_bits
    assert float.fromhex(numbers.pop("subnormal_scale")) == 2.0**form.fraction_bits
    values = {key: (literals(text) or [float(text)])[0] for key, text in numbers.items()}
    assert values == {key: getattr(form, key) for key in values}
    assert len(values) == 7


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


def test_the_table_of_names_has_them_all() -> None:
    """docs/how_to.md lists what every option that is a name may be."""
    table = (ROOT / "docs" / "how_to.md").read_text(encoding="utf-8").partition("the name of an option?")[2]
    options = {
        "noise schedules": NOISE_SCHEDULES,
        "predictions": PREDICTION_TYPES,
        "spacings": SPACINGS,
        "mixtures": VARIANTS,
        "samplers of the command line": (*METHODS, "flow"),
        "`dynamics` of `FlowSampler`": FLOW_DYNAMICS,
        "`target` of the skip-step loss": TARGETS,
        "`prediction=` of `gmm_step`": get_args(PredictionName),
        "backends": [backend.name for backend in available_backends()],
    }
    for what, names in options.items():
        (line,) = re.findall(rf"^\| {re.escape(what)} \| (.*) \|$", table, re.MULTILINE)
        assert set(re.findall(r"`([a-z0-9_+-]+)`", line)) == set(names), what
