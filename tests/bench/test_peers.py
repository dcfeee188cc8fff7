"""The picture of a comparison shows the figures of its table."""

from __future__ import annotations

from bench.peers.picture import bars, draw

PAGE = """10,000 × 32, 64 calls in flight, 2 rounds:

| server | calls/s | × grpc | p50 ms |
| --- | --- | --- | --- |
| grpc | 3,045 [2,642 … 3,448] | 1 [1 … 1] | 20.5 [18.5 … 22.5] |
| mosec (64 rows, 2 ms, 2 threads) | 9,542 [9,145 … 9,939] | 3.21 [2.65 … 3.76] | 6.39 [5.96 … 6.82] |

10,000 × 32, at 25% of the slowest's calls/s:

| server | p50 ms at 59/s |
| --- | --- |
| grpc | 2.04 [2.02 … 2.07] |

Not compared: ray: no answer in 90 s

100,000 × 64, 64 calls in flight, 1 rounds:

| server | calls/s | × grpc | p50 ms |
| --- | --- | --- | --- |
| grpc | 2,102 | 1 | 29.5 |
"""


def test_every_table_of_calls_is_read_with_its_spread() -> None:
    assert bars(PAGE) == {
        "10,000 × 32, 64 calls in flight, 2 rounds": [
            ("grpc", 3045.0, 2642.0, 3448.0),
            ("mosec (64 rows, 2 ms, 2 threads)", 9542.0, 9145.0, 9939.0),
        ],
        "100,000 × 64, 64 calls in flight, 1 rounds": [("grpc", 2102.0, 2102.0, 2102.0)],
    }


def test_each_table_has_a_panel_with_the_quickest_on_top() -> None:
    panels = draw(PAGE).axes
    assert [panel.get_title(loc="left") for panel in panels] == [f"Calls/s: {heading}" for heading in bars(PAGE)]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "recommender, grpc edge",
        "mosec (64 rows, 2 ms, 2 threads)",
    ]
