"""What `recommender profile` shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from recommender.cli.chart import Series, line_chart
from tests.support import models

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("lines", [[Series("a <b> & c", [(1, 0.5)])], [Series("x", [(1, 3), (64, 700.5)])] * 7])
def test_charts_are_well_formed_and_draw_every_point_inside(lines: list[Series]) -> None:
    chart = ET.fromstring(line_chart("A & B", "size", lines, ("limit", 1.0)))  # noqa: S314 (our own)
    dots = chart.findall(f"{SVG}circle")
    assert len(dots) == sum(len(line.points) for line in lines)
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    assert all(0 < float(dot.attrib["cx"]) < width and 0 < float(dot.attrib["cy"]) < height for dot in dots)
    assert len({dot.attrib["cy"] for dot in dots}) == len({y for line in lines for _, y in line.points})


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recommender", "profile", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_measures_recommends_and_writes_the_page(tmp_path: Path) -> None:
    metadata = {"recommender.items": "50"}
    models.batched(tmp_path / "10_model.onnx", models.table(), metadata=metadata, k=10)
    done = run(
        tmp_path, "10_model.onnx", "--batches", "1,8", "--histories", "1,5", "--threads", "1",
        "--seconds", "0", "--p99-ms", "60000", "--output", "page.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows a second" in done.stdout
    assert "RECOMMENDER_MAX_BATCH_SIZE=" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert page.count("<tr>") == 1 + 4
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_model_that_is_not_there_and_a_list_that_is_none_are_sentences(tmp_path: Path) -> None:
    missing = run(tmp_path, "none.onnx")
    assert missing.returncode == 2
    assert "there is no model file none.onnx" in missing.stderr
    wrong = run(tmp_path, "none.onnx", "--batches", "1,many")
    assert wrong.returncode == 2
    assert "is not a list of whole numbers" in wrong.stderr.replace("\n", " ")
    assert "Traceback" not in missing.stderr + wrong.stderr
