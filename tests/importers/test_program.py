"""`.pt2` encoders: what holds numbers is read, and what would be unpickled is not."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recommender.export.errors import ExportError
from recommender.importers.program import read_program


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.arange(10.0).view(5, 2))

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return self.rows[user_history].cumsum(dim=1)[torch.arange(history_length.shape[0]), history_length - 1]


class Harm:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]  # what an attacker writes


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "encoder.pt2"
    example = torch.zeros(3, 4, dtype=torch.int64), torch.full((3,), 4)
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(Sum(), example, dynamic_shapes=(batch, batch)), path)
    return path


def altered(program: Path, path: Path, part: str, change: Callable[[bytes], bytes], name: str | None = None) -> Path:
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry.endswith(part):
                new.writestr(entry if name is None else entry.replace(part, name), change(content))
            else:
                new.writestr(entry, content)
    return path


def pickled_weights(content: bytes) -> bytes:
    told = json.loads(content)
    told["config"]["rows"]["use_pickle"] = True
    return json.dumps(told).encode()


def harmful(_: bytes) -> bytes:
    written = io.BytesIO()
    torch.save(Harm(), written)
    return written.getvalue()


def test_a_program_of_numbers_is_read(program: Path) -> None:
    with torch.no_grad():
        found = read_program(program).module(torch.tensor([[1, 2, 0, 0]] * 3), torch.full((3,), 2))

    assert found.tolist() == [[6.0, 8.0]] * 3


@pytest.mark.parametrize(
    ("part", "change", "name"),
    [
        ("sample_inputs/model.pt", harmful, None),
        ("model_weights_config.json", pickled_weights, None),
        ("model_constants_config.json", lambda _: pickle.dumps(Harm()), "opaque_obj_0"),
        ("archive_format", lambda content: content, "other_format"),
    ],
)
def test_a_program_that_would_be_unpickled_is_refused(
    program: Path, part: str, change: Callable[[bytes], bytes], name: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="holds Python objects besides numbers"):
        read_program(altered(program, tmp_path / "encoder.pt2", part, change, name))

    assert not Path("harmed").exists()


def test_what_is_no_program_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt2"
    path.write_bytes(b"PK none")

    with pytest.raises(ExportError, match=r"encoder\.pt2 cannot be read as a program of torch\.export"):
        read_program(path)
