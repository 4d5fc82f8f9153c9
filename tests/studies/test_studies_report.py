"""Where a study's report goes is tried before the study, not hours later."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from studies import skip_step
from studies.quality import __main__ as quality


@pytest.fixture(params=[skip_step.main, quality.main], ids=["skip_step", "quality"])
def study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], bool]:
    """Give a study that fails where its work begins."""

    def begin(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(skip_step, "study_seed", begin)
    monkeypatch.setattr(quality, "make_tasks", lambda *of: {"digits": begin} if of[0] == Path() else begin())
    main: Callable[[list[str]], bool] = request.param
    return main


def test_a_folder_that_cannot_be_written(study: Callable[[list[str]], bool], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit, match=r"--report: cannot write in '.*/taken/docs': "):
        study(["--output", str(tmp_path), "--report", str(tmp_path / "taken" / "docs")])


def test_no_matplotlib(
    study: Callable[[list[str]], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="pictures need matplotlib"):
        study(["--output", str(tmp_path)])
