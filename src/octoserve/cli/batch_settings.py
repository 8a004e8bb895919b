"""What was asked on the command line or in the spec's section `batch`, as the pattern takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.core.errors import SettingsError

if TYPE_CHECKING:
    from octoserve.patterns.batch.job import RunSettings
    from octoserve.patterns.batch.run import Wish
    from octoserve.spec import BatchSection


class Asked:
    """A job, or the run of one that a sink was begun with."""

    def __init__(self, section: BatchSection, repository: str, trust: Sequence[str] = ()) -> None:
        from octoserve.patterns.batch.asking import run_of

        self.section = section
        self.repository = repository
        self.trust = tuple(trust) or None
        """What the settings file says of it; None leaves it to OCTOSERVE_TRUST."""
        self.sink = str(section.sink)
        self.state_dir = section.state_dir
        self.metrics_port = section.metrics_port
        self.metrics_host = section.metrics_host
        self.run: RunSettings = run_of(section)

    def wish(self) -> Wish:
        """Raises SettingsError if it is not said what to score."""
        from octoserve.patterns.batch.asking import wish_of

        return wish_of(self.section, self.repository)


def asked(flags: Mapping[str, Any], repository: str | None, spec: str | None, *, resume: bool = False) -> Asked:
    """Flags over the spec's section. Flags whose value is None were not given. Raises SettingsError."""
    from octoserve import spec as settings
    from octoserve.spec.batch import split_words

    values: dict[str, Any] = settings.read(Path(spec)) if spec else {}
    if repository is not None:
        values["repository"] = repository
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    if isinstance(given.get("source"), list):
        given["source"] = [path for word in given["source"] for path in split_words(word)]
    section = values.get("batch") or {}
    if isinstance(section, dict):
        if resume:  # the job's own stays, unless somebody says another now
            section = {name: value for name, value in section.items() if name != "error_budget"}
        values["batch"] = {**section, **given}
    try:
        checked = settings.check(values, {"batch": f"{spec}: batch" if spec else "batch"}, spec or "")
    except SettingsError as error:
        raise SettingsError(_as_flags(str(error), given, spec)) from None
    return Asked(checked.batch, str(checked.repository), checked.trust)


def tolerance_of(spec: str | None, model: str) -> Mapping[str, Mapping[str, float]]:
    """What counts as equal: `rollout.tolerance` of a settings file, the model's own if it has one.

    Raises SettingsError.
    """
    from octoserve import spec as settings

    if not spec:
        return {}
    checked = settings.check({"repository": ".", **settings.read(Path(spec))}, {}, spec)
    own = checked.models.get(model)
    return (own.rollout if own is not None and own.rollout is not None else checked.rollout).tolerance


def _as_flags(text: str, given: Mapping[str, Any], spec: str | None) -> str:
    """Name a flag where a flag was wrong."""
    place = f"{spec}: batch." if spec else "batch."
    for name in given:
        text = text.replace(f"{place}{name}:", f"--{name.replace('_', '-')}:")
    return text
