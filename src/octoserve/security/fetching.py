"""An identity provider's keys, over HTTPS. Blocking."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from typing import Any

from octoserve.core.errors import Unavailable

MAX_BYTES = 1 << 20
TIMEOUT = 5.0


class _Stay(urllib.request.HTTPRedirectHandler):
    """The address in the settings is the one that is trusted, and no other that it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(url: str, ca: str = "") -> bytes:
    """What lies there. ca: a PEM file, "" for the system's authorities. Raises Unavailable."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Stay)
        with opener.open(url, timeout=TIMEOUT) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise Unavailable(f"security.jwt.jwks: {url} answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"security.jwt.jwks: {url}: {getattr(error, 'reason', error)}") from None
    if len(content) > MAX_BYTES:
        raise Unavailable(f"security.jwt.jwks: {url} has more than {MAX_BYTES} bytes")
    return content
