"""Tells an asker that a request is done, or has failed: one POST to the address that it gave.

2xx: it is told. 408, 425, 429, 5xx and no answer: again later. Any other answer says that it never will be. Redirects
are such an answer: the address was allowed, what it leads to was not.
"""

from __future__ import annotations

import http.client
import logging
from urllib.parse import urlsplit

from octoserve.connectors.queues.answers import Answer
from octoserve.connectors.queues.headers import value_of

log = logging.getLogger(__name__)

_TIMEOUT = 10.0
_AGAIN = (408, 425, 429)


def tell(answer: Answer) -> bool:
    """Whether there is nothing more to do. Blocking; never raises."""
    try:
        status = _post(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        log.info("callback of %s: %s", answer.id, error or type(error).__name__)
        return False
    if status in _AGAIN or status >= 500:
        log.info("callback of %s: answered %d", answer.id, status)
        return False
    if not 200 <= status < 300:
        log.warning("callback of %s: answered %d; it is not tried again", answer.id, status)
    return True


def _post(answer: Answer) -> int:
    parts = urlsplit(answer.callback)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "octoserve",
            "Idempotency-Key": value_of(answer.id),
        }
        connection.request("POST", target, answer.told(), headers)
        return connection.getresponse().status
    finally:
        connection.close()
