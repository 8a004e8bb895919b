"""Turns a file's bytes into the input of the `content_type` model, and its output into a name.

Facts of Magika's standard_v3_3 model, as its package describes them: 2,048 tokens, of which the first
1,024 come from the file's beginning and the last 1,024 from its end. Both are taken from at most 4,096
bytes with the outer white space cut off; a token is a byte's value, and 256 fills what is missing (after
the beginning, before the end). With under 8 bytes at the beginning the model
has too little to go on.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENS = 1024
BLOCK = 4096
PADDING = 256
MINIMUM = 8


def tokens(content: bytes) -> NDArray[np.int32]:
    """The model's input `bytes`, INT32[1, 2048], for one file.

    Raises:
        ValueError: the first 4,096 bytes have fewer than 8 after their leading white space.
    """
    head = content[:BLOCK].lstrip()[:TOKENS]
    tail = content[-BLOCK:].rstrip()[-TOKENS:]
    if len(head) < MINIMUM:
        raise ValueError(f"{len(head)} bytes are too few to tell a content type from; {MINIMUM} are the least")
    row = np.full((1, 2 * TOKENS), PADDING, dtype=np.int32)
    row[0, : len(head)] = np.frombuffer(head, np.uint8)
    row[0, 2 * TOKENS - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


def labels() -> list[str]:
    """The names behind the positions of the model's output `target_label`, FP32[-1, 214]."""
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the names are in Magika's package: pip install magika")
    config = sorted((Path(spec.origin).parent / "models").glob("*/config.min.json"))[-1]
    names: list[str] = json.loads(config.read_text())["target_labels_space"]
    return names
