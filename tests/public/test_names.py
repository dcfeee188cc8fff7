"""The names that `from recommender import …` offers, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import recommender
from recommender import client


def test_the_public_names_are_the_client_s() -> None:
    assert recommender.__all__ == ["Client", "Recommendations", "Refusal", "SyncClient", "__version__"]
    for name in ("Client", "Recommendations", "Refusal", "SyncClient"):
        assert getattr(recommender, name) is getattr(client, name)
    assert recommender.__version__ == version("recommender")


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'recommender' has no attribute 'Server'"):
        recommender.Server  # noqa: B018


def test_the_package_alone_imports_no_grpc() -> None:
    program = "import sys, recommender; print(sorted({'grpc', 'google.protobuf', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"
