"""The doors beside V2, by the first segment of their paths. Each is imported when a request first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from octoserve.core.errors import NotFound
from octoserve.patterns.online.http.coding import Inflater
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.routes import Family, Route
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import MultiModel

if TYPE_CHECKING:
    from octoserve.patterns.online.http.body_door import BodyDoor


class Families:
    """The other doors of one worker, those of `doors` among them; see `ServeSettings.doors`."""

    def __init__(
        self, service: Service, inflater: Inflater, doors: Collection[str], multi_model: MultiModel | None = None
    ) -> None:
        self.service = service
        self._multi_model = multi_model
        self._inflater = inflater
        self.doors = frozenset(doors)
        self._bodies: BodyDoor | None = None
        self._opened: dict[str, Family] = {}

    def find(self, head: Head, parts: list[str]) -> Route:
        """The route of a path that is not V2's. Raises NotFound."""
        if self._multi_model is not None and parts[0] == "models" and len(parts) <= 2:
            return self._sagemaker(self._multi_model).find(head, parts)
        invoked = len(parts) == 3 and parts[0] == "models" and parts[2] == "invoke"
        found = _FIRST.get("invocations" if invoked else parts[0])
        if found is None:
            raise NotFound(f"no such path: {head.path}; the Open Inference Protocol starts at /v2")
        door, opening = found
        if door not in self.doors:
            raise NotFound(f"no such path: {head.path}; its door, {door}, is switched off (`doors` in the spec)")
        family = self._opened.get(door)
        if family is None:
            family = self._opened[door] = opening(self)
        return family.find(head, parts)

    def _sagemaker(self, settings: MultiModel) -> Family:
        family = self._opened.get("sagemaker")
        if family is None:
            from octoserve.patterns.online.http.sagemaker_door import SagemakerDoor
            from octoserve.patterns.online.sagemaker_models import SagemakerModels

            family = self._opened["sagemaker"] = SagemakerDoor(self.service, SagemakerModels(settings))
        return family

    def bodies(self) -> BodyDoor:
        """What the families share."""
        if self._bodies is None:
            from octoserve.patterns.online.http.body_door import BodyDoor

            self._bodies = BodyDoor(self.service, self._inflater)
        return self._bodies


def _v1(families: Families) -> Family:
    from octoserve.patterns.online.http.v1_door import V1Door

    return V1Door(families.bodies())


def _predict(families: Families) -> Family:
    from octoserve.patterns.online.http.predict_door import PredictDoor

    return PredictDoor(families.bodies())


def _mlflow(families: Families) -> Family:
    from octoserve.patterns.online.http.mlflow_door import MlflowDoor

    return MlflowDoor(families.bodies())


def _openapi(families: Families) -> Family:
    from octoserve.patterns.online.http.openapi_door import OpenApiDoor

    return OpenApiDoor(families.service, families.doors)


_FIRST: dict[str, tuple[str, Callable[[Families], Family]]] = {
    "": ("v1", _v1),
    "v1": ("v1", _v1),
    **dict.fromkeys(("invocations", "ping", "health", "version", "execution-parameters"), ("mlflow", _mlflow)),
    "predict": ("predict", _predict),
    "models": ("predict", _predict),
    "openapi.json": ("openapi", _openapi),
    "docs": ("openapi", _openapi),
}
