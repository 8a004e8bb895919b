"""The versions that a job scores with, found and matched with its table (docs/decisions/0013-rollouts-in-batch.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from octoserve.control.plan_source import shaping
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import pinning
from octoserve.patterns.batch.job import Differs, JobSettings, Routing
from octoserve.patterns.batch.matching import Matched, describe, match, wishes
from octoserve.patterns.batch.model import Version
from octoserve.patterns.batch.routed import Voice, Voices, unlike
from octoserve.patterns.batch.table import Table
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import LoadedModel


class Crew:
    """All versions that take part, by number; `stable` answers what no plan gives to another."""

    def __init__(self, stable: Version, by_number: Mapping[int, Version], routing: Routing | None) -> None:
        self.stable = stable
        self.by_number = by_number
        self.routing = routing

    def load_first(self) -> dict[int, LoadedModel]:
        """For one thread, and each is asked whether its rows are rows. Raises BrokenVersion, SettingsError."""
        return {number: version.load_first() for number, version in self.by_number.items()}

    def load(self) -> dict[int, LoadedModel]:
        """For one more thread. Raises as `load_first`."""
        return {number: version.load() for number, version in self.by_number.items()}

    def check(self) -> None:
        """Raises SettingsError if the files of one are not those that its digest was taken of."""
        for version in self.by_number.values():
            version.check()

    def libraries(self) -> dict[str, str]:
        """What all of them run on, with versions."""
        return dict(version.library.partition(" ")[::2] for version in self.by_number.values())


def crew_of(
    find: Callable[[int | None], Version],
    version: int | None,
    plan: RoutePlan | None,
    shadow: int | None,
    noise: int,
    was: Routing | None,
) -> Crew:
    """Every version that takes part, and who does what; the key's column is known once the table is open.

    find: a version by its number, None for the highest
    was:  of a job that is gone on with
    Raises NotFound, SettingsError.
    """
    shaped = shaping(plan) if plan is not None else None
    stable = find(version if shaped is None else shaped.stable)
    number = stable.identity.version
    by_number = {number: stable}
    if shaped is None and shadow is None:
        return Crew(stable, by_number, None)
    if shadow == number:
        raise SettingsError(f"--shadow: version {number} scores already; name another one to compare it with")
    answering = sorted(shaped.versions() - {number}) if shaped is not None else []
    for other in answering if shadow is None else [*answering, shadow]:
        if other not in by_number:
            by_number[other] = find(other)
    routing = Routing(
        plan=shaped,
        key=was.key if was is not None else "",
        others=tuple(by_number[other].identity for other in answering),
        shadow=by_number[shadow].identity if shadow is not None else None,
        noise=noise if shadow is not None else 0,
    )
    return Crew(stable, by_number, routing)


def asked_of(routing: Routing | None) -> dict[str, Any]:
    """What was asked for, of a job that pins it: fields of a wish."""
    routing = routing or Routing()
    shadow = routing.shadow.version if routing.shadow is not None else None
    return {"plan": routing.plan, "plan_key": routing.key, "shadow": shadow, "noise": routing.noise}


class Fitted(msgspec.Struct, frozen=True):
    """A table and a crew, matched. matched: the stable version's, but `read` is of all; schema: as in the job."""

    matched: Matched
    voices: Voices
    schema: tuple[str, ...]


def fit(crew: Crew, loaded: Mapping[int, LoadedModel], table: Table, settings: JobSettings, plan_key: str) -> Fitted:
    """Every version matched by its own names; a text is read as the stable one wants it.

    Raises Differs, SettingsError.
    """
    stable = crew.stable.identity.version
    if table.is_text:
        table.read_as(_wishes(crew, loaded, table, settings))
    routing = crew.routing or Routing()
    if routing.plan is not None:
        routing = msgspec.structs.replace(routing, key=pinning.key_column(routing.plan, plan_key, table.schema))
    matched = {
        number: match(
            loaded[number].signature,
            table.schema,
            settings,
            loaded[number].signature.features,
            str(version),
            may_round=table.is_text,
        )
        for number, version in crew.by_number.items()
    }
    signature = loaded[stable].signature
    wrong = [d for other in routing.others for d in unlike(signature, loaded[other.version].signature, other.version)]
    if wrong:
        raise Differs(f"the versions of {crew.stable.identity.name} do not answer alike", wrong)
    said = list(describe(table.schema, matched[stable], signature))
    for number in sorted(matched.keys() - {stable}):
        lines = describe(table.schema, matched[number], loaded[number].signature)
        said += [f"version {number}: {line}" for line in lines]
    read = [column for one in (matched[stable], *matched.values()) for column in one.read]
    read += [routing.key] if routing.key else []
    return Fitted(
        msgspec.structs.replace(matched[stable], read=tuple(dict.fromkeys(read))),
        Voices(stable, routing, {n: Voice(loaded[n].signature, matched[n].feeds) for n in matched}),
        tuple(said),
    )


def _wishes(crew: Crew, loaded: Mapping[int, LoadedModel], table: Table, settings: JobSettings) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, version in reversed(list(crew.by_number.items())):  # the stable one is the first
        signature = loaded[number].signature
        found |= wishes(signature, table.schema, settings, signature.features, str(version))
    return found
