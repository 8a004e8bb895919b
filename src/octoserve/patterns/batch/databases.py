"""The way from a batch job to PostgreSQL: the one client of this project, told what to name in its errors."""

from __future__ import annotations

from octoserve.connectors.postgres import Database, Databases
from octoserve.control.postgres import Server


def of(setting: str) -> Databases:
    """setting: that the address came from."""

    def connect_later(url: str) -> Database:
        return Server(url, setting)

    return connect_later
