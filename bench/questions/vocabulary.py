"""Cost of a vocabulary: bytes on disk for each key, resident memory, and microseconds for each look-up.

`just bench-vocabulary 1000000`
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from recommender.engine.machine import memory_growth, resident_memory
from recommender.models.vocabulary import Vocabulary, write_vocabulary

LOOK_UPS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", type=int, nargs="?", default=1_000_000)
    count = parser.parse_args().keys
    drawn = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.keys"
        started = time.perf_counter()
        write_vocabulary([f"{drawn.getrandbits(40):010x}-{item:08d}" for item in range(count)], path)
        size = path.stat().st_size
        print(
            f"{count:,} keys: {size:,} bytes, {size / count:.1f} a key, {time.perf_counter() - started:.1f} s to write"
        )
        before, started = resident_memory(), time.perf_counter()
        vocabulary = Vocabulary.open(path, count)
        milliseconds = (time.perf_counter() - started) * 1e3
        print(f"open: {milliseconds:.1f} ms, {(memory_growth(before) or 0) / 1e6:.0f} MB resident")
        items = [drawn.randrange(count) for _ in range(LOOK_UPS)]
        for again in ("first", "again"):
            started = time.perf_counter()
            keys = vocabulary.keys(items)
            between = time.perf_counter()
            assert vocabulary.ids(keys) == items
            ended = time.perf_counter()
            print(f"{again}: id to key {(between - started) / LOOK_UPS * 1e6:.1f} µs")
            print(f"{again}: key to id {(ended - between) / LOOK_UPS * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
