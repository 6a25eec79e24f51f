"""The benchmark for a GPU runs to its end where there is none, and keeps what it has as it goes."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Report


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers, of its own defaults
def test_it_runs_to_its_end_on_a_toy_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--tiny", "--models", "sd15", "--rows", "2", "--pictures", "1", "--compiled-rows"]
    gpu.main([*small, "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text())
    assert {row["way"] for row in results["calls"]} == {"eager", "graphs"}
    assert {row["system"].split(",")[0] for row in results["pictures"]} == {
        "engine",
        "diffusers behind a lock",
    }
    assert all(row["largest_alone_again"] == 0 for row in results["company"])
    assert "left out" not in results


def test_every_row_is_written_when_it_is_measured_and_what_was_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, "x", {"date": "today", "device": "a toy"}, seconds=10)
    report.add("calls", rows=2, ms=0.5)
    assert json.loads((tmp_path / "x.json").read_text())["calls"] == [{"rows": 2, "ms": 0.5}]
    assert report.time_for(5, "something short")
    assert not report.time_for(20, "something long")
    assert "| something long |" in (tmp_path / "x.md").read_text()
