"""A caller: who asks, and what they may do with which model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octoserve.core.errors import Forbidden

INFER, READ, MANAGE = "infer", "read", "manage"
RIGHTS = (INFER, READ, MANAGE)
"""On models. Each includes to see the model: metadata, readiness, configuration, statistics. READ is that alone."""
SEE = ""
"""What any right includes."""

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
ROLES = (VIEWER, OPERATOR, ADMIN)
"""On the admin API, each with what the ones before it may."""

CONTROLLER, ADMIN_API, DATA_DOOR = "controller", "admin API", "a data door"
RESERVED = frozenset({CONTROLLER, ADMIN_API, DATA_DOOR})
"""Who did it, in the audit log, where nobody has a name of their own; so nobody may be called that."""
NEVER = float("inf")
_REMEMBERED = 1024


class Caller:
    """models: names, in which `*` stands for any letters; until: wall clock seconds, from when on it is nobody."""

    __slots__ = ("_known", "_models", "may", "name", "role", "until")

    def __init__(
        self,
        name: str,
        models: Sequence[str] = (),
        may: Sequence[str] = (INFER,),
        role: str = "",
        until: float = NEVER,
    ) -> None:
        self.name = name
        self.may = frozenset(may)
        self.role = role
        self.until = until
        self._models = _pattern(models)
        self._known: dict[str, bool] = {}

    def sees(self, model: str) -> bool:
        """Whether they have any right on this model."""
        known = self._known.get(model)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[model] = bool(self.may) and self._models.fullmatch(model) is not None
        return known

    def check(self, right: str, model: str) -> None:
        """Raises Forbidden, the same for a model that is not there."""
        if not self.sees(model):
            raise Forbidden(f"{self.name!r} has no right on model {model!r}")
        if right and right not in self.may:
            raise Forbidden(f"{self.name!r} may not {right} model {model!r}; may: {', '.join(sorted(self.may))}")

    def reaches(self, role: str) -> bool:
        """Whether their role on the admin API is this one or a higher one."""
        return self.role in ROLES and ROLES.index(self.role) >= ROLES.index(role)


def _pattern(models: Sequence[str]) -> re.Pattern[str]:
    one = ("".join(".*" if part == "*" else re.escape(part) for part in re.split(r"(\*)", name)) for name in models)
    return re.compile("|".join(one) if models else "(?!)", re.DOTALL)
