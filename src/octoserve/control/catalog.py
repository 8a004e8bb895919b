"""The catalogue: every version in the repository with one state and its reason. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from octoserve.control.readiness import failure, held_somewhere, ready_everywhere, ready_in_service
from octoserve.control.snapshot import Key, Listed, Snapshot
from octoserve.lifecycle.states import VersionRef
from octoserve.repository.layout import DiskState, VersionOnDisk

BY_REQUEST = "unloaded by request"
LEAVING = "being unloaded"
NOT_SELECTED = "not selected by version policy"
AT_REST = (BY_REQUEST, LEAVING, NOT_SELECTED)
"""How the reasons begin of versions that are unavailable although nothing is wrong with them."""


def catalog(snapshot: Snapshot, wanted: Iterable[VersionRef]) -> tuple[Listed, ...]:
    """One entry a version on disk, sorted. A model without versions is not listed."""
    refs = {(ref.model, ref.version): ref for ref in wanted}
    return tuple(
        _listed(snapshot, disk, refs.get((model, disk.version)))
        for model in sorted(snapshot.disk)
        for disk in snapshot.disk[model]
    )


def _listed(snapshot: Snapshot, disk: VersionOnDisk, ref: VersionRef | None) -> Listed:
    key = (disk.model, disk.version)
    note = problem(snapshot, disk)
    if ref is not None:
        if not note and disk.state is DiskState.WHOLE and disk.digest != ref.digest:
            note = "its files changed before they had rested; unload and load the model to take them"
        routed = key in snapshot.current.routed()
        if ready_everywhere(snapshot, key) or (routed and ready_in_service(snapshot, key)):
            return Listed(*key, "READY", f"what is loaded serves on; on disk: {note}" if note else "")
        failed = failure(snapshot, ref)
        if failed:
            return Listed(*key, "UNAVAILABLE", failed)
        return Listed(*key, "LOADING")
    if disk.model in snapshot.holds:
        return Listed(*key, "UNAVAILABLE", f"{BY_REQUEST}; load it to have it back")
    if disk.state is DiskState.SETTLING:
        return Listed(*key, "LOADING", note)
    if note:
        return Listed(*key, "UNAVAILABLE", note)
    if held_somewhere(snapshot, key):
        return Listed(*key, "UNAVAILABLE", LEAVING)
    policy = snapshot.wishes_of(disk.model).policy
    return Listed(*key, "UNAVAILABLE", f"{NOT_SELECTED} {policy}")


def problem(snapshot: Snapshot, disk: VersionOnDisk) -> str:
    """Why this version would not be loaded as it lies on disk; empty if it would."""
    if disk.state is not DiskState.WHOLE:
        return disk.reason
    if disk.settings.effects == "external" and snapshot.wishes_of(disk.model).cached:
        return (
            f"its model.yaml says `effects: external`, and an answer from the cache would not act on the world; take "
            f"models.{disk.model}.cache out of the spec"
        )
    key: Key = (disk.model, disk.version)
    recorded = snapshot.digests.get(key)
    if recorded is None or recorded == disk.digest:
        return ""
    return (
        f"its files changed after it was first loaded (digest was {_short(recorded)}, is "
        f"{_short(disk.digest)}); publish them as version {disk.version + 1} or higher, or accept them with "
        f"`octoserve model verify {disk.model}/{disk.version} --accept`"
    )


def _short(digest: str) -> str:
    return digest[:19]
