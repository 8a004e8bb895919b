"""A model repository in a local folder, watched by looking again.

`scan` is cheap (names, sizes, times) and blocking; `digest` reads a version's files once per fingerprint.
Neither is called on an event loop. See docs/lifecycle.md for when a version counts as whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError
from octoserve.core.names import model_name_problem
from octoserve.repository import model_yaml
from octoserve.repository.digest import Fingerprint, check_inside, fingerprint, folder_digest
from octoserve.repository.layout import (
    MODEL_YAML,
    DiskState,
    ModelSettings,
    Refused,
    Scan,
    VersionOnDisk,
    ignored,
    version_number,
)

SETTLE = 2.0
FIRST_SETTLE = 0.25
Digest = Callable[[Path], str]


class _Watched:
    """What is remembered of one version folder between scans."""

    __slots__ = ("digest", "edition", "newest", "problem", "settings", "settled", "since", "text", "unreadable")

    def __init__(self, text: str, since: float) -> None:
        self.text = text
        self.since = since
        self.settled = False
        self.edition = 0
        self.newest = 0.0
        self.forget()

    def forget(self) -> None:
        self.digest = ""
        self.problem = ""
        self.unreadable = False
        """The problem is one of reading, which may pass while the files stay the same."""
        self.settings: ModelSettings | None = None

    def changed(self, text: str, now: float) -> None:
        if self.settled:
            self.edition += 1
        self.text, self.since, self.settled = text, now, False
        self.forget()


class LocalRepository:
    """Versions under `root`.

    models:    only these, or all when None
    artifacts: file name -> runtime, e.g. {"model.onnx": "onnx"}
    named:     runtimes that no file tells, only `model.yaml`
    settle:    seconds without a change after which a version is whole
    wall:      Unix time, compared with inode change times; `clock` measures how long nothing changed
    """

    def __init__(
        self,
        root: Path,
        artifacts: Mapping[str, str],
        models: Collection[str] | None = None,
        *,
        named: Collection[str] = (),
        settle: float = SETTLE,
        clock: Clock = monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.root = Path(os.path.realpath(root))
        self._artifacts = dict(artifacts)
        self._named = tuple(named)
        self._models = None if models is None else frozenset(models)
        self._settle = settle
        self._clock = clock
        self._wall = wall
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._first_scan: float | None = None
        if not self.root.is_dir():
            raise SettingsError(
                f"repository: a folder is wanted, {str(root)!r} is not one; create it, or name the folder "
                "that holds <model>/<version>/model.onnx"
            )

    def scan(self, trust: Collection[str] = ()) -> Scan:
        """Look at every version. `trust`: models whose files the caller says are whole.

        Raises OSError when the root itself cannot be read: that is no reason to think it empty.
        """
        if self._first_scan is None:
            self._first_scan = self._clock()
        found: dict[str, tuple[VersionOnDisk, ...]] = {}
        notes: list[str] = []
        for model in sorted(entry.name for entry in os.scandir(self.root)):
            problem = model_name_problem(model)
            if problem:
                notes.append(f"{model!a} is ignored: {problem}")
                continue
            if ignored(model) or (self._models is not None and model not in self._models):
                continue
            if (self.root / model).is_dir():
                found[model] = self._scan_model(model, notes, model in trust)
        seen = {(model, v.version) for model, versions in found.items() for v in versions}
        for key in self._watched.keys() - seen:
            del self._watched[key]
        return Scan(found, tuple(notes))

    def _scan_model(self, model: str, notes: list[str], trust: bool) -> tuple[VersionOnDisk, ...]:
        versions: list[VersionOnDisk] = []
        try:
            check_inside(str(self.root / model), str(self.root))
            names = [entry.name for entry in os.scandir(self.root / model)]
        except (OSError, Refused) as error:
            notes.append(f"{model}: {_text(error)}")
            return ()
        for name in sorted(names):
            number = version_number(name)
            if number is not None and (self.root / model / name).is_dir():
                version = self._look(model, number, trust)
                if version is not None:
                    versions.append(version)
            elif not ignored(name):
                notes.append(f"{model}/{_text(name)} is ignored: a version is a folder named 1, 2, 3, ...")
        return tuple(sorted(versions, key=lambda v: v.version))

    def _look(self, model: str, number: int, trust: bool) -> VersionOnDisk | None:
        folder = self.root / model / str(number)
        now = self._clock()
        try:
            check_inside(str(folder), str(self.root))
            print_ = fingerprint(folder, self.root)
        except FileNotFoundError:
            return None
        except (Refused, OSError) as error:
            return VersionOnDisk(
                model=model, version=number, path=str(folder), state=DiskState.REFUSED, reason=_text(error)
            )
        watched = self._watched.get((model, number))
        if watched is None:
            watched = self._watched[model, number] = _Watched(print_.text, now)
        elif watched.text != print_.text:
            watched.changed(print_.text, now)
        elif watched.unreadable and watched.newest != print_.newest:
            watched.forget()  # somebody gave leave to read, which changes no name, size or time of content
        watched.newest = print_.newest
        return self._judge(model, number, folder, print_, watched, trust)

    def _judge(
        self, model: str, number: int, folder: Path, print_: Fingerprint, watched: _Watched, trust: bool
    ) -> VersionOnDisk:
        rest = self._clock() - watched.since
        rested = rest >= self._settle or self._wall() - print_.newest >= self._settle
        at_start = self._first_scan is not None and watched.since - self._first_scan < FIRST_SETTLE
        early = at_start and watched.edition == 0 and rest >= FIRST_SETTLE
        state, reason, runtime = DiskState.SETTLING, "its files are still changing", ""
        if print_.partial:
            reason = f"{print_.partial} is still being written"
        elif rested or early or trust or watched.settled:
            watched.settled = True
            state, reason, runtime = self._inspect(folder, print_, watched)
        return VersionOnDisk(
            model=model,
            version=number,
            path=str(folder),
            state=state,
            fingerprint=print_.text,
            digest=watched.digest,
            reason=_text(reason),
            runtime=runtime,
            settings=watched.settings or ModelSettings(),
            edition=watched.edition,
            rested=rested,
        )

    def _inspect(self, folder: Path, print_: Fingerprint, watched: _Watched) -> tuple[DiskState, str, str]:
        try:
            if watched.settings is None:
                has_yaml = MODEL_YAML in print_.names
                watched.settings = model_yaml.read(folder / MODEL_YAML) if has_yaml else ModelSettings()
            runtime = self._runtime(folder, print_.names, watched.settings)
        except (Refused, OSError) as error:
            return DiskState.REFUSED, str(error), ""
        if watched.problem:
            return DiskState.REFUSED, watched.problem, runtime
        if not watched.digest:
            return DiskState.SETTLING, "its digest is being computed", runtime
        return DiskState.WHOLE, "", runtime

    def _runtime(self, folder: Path, names: Collection[str], settings: ModelSettings) -> str:
        known = sorted({*self._artifacts.values(), *self._named})
        if settings.runtime is not None:
            if settings.runtime not in known:
                raise Refused(f"model.yaml: runtime: one of {known} wanted, {settings.runtime!r} came")
            return settings.runtime
        found = {artifact: runtime for artifact, runtime in self._artifacts.items() if artifact in names}
        if len(set(found.values())) == 1:
            return next(iter(found.values()))
        if found:
            several = ", ".join(f"{artifact} ({runtime})" for artifact, runtime in found.items())
            raise Refused(f"{folder} holds {several}; say which it is: `runtime:` in model.yaml")
        wanted = " or ".join(self._artifacts)
        raise Refused(f"{folder} holds no {wanted}; it holds {sorted(names)[:5] or 'nothing'}")

    def undigested(self, scan: Scan) -> list[VersionOnDisk]:
        """Versions that rest and whose digest is not known yet; pass each to `digest`."""
        waiting: list[VersionOnDisk] = []
        for versions in scan.models.values():
            for version in versions:
                watched = self._watched.get((version.model, version.version))
                if version.state is DiskState.SETTLING and watched is not None and watched.settled:
                    waiting.append(version)
        return waiting

    def read_again(self, model: str) -> None:
        """Forget that files of this model could not be read."""
        for (name, _), watched in self._watched.items():
            if name == model and watched.unreadable:
                watched.forget()

    def digest(self, version: VersionOnDisk, compute: Digest = folder_digest) -> bool:
        """Compute and remember the digest of what was scanned, or why its files cannot be read. Blocking.

        False if the files changed meanwhile and nothing is known of them.
        """
        folder = Path(version.path)
        digest, problem, unreadable = "", "", False
        try:
            digest = compute(folder)
            published = version.settings.digest
            if published is not None:
                own = folder_digest(folder, without=(MODEL_YAML,))
                if own != published:
                    problem = (
                        f"model.yaml says digest {published}, the files have {own}; copy the version again, "
                        "or publish it with the right digest"
                    )
        except OSError as error:
            problem, unreadable = f"its files cannot be read: {error}", True
        except Refused:
            return False  # it changed under our hands; the next scan says how
        try:
            now = fingerprint(folder, self.root).text
        except (OSError, Refused):
            return False
        watched = self._watched.get((version.model, version.version))
        if watched is None or not watched.text == version.fingerprint == now:
            return False
        watched.digest, watched.problem, watched.unreadable = digest, problem, unreadable
        return True


def _text(what: object) -> str:
    """As text that every protocol can carry: what is not UTF-8 in a file's name is escaped."""
    return str(what).encode(errors="backslashreplace").decode()
