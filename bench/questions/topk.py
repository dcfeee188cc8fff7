"""Measures what the exact top-K of a catalogue costs, and how much of it is not the product of users and items.

Compares, in turn and never side by side: the heads of our exports, the plain MatMul + TopK graph, the product alone
(MatMul whose scores stay where they are), and faiss `IndexFlatIP` where it is installed. Every answer is compared with
the plain graph's. Run: `uv run --group dev --group model --with faiss-cpu python -m bench.questions.topk`.
With `--device cuda` the graphs run on the GPU, copies of ids and scores over the bus included; faiss stays on the CPU.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from recommender.engine.onnx_file import read_onnx_file
from recommender.engine.provider import CPU, CUDA, SPIN_MICROSECONDS, CudaOptions
from recommender.export.artifact import write_model
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, Codes
from recommender.export.head.head import coarse_pays
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack

try:
    import faiss  # type: ignore[import-not-found,unused-ignore] # comes by `--with faiss-cpu`
except ImportError:
    faiss = None

THREADS = 2
PROVIDERS = {"cpu": [CPU], "cuda": [(CUDA, CudaOptions().as_provider_options()), CPU]}
Answer = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None
Run = Callable[[npt.NDArray[np.int64], int], Answer]


def session(
    path: Path,
    *,
    spinning: bool,
    prepack: bool,
    restricted: bool = False,
    threads: int = THREADS,
    device: str = "cpu",
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # As the engine does, in a session for runs that restrict nothing.
    options.enable_mem_pattern = small = read_onnx_file(path).small
    for restricting in ("nnz", "c") if not restricted and small else ():
        options.add_free_dimension_override_by_name(restricting, 0)
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    opened = ort.InferenceSession(path, options, providers=PROVIDERS[device])
    if opened.get_providers()[0] != {"cpu": CPU, "cuda": CUDA}[device]:
        msg = f"{path.name} runs on {opened.get_providers()}, not on {device}"
        raise SystemExit(msg)
    return opened


@cache
def rest(batch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Other inputs of a batch without restrictions, made once because they are not measured."""
    return np.ones(batch, np.int64), np.zeros((batch, 0), np.int64)


def first_item(g: Nodes) -> str:
    """A user is the embedding of the history's first item: next to no encoder."""
    first = g.op("Gather", "user_history", g.constant(np.array(0, np.int64)), axis=1)
    return g.op("Gather", TABLE, first, axis=0)


def ours(embeddings: npt.NDArray[np.float32], folder: Path, *, coarse: bool = False, plain_head: bool = False) -> Path:
    items, dim = embeddings.shape
    layout = Layout(items, dim, plain_head)
    table = pack(embeddings, None, layout)
    codes = Codes.of(table, layout) if coarse else None
    model = build_graph(first_item, layout, largest=float(np.abs(embeddings).max()), codes=codes)
    path = folder / f"ours{coarse}{plain_head}.onnx"
    write_model(model, table, path, 1 << 30, {} if codes is None else {CODES: codes.codes})
    return path


