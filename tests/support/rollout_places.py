"""Where rollouts may be stored, for tests: a folder for SQLite, a schema of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest

from support import postgres


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL's URL, the same one for all."""
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.a_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def new_place(request, tmp_path) -> Iterator[Callable[[], str]]:
    """Gives a place where nothing has been stored yet, as `support.store_child.opened` takes it."""
    if request.param == "sqlite":
        yield lambda: f"sqlite {tmp_path / uuid4().hex}"
        return
    url = request.getfixturevalue("server")
    made: list[str] = []

    def place() -> str:
        made.append(f"t{uuid4().hex}")
        return f"postgres {made[-1]} {url}"

    yield place
    with psycopg.connect(url, autocommit=True) as connection:
        for schema in made:
            connection.execute(f"drop schema if exists {schema} cascade".encode())


@pytest.fixture
def place(new_place) -> str:
    return new_place()
