"""Whom our own clients trust: the system's authorities, or those of a file that the operator names."""

from __future__ import annotations

import os
import ssl

from octoserve.core.errors import SettingsError

CA_VARIABLE = "OCTOSERVE_CA"
"""A PEM file, in place of the system's authorities."""


def client_context(ca: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """ca: "" for the one of the environment, else the system's. certificate, key: what is shown to a server that
    wants one; a certificate's file may hold its key. Raises SettingsError."""
    ca = ca or os.environ.get(CA_VARIABLE, "")
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if certificate:
            context.load_cert_chain(certificate, key or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(filter(None, (ca, certificate, key)))
        raise SettingsError(f"TLS: cannot use {files}: {error}; PEM files are wanted") from None
    return context
