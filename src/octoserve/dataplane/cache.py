"""Answers that are kept: exact, bounded, behind the pick of a version. See docs/decisions/0027-response-cache.md.

A `Cache` is a model's room in this process; each queue of each of its versions has a `Kept` in it, which goes with the
queue. Single-threaded: lives on the event loop.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octoserve.core.admission import CacheLimits
from octoserve.core.clock import Clock
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array, raw_from_array
from octoserve.dataplane.call import Call
from octoserve.telemetry.metrics import Metric, Registry

log = logging.getLogger(__name__)

HIT, MISS = "hit", "miss"
OVERHEAD = 512
"""Bytes that an entry takes beside its arrays: the key, the objects around them."""
LARGEST = 1 << 20
"""Bytes of inputs up to which a request is looked up: all of them are hashed, on the event loop."""
_ELEMENT = 48
"""Bytes that an element of a BYTES array takes beside its text."""

Key = tuple[int, int, tuple[object, ...], bytes]
"""Whose it is, rows, shapes beyond them, digest of the elements."""


class Entry(NamedTuple):
    """One answer. until: of the cache's clock."""

    until: float
    size: int
    signature: Signature
    arrays: Sequence[Array]


class Caches:
    """The metrics of all models' caches; one a process."""

    def __init__(self, registry: Registry) -> None:
        self.requests = registry.counter(
            "octoserve_cache_requests_total", "Requests that were looked up in the cache.", ("model", "outcome")
        )
        self.evictions = registry.counter(
            "octoserve_cache_evictions_total", "Answers that the cache let go, and why.", ("model", "reason")
        )
        self.caches: dict[str, Cache] = {}
        registry.gauge(
            "octoserve_cache_bytes",
            "Bytes of the answers that are kept.",
            ("model",),
            lambda: {(model,): float(cache.size) for model, cache in self.caches.items()},
        )

    def cache_of(self, model: str, limits: CacheLimits, clock: Clock) -> Cache:
        """A model's room, made when its first version is there."""
        cache = self.caches.get(model)
        if cache is None:
            cache = self.caches[model] = Cache(model, limits, clock, self.requests, self.evictions)
        return cache


class Cache:
    """The room of one model: entries of all its versions, the least recently used first."""

    def __init__(self, model: str, limits: CacheLimits, clock: Clock, requests: Metric, evictions: Metric) -> None:
        self._limits = limits
        self._clock = clock
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._owners = 0
        self.size = 0
        self._hits, self._misses = requests.counter(model, HIT), requests.counter(model, MISS)
        self._gone = {reason: evictions.counter(model, reason) for reason in ("room", "age", "version")}

    def opened(self) -> Kept:
        """A part of it for one queue."""
        self._owners += 1
        return Kept(self, self._owners)

    def find(self, key: Key) -> Entry | None:
        """What is kept, and young enough."""
        entry = self._entries.get(key)
        if entry is not None and entry.until <= self._clock():
            self._drop(key, "age")
            entry = None
        if entry is None:
            self._misses.value += 1
            return None
        self._entries.move_to_end(key)
        self._hits.value += 1
        return entry

    def keep(self, key: Key, result: Result) -> None:
        """Copy an answer; nothing where it is larger than the whole room."""
        arrays = [np.array(result.array(i)) for i in range(len(result.ran.arrays))]
        size = OVERHEAD + sum(map(_held, arrays))
        if size > self._limits.bytes:
            return
        before = self._entries.pop(key, None)
        if before is not None:
            self.size -= before.size
        while self.size + size > self._limits.bytes:
            self._drop(next(iter(self._entries)), "room")
        self._entries[key] = Entry(self._clock() + self._limits.ttl, size, result.ran.signature, arrays)
        self.size += size

    def _drop(self, key: Key, reason: str) -> None:
        self.size -= self._entries.pop(key).size
        self._gone[reason].value += 1

    def leave(self, owner: int) -> None:
        """A queue is gone, and all of its answers with it."""
        for key in [key for key in self._entries if key[0] == owner]:
            self._drop(key, "version")


class Kept:
    """One queue's answers."""

    __slots__ = ("_cache", "_owner")

    def __init__(self, cache: Cache, owner: int) -> None:
        self._cache: Cache | None = cache
        self._owner = owner

    def beside(self) -> Kept | None:
        """A part for a second queue of the version: as cold as it is new."""
        return None if self._cache is None else self._cache.opened()

    def answers(self, call: Call, model: str, version: int) -> bool:
        """Set the result of a checked call if it is kept, and note on the call whether it was."""
        cache = self._cache
        if cache is None or call.nbytes > LARGEST or call.deadline <= call.arrived:
            return False
        key = call.cache_key = (self._owner, call.rows, call.group, _digest(call))
        entry = cache.find(key)
        if entry is None:
            call.cache = MISS
            return False
        call.cache = HIT
        call.result = Result(Ran(model, version, entry.signature, entry.arrays))
        return True

    def keep(self, calls: Sequence[Call]) -> None:
        """Answers that were computed for calls that had been looked up."""
        cache = self._cache
        if cache is not None:
            for call in calls:
                if call.cache_key is not None and call.result is not None:
                    try:
                        cache.keep(call.cache_key, call.result)
                    except Exception:  # of somebody's own runtime: the queue goes on without it
                        log.exception("an answer could not be kept")

    def close(self) -> None:
        """The version is no more; what is still computed for it is not kept."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.leave(self._owner)


def _digest(call: Call) -> bytes:
    """Of the elements in raw form, in the signature's order; where each input ends is told by the shapes."""
    digest = hashlib.blake2b(digest_size=32)
    for tensor in call.inputs:
        raw = tensor.raw
        digest.update(raw_from_array(tensor.array()) if raw is None else raw)
    return digest.digest()


def _held(array: Array) -> int:
    size = int(array.nbytes)
    if array.dtype.kind == "O":
        size += sum(len(item) + _ELEMENT for item in array.ravel().tolist())
    return size
