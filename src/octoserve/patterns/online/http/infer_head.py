"""What an inference request's head says, whatever its body's protocol: model, deadline, codings."""

from __future__ import annotations

import re

from octoserve.core.errors import InvalidInput, Unsupported
from octoserve.core.trace_context import PARENT
from octoserve.patterns.online.http.head import Handler, Head


class InferHead:
    """What an inference request's head says: worked out once for all requests that repeat it."""

    __slots__ = ("accept", "encoding", "header_length", "headers", "model", "plain", "timeout", "version")

    def __init__(self, model: str, version: str, head: Head) -> None:
        self.plain: Handler
        """What takes the body, once its coding is undone; set by the door."""
        self.model = model
        self.version = version
        self.headers = head.headers
        head.once = head.once or PARENT in head.headers  # it names one request
        self.timeout = _timeout(head.headers.get("x-request-timeout"))
        self.header_length = _length(head.headers.get("inference-header-content-length"))
        encoding = head.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise Unsupported(f"Content-Encoding {encoding!r}; gzip, deflate and identity are taken")
        self.encoding = "" if encoding == "identity" else encoding
        self.accept = _accepted(head.headers.get("accept-encoding", ""))


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text.replace("_", "?"))  # Python would take 1_0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise InvalidInput(f"X-Request-Timeout is {text!r}; seconds are wanted, such as 0.5")
    return seconds


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidInput(f"Inference-Header-Content-Length is {text!r}; a number of bytes is wanted")
    return int(text)


_REFUSED = re.compile(r"q\s*=\s*0(\.0*)?$")


def _accepted(text: str) -> str:
    """The coding to answer in: the first of gzip and deflate that is not refused by q=0."""
    for item in text.lower().split(","):
        coding, _, q = item.strip().partition(";")
        if coding.strip() in ("gzip", "deflate") and not _REFUSED.match(q.strip()):
            return coding.strip()
    return ""
