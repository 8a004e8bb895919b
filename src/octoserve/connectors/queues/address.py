"""Addresses of sources and sinks: `scheme://user@host:port/path?name=value`, and `embedded[:NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

import msgspec

from octoserve.core.errors import SettingsError


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address in its parts. base: the URL without the parameters that are ours, secrets and all."""

    setting: str
    scheme: str
    host: str
    path: str
    parameters: dict[str, str]
    base: str
    query: str = ""
    """The parameters as they were written."""

    @property
    def label(self) -> str:
        """What people may see: no user, no password."""
        return f"{self.scheme}://{self.host}{self.path}"

    def only(self, known: Sequence[str]) -> None:
        """Raises SettingsError if a parameter is none of these."""
        for name in self.parameters:
            if name not in known:
                raise SettingsError(
                    f"{self.setting}: unknown parameter {name!r} of {self.label}; known: {', '.join(known)}"
                )

    def wanted(self, name: str, example: str) -> str:
        """A parameter that must be there. Raises SettingsError."""
        value = self.parameters.get(name)
        if not value:
            raise SettingsError(f"{self.setting}: {name}= is wanted in {self.label}, such as {example}")
        return value


def parse(text: str, setting: str) -> Address:
    """The address; `embedded[:NAME]` has scheme `embedded` and the name as its path. Raises SettingsError."""
    word, _, query = text.partition("?")
    if word == "embedded" or word.startswith("embedded:"):
        name = word.partition(":")[2].strip("/") or "default"
        return Address(
            setting=setting, scheme="embedded", host="", path=name, parameters=_parameters(query, setting), base=word
        )
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:  # its text may hold the password
        raise SettingsError(
            f"{setting}: the address cannot be read; reserved characters in a password are percent-encoded"
        ) from None
    if not parts.scheme or "://" not in text:
        raise SettingsError(
            f"{setting}: an address such as {_EXAMPLES[setting.rpartition('.')[2]]} is wanted, {text!r} came"
        )
    return Address(
        setting=setting,
        scheme=parts.scheme,
        host=f"{parts.hostname or ''}{port}",
        path=parts.path,
        parameters=_parameters(parts.query, setting),
        base=text.partition("?")[0],
        query=parts.query,
    )


_EXAMPLES = {
    "source": "embedded, embedded:orders, nats://host:4222/stream or kafka://host:9092/topic",
    "sink": "'sqlite:///results.db?table=t' or 'postgresql://user@host/db?table=t'",
    "store": "'sqlite:///answers.db?table=t' or 'postgresql://user@host/db?table=t'",
    "results": "embedded:answers, nats://host:4222/stream or kafka://host:9092/topic",
}


def _parameters(query: str, setting: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{setting}: the parameter {name!r} is given twice")
    return dict(pairs)
