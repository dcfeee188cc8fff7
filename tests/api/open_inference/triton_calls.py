"""Call a server in every way that tritonclient has, and write the results as JSON.

`python triton_calls.py PORT`, in an environment with `tritonclient[grpc]`.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "reference"
HISTORIES = [[1, 2, 3, 4], [0, 0, 0, 0], [9999, 999, 99, 0]]
LENGTHS = [4, 1, 3]


def tensors() -> list[Any]:
    """The known histories as one request."""
    histories, lengths = np.array(HISTORIES, np.int64), np.array(LENGTHS, np.int32)
    return [
        triton.InferInput("user_history", histories.shape, "INT64").set_data_from_numpy(histories),
        triton.InferInput("history_length", lengths.shape, "INT32").set_data_from_numpy(lengths),
    ]


def ids(result: Any) -> Any:
    """The rankings of a result."""
    return result.as_numpy("recommendations").tolist()


def sync(client: Any) -> dict[str, Any]:
    """Every call of the sync client."""
    failures = {}
    refused: dict[str, Callable[[], Any]] = {
        "unknown model": lambda: client.infer("none", tensors()),
        "unknown output": lambda: client.infer(MODEL, tensors(), outputs=[triton.InferRequestedOutput("logits")]),
        "load": lambda: client.load_model(MODEL),
        "unload": lambda: client.unload_model(MODEL),
        "late": lambda: client.infer(MODEL, tensors(), timeout=1),
    }
    for name, call in refused.items():
        try:
            call()
        except InferenceServerException as error:
            failures[name] = error.status()
    result = client.infer(
        MODEL, tensors(), request_id="mine", outputs=[triton.InferRequestedOutput("scores")], priority=1
    )
    return {
        "live": [client.is_server_live(), client.is_server_ready(), client.is_model_ready(MODEL)],
        "unknown model is ready": client.is_model_ready("none"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(MODEL, as_json=True),
        "config": client.get_model_config(MODEL, as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True),
        "ids": ids(client.infer(MODEL, tensors(), model_version="1", timeout=30_000_000)),
        "scores": result.as_numpy("scores").shape,
        "id": result.get_response().id,
        "statistics": client.get_inference_statistics(MODEL, as_json=True),
        "failures": failures,
    }


def callback(client: Any) -> Any:
    """Calls whose results arrive by a callback."""
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(8):
        client.async_infer(MODEL, tensors(), lambda result, error: answers.put(error or ids(result)))
    return [answers.get(timeout=60) for _ in range(8)]


def stream(client: Any) -> Any:
    """A stream whose third request fails."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(8):
        client.async_stream_infer("none" if number == 2 else MODEL, tensors(), request_id=str(number))
    told = [answers.get(timeout=60) for _ in range(8)]
    client.stop_stream()
    return [str(error) if error else [result.get_response().id, ids(result)] for result, error in told]


async def asynchronous(address: str) -> dict[str, Any]:
    """The calls of the asyncio client."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(4):
            yield {"model_name": MODEL, "inputs": tensors(), "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        together = await asyncio.gather(*(client.infer(MODEL, tensors()) for _ in range(8)))
        return {
            "live": [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready(MODEL)],
            "ids": [ids(each) for each in together],
            "stream": [ids(result) async for result, _ in client.stream_infer(requests())],
            "index": await client.get_model_repository_index(as_json=True),
            "metadata": (await client.get_model_metadata(MODEL, as_json=True))["name"],
            "config": (await client.get_model_config(MODEL, as_json=True))["config"]["name"],
            "statistics": (await client.get_inference_statistics(MODEL, as_json=True))["model_stats"][0]["name"],
        }


def main() -> None:
    """Write what a server answers."""
    address = f"127.0.0.1:{sys.argv[1]}"
    with triton.InferenceServerClient(address) as client:
        told = {"sync": sync(client), "callback": callback(client), "stream": stream(client)}
    json.dump({**told, "asyncio": asyncio.run(asynchronous(address))}, sys.stdout)


if __name__ == "__main__":
    main()
