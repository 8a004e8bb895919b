"""One trained model, one spec, eight ways to serve it, the same answer from each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from octoserve.client.asynchronous import AsyncClient
    from octoserve.client.blocking import Client

__all__ = ["AsyncClient", "Client", "batch", "load", "score"]
__version__ = "0.1.0"


def batch(
    repository: str | os.PathLike[str],
    model: str,
    source: str | Sequence[str],
    sink: str | os.PathLike[str],
    **settings: Any,
) -> Any:
    """Score a table: `octoserve batch run` for notebooks and scripts.

    Returns a `patterns.batch.outcome.Outcome` when the sink is committed: its `table()` or `to_pandas()` has the
    predictions, its `bad_rows()` what could not be scored, its `report()` what a shadow would have changed, its
    `manifest` the counts. The same call again goes on with what was interrupted, or finds it done.
    settings: the fields of `octoserve.spec.BatchSection`, such as `keys=["id"]`, `error_budget="0.1%"`, `version=2`
    progress: whether a bar is shown; unset: in a notebook and in a terminal
    on_begin: called with the job, how its columns were matched, and its progress, before the first row

    Raises `core.errors.SettingsError` for what does not fit (nothing is written then), other OctoserveErrors for what
    went wrong.
    """
    app = import_module("octoserve.app")  # by name: every module imports this one, and only `app` may import them all
    return app.batch(repository, model, source, sink, **settings)


def score(frame: Any, repository: str | os.PathLike[str], model: str, **settings: Any) -> Any:
    """A Spark DataFrame with predictions beside its keys, for tables that only Spark can read; lazy, as frames are.

    The model goes from `repository`, which only this process must see, to the executors.
    settings: `version=2`, `keys=["id"]`, `columns`, `all_columns`, `prefix`, `missing`, `convert`, `block_rows` as in
    `batch`; `bad_rows="refuse"` lets a row that cannot be scored fail the job, "keep" passes it on with null
    predictions and why in a column `error`

    Raises `core.errors.SettingsError` for what does not fit.
    """
    return import_module("octoserve.app").score(frame, repository, model, **settings)


def load(path: str | os.PathLike[str], version: int | None = None, **settings: Any) -> Any:
    """A version of a model in this process: `octoserve.load("models/fraud").predict(rows)`.

    path: <repository>/<model>, or <repository>/<model>/<version>; without a version the highest
    settings: `columns=[...]`, the columns of the model's only input in order, where its model.yaml names none;
        `missing="nan"` or "refuse" for a missing number, instead of what model.yaml says; `trust=["code"]` for what
        the version may bring beyond data, instead of what OCTOSERVE_TRUST says
    Returns an `in_process.Endpoint`, whose `predict` takes arrays, mappings of columns, Arrow tables, pandas and polars
    frames, and gives a mapping of output names to arrays.

    Raises `core.errors.NotFound`, `SettingsError`, `BrokenVersion`.
    """
    return import_module("octoserve.app").load(path, version, **settings)


def __getattr__(name: str) -> Any:
    """The clients, imported when somebody asks for them: `import octoserve` brings nothing along."""
    module = {"Client": "blocking", "AsyncClient": "asynchronous"}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"octoserve.client.{module}"), name)