def plain(embeddings: npt.NDArray[np.float32], folder: Path, *, select: bool) -> Path:
    """MatMul with the transposed table, then TopK, or a look at `k` scores only."""
    nodes = [
        helper.make_node("Gather", ["user_history", "zero"], ["first"], axis=1),
        helper.make_node("Gather", ["users", "first"], ["vectors"], axis=0),
        helper.make_node("MatMul", ["vectors", "table"], ["all"]),
        helper.make_node("TopK", ["all", "k"], ["scores", "recommendations"])
        if select
        else helper.make_node("Slice", ["all", "start", "k", "axis"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    if select:
        outputs.append(helper.make_tensor_value_info("recommendations", TensorProto.INT64, None))
    graph = helper.make_graph(
        nodes,
        "plain",
        [
            helper.make_tensor_value_info("user_history", TensorProto.INT64, ("batch", "history")),
            helper.make_tensor_value_info("k", TensorProto.INT64, (1,)),
        ],
        outputs,
        [
            numpy_helper.from_array(embeddings[:1024].copy(), "users"),
            numpy_helper.from_array(np.ascontiguousarray(embeddings.T), "table"),
            numpy_helper.from_array(np.array(0), "zero"),
            numpy_helper.from_array(np.array([0]), "start"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    path = folder / f"plain{select}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def runs(
    embeddings: npt.NDArray[np.float32],
    folder: Path,
    *,
    spinning: bool,
    prepack: bool,
    with_faiss: bool,
    threads: int,
    device: str,
) -> dict[str, Run]:
    opened = partial(session, spinning=spinning, prepack=prepack, threads=threads, device=device)
    heads = {"head": opened(ours(embeddings, folder))}
    if coarse_pays(Layout(*embeddings.shape)):
        heads["coarse head"] = opened(ours(embeddings, folder, coarse=True))
    if device == "cuda":
        heads["plain head"] = opened(ours(embeddings, folder, plain_head=True))
    whole = opened(plain(embeddings, folder, select=True))
    product = opened(plain(embeddings, folder, select=False))

    empty = np.zeros((0, 2), np.int64)

    def run_head(name: str, users: npt.NDArray[np.int64], k: int) -> Answer:
        ones, nobody = rest(len(users))
        feeds = {
            "user_history": users[:, None],
            "history_length": ones,
            "k": np.array([k]),
            "excluded": empty,
            "candidates": nobody,
            "candidates_length": ones,
        }
        ids, scores = heads[name].run(["recommendations", "scores"], feeds)
        return ids, scores

    def run_plain(users: npt.NDArray[np.int64], k: int) -> Answer:
        ids, scores = whole.run(["recommendations", "scores"], {"user_history": users[:, None], "k": np.array([k])})
        return ids, scores

    def run_product(users: npt.NDArray[np.int64], k: int) -> Answer:
        product.run(["scores"], {"user_history": users[:, None], "k": np.array([k])})
        return None

    known: dict[str, Run] = {
        **{name: partial(run_head, name) for name in heads},
        "plain": run_plain,
        "product alone": run_product,
    }
    if faiss is not None and with_faiss:
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings)

        def run_faiss(users: npt.NDArray[np.int64], k: int) -> Answer:
            scores, ids = index.search(embeddings[users], k)
            return ids, scores

        known["faiss"] = run_faiss
    return known


def same(one: Answer, other: Answer) -> str:
    """Whether two rankings are equal; scores within 1e-5 of each other count as one."""
    if one is None or other is None:
        return ""
    if np.array_equal(one[0], other[0]):
        return "identical"
    return "equal" if np.allclose(one[1], other[1], rtol=1e-5, atol=1e-5) else "DIFFERENT"


def measure(
    known: dict[str, Run], users: npt.NDArray[np.int64], k: int, rounds: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each, interleaved; who follows whom changes, as each leaves the caches to the next."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in known}
    for turn in range(rounds + 2):
        for name in random.permutation(list(known)).tolist():
            run = known[name]
            start = time.perf_counter()
            run(users, k)
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000000x64,100000x64,10000x32")
    parser.add_argument("--batches", default="1,32,64")
    parser.add_argument("--k", default="10")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--spinning", action="store_true")
    parser.add_argument("--no-prepack", action="store_true")
    parser.add_argument("--no-faiss", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    columns = ("items", "batch", "k", "what", "median ms", "5 % … 95 %", "x plain", "x product", "ranking")
    table = Table(*columns, title=f"top-K on {options.device}")
    for size in options.sizes.split(","):
        items, dim = map(int, size.split("x"))
        embeddings = random.random((items, dim), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            known = runs(
                embeddings,
                Path(folder),
                spinning=options.spinning,
                prepack=not options.no_prepack,
                with_faiss=not options.no_faiss,
                threads=options.threads,
                device=options.device,
            )
            for k in map(int, options.k.split(",")):
                for batch in map(int, options.batches.split(",")):
                    users = random.integers(0, 1024, batch)
                    right = known["plain"](users, k)
                    rankings = {name: same(run(users, k), right) for name, run in known.items()}
                    rounds = options.rounds * (1 if items >= 1_000_000 else 20)
                    slow = {"faiss"} if items >= 1_000_000 else set()
                    times = measure({name: run for name, run in known.items() if name not in slow}, users, k, rounds)
                    for name in slow & known.keys():
                        times |= measure({name: known[name]}, users, k, 3)
                    for name, taken in times.items():
                        low, middle, high = np.percentile(taken, (5, 50, 95))
                        table.add_row(
                            size,
                            str(batch),
                            str(k),
                            name,
                            f"{middle:.3g}",
                            f"{low:.3g} … {high:.3g}",
                            f"{np.median(times['plain']) / middle:.2f}",
                            f"{middle / np.median(times['product alone']):.2f}",
                            rankings[name],
                        )
                    table.add_section()
    Console(width=120).print(table)
    Console().print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
