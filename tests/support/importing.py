"""The program `recommender` with an import that hangs, after a line that announces it."""

from __future__ import annotations

import sys
import threading
from importlib.abc import MetaPathFinder
from typing import Any

from recommender.__main__ import main


class Hanging(MetaPathFinder):
    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "recommender.cli.serve":
            sys.stderr.write('{"event": "importing"}\n')
            threading.Event().wait()


sys.meta_path.insert(0, Hanging())

if __name__ == "__main__":
    main()
