"""Draw where Python's time goes in a `Recommend` call: `just bench flame` writes docs/pictures/call.svg.

py-spy (from PyPI, by uv) samples the threads that hold the GIL of `recommender serve` on the grpc edge. h2load (Debian:
nghttp2-client) keeps 64 calls of the reference model in flight. Frames of the start, such as those of the command line,
are left out. py-spy sees no C code: it counts for the Python function that calls it, or for the event loop if none
does. A bar is a function, as wide as its share of the samples; the bars below it are the functions it calls.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bench.facts import ROOT
from bench.questions.many import SERVICE, framed, histories, load
from bench.serving import serving
from recommender.recommend_api.v1 import recommend_api_pb2 as api

PY_SPY = "py-spy==0.4.3"
CALLS = 4000
LOOP = "event loop: uvloop and gRPC in C"
WIDTH, ROW, TOP = 1200, 19, 58
_START = re.compile(
    r"\((?:<frozen runpy>|recommender/(?:__main__|cli/.*|server/.*)\.py|typer/.*|asyncio/.*|threading\.py)"
)
_KINDS: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "recommender": ("#9ec5f0", re.compile(r"\(recommender/")),
    "grpc": ("#f5c08a", re.compile(r"\(grpc/")),
    "asyncio": ("#c9b8e8", re.compile(r"\(asyncio/")),
    "numpy and ONNX Runtime": ("#a5d8b0", re.compile(r"\((?:numpy|onnxruntime)/")),
    "event loop": ("#f0a3a3", re.compile(re.escape(LOOP))),
    "other": ("#d5d8dc", re.compile("")),
}


@dataclass
class Frame:
    """A function called by its parent: samples in it and below it."""

    name: str
    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)


def without_start(stack: Sequence[str]) -> Sequence[str]:
    """The frames after those that every stack of a thread begins with."""
    first = next((place for place, frame in enumerate(stack) if not _START.search(frame)), len(stack))
    return stack[first:]


def tree(stacks: Mapping[str, int]) -> Frame:
    """The frames of folded stacks, `a;b;c` by their samples."""
    root = Frame("all")
    for folded, samples in stacks.items():
        stack = without_start(folded.split(";")) or (LOOP,)
        root.samples += samples
        at = root
        for name in stack:
            at = at.calls.setdefault(name, Frame(name))
            at.samples += samples
    return root


def _bars(frame: Frame, left: float, depth: int, scale: float) -> Iterator[tuple[Frame, float, int, float]]:
    width = frame.samples * scale
    if width < 1:
        return
    yield frame, left, depth, width
    for called in sorted(frame.calls.values(), key=lambda each: -each.samples):
        yield from _bars(called, left, depth + 1, scale)
        left += called.samples * scale


def draw(root: Frame) -> str:
    """The tree as an SVG: the root on top, the largest share of each function on the left."""
    bars = list(_bars(root, 0.0, 0, WIDTH / root.samples))
    title = f"Python's time in a Recommend call: {root.samples:,} samples of threads that hold the GIL"
    height = TOP + ROW * (1 + max(depth for _, _, depth, _ in bars)) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="4" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    left = 4.0
    for name, (colour, _) in _KINDS.items():
        parts.append(f'<rect x="{left:g}" y="32" width="14" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{left + 20:g}" y="44" font-size="13">{escape(name)}</text>')
        left += 44 + 7.5 * len(name)
    for frame, start, depth, width in bars:
        colour = next(colour for colour, pattern in _KINDS.values() if pattern.search(frame.name))
        y = TOP + ROW * depth
        share = f"{frame.name}: {frame.samples / root.samples:.1%}"
        size = f'width="{max(width - 1, 0.5):.1f}" height="{ROW - 1}"'
        parts.append(f'<g><title>{escape(share)}</title><rect x="{start:.1f}" y="{y}" {size} fill="{colour}"/>')
        shown = frame.name.partition(" (")[0].replace(".<locals>", "")
        most = int((width - 6) / 6.6)
        if most >= 4:
            shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
            parts.append(f'<text x="{start + 3:.1f}" y="{y + 13}" font-size="12">{escape(shown)}</text>')
        parts.append("</g>")
    return "\n".join((*parts, "</svg>\n"))


def record(seconds: int, rate: int) -> Counter[str]:
    """Folded stacks of a server under load."""
    (history,) = histories(1)
    body = framed(api.RecommendRequest(item_ids=history).SerializeToString())
    stacks: Counter[str] = Counter()
    with serving(settings={"RECOMMENDER_MODEL": str(ROOT / "weights/10_model.onnx")}) as server:
        ended = threading.Event()

        def keep_asking() -> None:
            while not ended.is_set():
                load(server.port, f"{SERVICE}/Recommend", body, 1, CALLS)

        load(server.port, f"{SERVICE}/Recommend", body, 1, CALLS)
        asking = threading.Thread(target=keep_asking)
        asking.start()
        raw = Path(server.log.parent, "stacks")
        try:
            subprocess.run(
                [os.environ.get("UV", "uv"), "tool", "run", "--from", PY_SPY, "py-spy", "record", "--gil", "--function",
                 "--format", "raw", "--rate", str(rate), "--duration", str(seconds), "--output", raw,
                 "--pid", str(server.process.pid)],
                check=True,
            )  # fmt: skip
        finally:
            ended.set()
            asking.join()
        for line in raw.read_text(encoding="utf-8").splitlines():
            folded, _, samples = line.rpartition(" ")
            stacks[folded] += int(samples)
    return stacks


def main() -> None:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rate", type=int, default=400, help="samples per second")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures/call.svg")
    arguments = parser.parse_args()
    arguments.output.write_text(draw(tree(record(arguments.seconds, arguments.rate))), encoding="utf-8")


if __name__ == "__main__":
    main()
