"""`octoserve model list | inspect | verify | profile | import | init`: a repository as it lies there.

No service is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from octoserve.cli import model_import, model_profile
from octoserve.control.store import FILE, Store
from octoserve.core.errors import BrokenVersion, NotFound, SettingsError
from octoserve.core.names import is_elsewhere
from octoserve.repository.layout import DiskState, Refused, VersionOnDisk, version_number
from octoserve.repository.local import LocalRepository

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command("import")(model_import.import_)
app.command("init")(model_import.init)
app.command("profile")(model_profile.profile)

Repository = Annotated[
    str,
    typer.Option(
        "--repository", envvar="OCTOSERVE_REPOSITORY", help="Folder of <model>/<version>/, or where else it is."
    ),
]
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="OCTOSERVE_STATE_DIR", help="Where serve keeps its state.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STATE_DIR = Path(".octoserve")


@app.command("list")
def list_(repository: Repository, state_dir: StateDir = STATE_DIR, as_json: Json = False) -> None:
    """List models and versions with their digests; of a repository elsewhere nothing is fetched for it."""
    root, elsewhere = _root(repository, state_dir), _elsewhere(repository, state_dir)
    recorded = _recorded(root, state_dir)
    there = [
        version for version in _versions(root)[0] if not elsewhere or (version.model, version.version) in elsewhere
    ]
    rows = [_row(version, recorded) for version in there]
    known = {(row["model"], row["version"]) for row in rows}
    rows += [_far(model, version, recorded) for model, version in elsewhere if (model, version) not in known]
    rows.sort(key=lambda row: (row["model"], row["version"]))
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("MODEL", "VERSION", "STATE", "RUNTIME", "DIGEST"):
        table.add_column(column)
    for row in rows:
        state = row["state"] + (f": {row['reason']}" if row["reason"] else "")
        table.add_row(row["model"], str(row["version"]), state, row["runtime"], row["digest"][:19])
    Console().print(table if rows else f"no model in {repository}; a model is <name>/<version>/model.onnx")


@app.command()
def inspect(
    name: Annotated[str, typer.Argument(metavar="MODEL[/VERSION]", help="Without a version: the newest one.")],
    repository: Repository,
    state_dir: StateDir = STATE_DIR,
    as_json: Json = False,
) -> None:
    """Show a version's signature, settings and digest; loads the model to ask it.

    Exit code 1 if it cannot be loaded.
    """
    root = _root(repository, state_dir, name)
    versions, notes = _versions(root)
    version = _named(name, versions, repository)[-1]
    shown = _row(version, _recorded(root, state_dir))
    shown["path"] = version.path
    shown["ignored"] = [note for note in notes if note.startswith(f"{version.model}/")]
    shown.update(_signature(version))
    if as_json:
        print(json.dumps(shown))
        raise typer.Exit(int(shown["state"] == "broken"))
    console = Console()
    console.print(
        f"[bold]{version.model}[/bold] version {version.version}   {shown['state']} {shown['reason']}", soft_wrap=True
    )
    for key in ("path", "digest", "recorded", "platform", "batchable"):
        if shown.get(key) not in (None, ""):
            console.print(f"  {key:<10} {shown[key]}", highlight=False, soft_wrap=True)
    for side in ("inputs", "outputs"):
        for spec in shown.get(side, ()):
            text = f"{spec['name']}  {spec['datatype']} {spec['shape']}"
            console.print(f"  {side[:-1]:<10} {text}", highlight=False, markup=False)
    for note in shown["ignored"]:
        console.print(f"  note       {note}", highlight=False, markup=False)
    if shown["state"] == "broken":
        raise typer.Exit(1)


@app.command()
def verify(
    repository: Repository,
    name: Annotated[str, typer.Argument(metavar="[MODEL[/VERSION]]", help="Without it: every version.")] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Record the digests as they are now.")] = False,
    state_dir: StateDir = STATE_DIR,
    as_json: Json = False,
) -> None:
    """Compare digests with those that were recorded when the versions were first loaded.

    Exit code 1 if one differs or a version cannot be served. --accept records what lies there: a service
    that has the version loaded serves on with what it holds until the model is unloaded and loaded.
    """
    root = _root(repository, state_dir, name)
    versions, _ = _versions(root)
    chosen = _named(name, versions, repository) if name else versions
    if accept and chosen:
        store = Store(state_dir, root)
        for version in chosen:
            if version.state is DiskState.WHOLE:
                store.record_digest((version.model, version.version), version.digest, replace=True)
        store.close()
    rows = [_row(version, _recorded(root, state_dir)) for version in chosen]
    if as_json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['model']}/{row['version']}: {row['verdict']}")
    if any(row["verdict"] not in ("same", "not recorded yet") for row in rows):
        raise typer.Exit(1)


def _root(repository: str, state_dir: Path, name: str = "") -> Path:
    """The folder to look at. name: of a repository elsewhere, the version that is fetched first."""
    if not is_elsewhere(repository):
        return Path(repository)
    from octoserve.origins.opening import cache_folder, here, root_here

    model, _, number = name.partition("/")
    if model:
        here(repository, model, version_number(number), cache_folder(state_dir))
    return root_here(repository, cache_folder(state_dir))


def _elsewhere(repository: str, state_dir: Path) -> tuple[tuple[str, int], ...]:
    """What a repository elsewhere has; nothing for a folder."""
    if not is_elsewhere(repository):
        return ()
    from octoserve.origins.opening import cache_folder, versions_there

    return versions_there(repository, cache_folder(state_dir))


def _versions(repository: Path) -> tuple[list[VersionOnDisk], tuple[str, ...]]:
    """Everything in the repository, digests computed; what lies there now is taken as it is."""
    from octoserve.app import formats

    known = formats()
    local = LocalRepository(repository, known.artifacts, named=known.named, settle=0.0)
    for version in local.undigested(local.scan()):
        local.digest(version)
    scan = local.scan()
    return [version for versions in scan.models.values() for version in versions], scan.notes


def _recorded(repository: Path, state_dir: Path) -> dict[tuple[str, int], str]:
    if not (state_dir / FILE).exists():
        return {}
    store = Store(state_dir, repository)
    try:
        return store.digests()
    finally:
        store.close()


def _far(model: str, version: int, recorded: dict[tuple[str, int], str]) -> dict[str, Any]:
    reason = "`octoserve model inspect` fetches it"
    return {
        "model": model,
        "version": version,
        "state": "not in the cache",
        "reason": reason,
        "runtime": "",
        "digest": "",
        "recorded": recorded.get((model, version), ""),
        "verdict": "not in the cache",
    }


def _row(version: VersionOnDisk, recorded: dict[tuple[str, int], str]) -> dict[str, Any]:
    known = recorded.get((version.model, version.version), "")
    if version.state is not DiskState.WHOLE:
        verdict = version.reason
    elif not known:
        verdict = "not recorded yet"
    elif known == version.digest:
        verdict = "same"
    else:
        verdict = (
            f"changed: digest was {known[:19]}, is {version.digest[:19]}; publish it as a new version, or --accept"
        )
    return {
        "model": version.model,
        "version": version.version,
        "state": str(version.state),
        "reason": version.reason,
        "runtime": version.runtime,
        "digest": version.digest,
        "recorded": known,
        "verdict": verdict,
    }


def _named(name: str, versions: list[VersionOnDisk], repository: str) -> list[VersionOnDisk]:
    model, _, number = name.partition("/")
    if number and version_number(number) is None:
        raise SettingsError(f"MODEL/VERSION: a version is a number from 1, {number!r} came")
    found = [v for v in versions if v.model == model and (not number or v.version == int(number))]
    if not found:
        there = ", ".join(sorted({f"{v.model}/{v.version}" for v in versions})) or "nothing"
        raise NotFound(f"no {name} in {repository}; there is: {there}")
    return found


def _signature(version: VersionOnDisk) -> dict[str, Any]:
    from octoserve.app import runtimes
    from octoserve.lifecycle.loading import load

    if not version.runtime:
        return {}
    try:
        loaded = load(runtimes(), version.runtime, Path(version.path), batching=version.settings.batching)
    except (BrokenVersion, Refused) as error:
        return {"state": "broken", "reason": str(error)}
    signature = loaded.signature
    return {
        "platform": loaded.platform,
        "batchable": signature.batchable,
        "features": {name: list(columns) for name, columns in signature.features.items()},
        "inputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in signature.inputs],
        "outputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in signature.outputs],
    }
