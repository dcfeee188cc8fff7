"""Obstacles: errors of torch and ONNX Runtime, turned into a sentence with the workaround."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

_MOST = 300
"""Characters of another program's message that are shown."""
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Non-zero status code returned while |\x1b\[[0-9;]*m"
    r"|/onnxruntime_src/.*? was false\. "
)
_OWN = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)

_CULPRITS: tuple[tuple[str, str], ...] = (
    (
        r"_detect_is_causal_mask|_transformer_encoder_layer_fwd",
        "nn.TransformerEncoder reads the values of its mask; call it with is_causal=True as well as mask=…",
    ),
    (
        r"pack_padded_sequence|got FakeTensor.*modules/rnn\.py",
        (
            "Packed sequences cannot be exported; run the recurrent layer over the padded history and take the "
            "state at history_length - 1 (states.gather)"
        ),
    ),
    (
        r"linalg[._](solve|inv|lstsq|cholesky)|\binverse\b",
        "ONNX has no linear solver; solve once when the network is built and keep the result as a buffer",
    ),
    (
        r"ScriptModule|torch\.jit|ScriptFunction|RecursiveScript",
        "A scripted module cannot be traced again; export the Python module that it was made from",
    ),
    (
        r"metaclass conflict",
        (
            "Packages of torch's export do not fit each other, or one was only half imported; run it again, and "
            "install recommender[model] into a new environment if it stays"
        ),
    ),
    (
        r"Guard failed",
        (
            "A program of torch.export takes the sizes that it was exported for; export it with dynamic batch and "
            "history, and give the longest history as --longest-history"
        ),
    ),
)
"""Code that cannot be exported: a pattern in the message or the traceback, and the workaround."""

_COMPLAINTS: tuple[tuple[str, str], ...] = (
    (
        r"specializ|Constraints violated|not all values of|mark_dynamic|marked .* as dynamic",
        (
            "Torch fixed a size that must stay free. Usual causes are cat(chunk(…)) or split(…) over the batch, which "
            "unflatten(…).transpose(1, 2) replaces, and len(x), int(x.shape[…]) or range(x.shape[…]) in forward"
        ),
    ),
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|control flow|\.item\(\)|nonzero",
        "Forward branches on the values of its inputs; use torch.where, masks and gather instead",
    ),
    (
        r"ONNXRuntimeError",
        (
            "A size that must stay free is fixed in the graph. len(x), and view(…) or reshape(…) with numbers of one "
            "example do that; x.shape[0] and unflatten(…) do not"
        ),
    ),
)
"""Errors of torch and ONNX Runtime that name no cause: a pattern in the message, and the usual cause."""


def obstacle(error: BaseException) -> str:
    """The root error's text without dumps, with the user's own line and the workaround if known."""
    chain = _chain(error)
    told = " ".join(str(each) for each in chain)
    code = "".join("".join(traceback.format_tb(each.__traceback__)) for each in chain)
    line = user_line(error)
    way = next((way for pattern, way in _CULPRITS if re.search(pattern, told + code, re.DOTALL)), None)
    if way is None:
        way = next((way for pattern, way in _COMPLAINTS if re.search(pattern, told)), None)
    said = sentence(chain[-1])
    return said + (f", at {line}" if line else "") + (f". {way}" if way else "")


def failure(error: BaseException) -> str:
    """Describe an error of the user's code: its type, its text, and the line in the user's file."""
    line = user_line(error)
    return f"{type(error).__name__}: {sentence(error)}" + (f", at {line}" if line else "")


def user_line(error: BaseException) -> str | None:
    """The innermost line that is neither ours nor of a library, as `shop.py:12 (return self.table[x])`."""
    for each in reversed(_chain(error)):
        for frame in reversed(traceback.extract_tb(each.__traceback__)):
            if not frame.filename.startswith((*_OWN, "<")) and Path(frame.filename).is_file():
                return f"{Path(frame.filename).name}:{frame.lineno} ({(frame.line or '').strip()})"
    return None


def sentence(error: BaseException) -> str:
    """The first line of what an error says, without a full stop."""
    text = _NOISE.sub("", str(error)).strip() or type(error).__name__
    line = text.splitlines()[0].rstrip(". ")
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, the root last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
