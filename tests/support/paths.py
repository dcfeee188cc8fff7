"""Where the project and its models are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
