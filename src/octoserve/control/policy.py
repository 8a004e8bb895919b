"""Which versions of a model are wanted: `latest:N`, `all` or `specific:1,2`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from octoserve.core.errors import SettingsError


class VersionPolicy(msgspec.Struct, frozen=True):
    """`kind` is latest, all or specific; `count` belongs to the first, `versions` to the last."""

    kind: str = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "latest":
            return f"latest:{self.count}"
        return "all" if self.kind == "all" else f"specific:{','.join(map(str, self.versions))}"


LATEST = VersionPolicy()


def parse(text: str) -> VersionPolicy:
    """`latest`, `latest:N`, `all`, `specific:1,2`. Raises SettingsError."""
    kind, _, rest = text.replace(" ", "").partition(":")
    try:
        if kind == "latest":
            count = int(rest or "1")
            if count >= 1:
                return VersionPolicy("latest", count)
        elif kind == "all" and not rest:
            return VersionPolicy("all")
        elif kind == "specific":
            versions = tuple(sorted({int(number) for number in rest.split(",")}))
            if versions and versions[0] >= 1:
                return VersionPolicy("specific", versions=versions)
    except ValueError:
        pass
    raise SettingsError(f"version policy: latest:N, all or specific:1,2 wanted, {text!r} came")


def select(policy: VersionPolicy, present: Sequence[int], broken: Collection[int]) -> set[int]:
    """The wanted ones of `present`.

    `latest: N` counts past broken versions, which stay wanted so that their reason is seen and they are
    tried again when their files change: with N=1 and the newest one broken, the one below it is wanted too.
    """
    if policy.kind == "all":
        return set(present)
    if policy.kind == "specific":
        return set(present) & set(policy.versions)
    wanted: set[int] = set()
    good = 0
    for version in sorted(present, reverse=True):
        if good == policy.count:
            break
        wanted.add(version)
        good += version not in broken
    return wanted
