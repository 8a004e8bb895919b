"""A cache as the repository that the control plane looks at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from msgspec import structs

from octoserve.core.names import label_problem
from octoserve.origins.cache import Cache
from octoserve.repository.digest import folder_digest
from octoserve.repository.layout import DiskState, Refused, Scan, VersionOnDisk
from octoserve.repository.local import Digest, LocalRepository


class CachedRepository(LocalRepository):
    """What is in the cache is whole, if its digest is the one that was recorded when it was fetched."""

    def __init__(
        self,
        cache: Cache,
        artifacts: Mapping[str, str],
        models: Collection[str] | None = None,
        *,
        named: Collection[str] = (),
    ) -> None:
        super().__init__(cache.root, artifacts, models, named=named, settle=0.0)
        self._cache = cache
        self._looked_into: dict[tuple[str, int], str] = {}

    def scan(self, trust: Collection[str] = ()) -> Scan:
        """See `LocalRepository.scan`; with what was refused, and the origin's aliases as labels."""
        with self._cache.still:
            scan = super().scan(trust)
        models = dict(scan.models)
        for versions in scan.models.values():
            for version in versions:
                if version.state is DiskState.REFUSED:
                    self._look_into(version)
        for (model, number), reason in sorted(self._cache.refused.items()):
            if any(known.version == number for known in models.get(model, ())):
                continue
            path = str(self._cache.place((model, number)))
            refused = VersionOnDisk(
                model=model, version=number, path=path, state=DiskState.REFUSED, reason=f"not fetched: {reason}"
            )
            models[model] = tuple(sorted((*models.get(model, ()), refused), key=lambda v: v.version))
        labels = {
            model: {name: version for name, version in named.items() if not label_problem(name)}
            for model, named in self._cache.said.aliases.items()
        }
        return structs.replace(scan, models=models, labels=labels)

    def _look_into(self, version: VersionOnDisk) -> None:
        """Whether what is refused is what was fetched: damage may look like a fault of the version. Once a state."""
        key = version.model, version.version
        if self._looked_into.get(key) != version.fingerprint:
            self._looked_into[key] = version.fingerprint
            record = self._cache.record(key)
            try:
                same = record is not None and folder_digest(Path(version.path)) == record.digest
            except (OSError, Refused):
                same = False
            if not same:
                self._cache.distrust(key)

    def digest(self, version: VersionOnDisk, compute: Digest = folder_digest) -> bool:
        """See `LocalRepository.digest`. What is not as it was fetched is refused, and fetched again."""
        key = version.model, version.version
        wrong = False

        def checked(folder: Path) -> str:
            nonlocal wrong
            digest = compute(folder)
            record = self._cache.record(key)
            wrong = record is None or record.digest != digest
            return digest

        known = super().digest(version, checked)
        watched = self._watched.get(key)
        if known and wrong and watched is not None:
            self._cache.distrust(key)
            watched.problem = "the copy in the cache is not what was fetched; it is fetched anew"
        return known
