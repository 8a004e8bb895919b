"""What replicas say together: who is silent by whose watch, whose word counts, and evidence that is one sum."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.rollout.replica_tables import ReplicaReport, ReplicaRow, Said, Survey
from octoserve.control.rollout.values import Phase
from octoserve.core.evidence import KEY_SAMPLE, ArmEvidence, Seen, Stratum, join_keys, unite
from octoserve.patterns.online.supervisor.replicas import (
    FORGOTTEN,
    LEADER_GONE,
    REPLICA_GONE,
    Replicas,
    Watch,
    agree,
    identity,
    seen_here,
)
from octoserve.patterns.online.supervisor.rollout_facts import stratum_of
from support.rollouts import a_rollout, after

GOOD = Said(version=3, present=True, ready=True, stable_ready=True, digest="d")
ROLLOUT = a_rollout(version=3, phase=Phase.RUNNING, step=0)


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(id: str, beat: int = 1, said: Said | None = GOOD, serves: tuple[str, ...] | None = ("m",)) -> ReplicaRow:
    return ReplicaRow(
        id=id, beat=beat, report=ReplicaReport(rollouts={} if said is None else {"r1": said}, serves=serves)
    )


def survey(*rows: ReplicaRow, leader: str = "a", token: int = 1) -> Survey:
    return Survey(token=token, leader=leader, replicas=rows)


class Heard:
    """A replica that reads the store on the beat."""

    def __init__(self, me: str = "b") -> None:
        self.time = Time()
        self.replicas = Replicas(me, self.time)

    def for_seconds(self, seconds: float, *rows: ReplicaRow, leader: str = "a", every: float = 0.25) -> Survey:
        heard = survey(*rows, leader=leader)
        for _ in range(round(seconds / every)):
            self.time.now += every
            self.replicas.heard(heard)
        return heard


def test_a_leader_without_a_word_is_gone_after_a_while():
    heard = Heard()
    heard.replicas.heard(survey(row("a")))
    last = heard.for_seconds(LEADER_GONE, row("a"))
    assert not heard.replicas.leader_is_gone(last, 0)
    last = heard.for_seconds(0.25, row("a"))
    assert heard.replicas.leader_is_gone(last, 0)
    assert not heard.replicas.leader_is_gone(last, 7), "who leads finds out by its token"
    last = heard.for_seconds(0.25, row("a", beat=2))
    assert not heard.replicas.leader_is_gone(last, 0)


def test_nobody_leads_where_the_leader_left_or_never_was():
    heard = Heard()
    heard.replicas.heard(survey(row("a"), row("b")))
    assert not heard.replicas.leader_is_gone(survey(row("a"), row("b")), 0)
    for leader in ("", "gone"):
        assert heard.replicas.leader_is_gone(survey(row("a"), leader=leader), 0)


def test_a_leader_that_starts_again_leads_at_once():
    heard = Heard("a")
    heard.replicas.heard(survey(row("a")))
    assert heard.replicas.leader_is_gone(survey(row("a")), 0)
    assert not heard.replicas.leader_is_gone(survey(row("a")), 1)


@given(st.lists(st.floats(0, 1000), max_size=20))
def test_who_could_not_look_has_seen_nobody_stand_still(gaps):
    """However long each gap is, it counts as one second at most."""
    time = Time()
    watch = Watch(time)
    watch.look({"a": 1})
    for gap in gaps:
        time.now += gap
        watch.look({"a": 1})
    assert watch.age("a") <= len(gaps) + 1e-6
    assert watch.age("a") <= sum(gaps) + 1e-6
    assert watch.age("nobody") == float("inf")
    watch.look({"a": 2})
    assert watch.age("a") == 0


def test_a_silent_replica_is_waited_for_only_so_long():
    heard = Heard()
    heard.replicas.heard(survey(row("a"), row("c", said=None)))
    behind = heard.replicas.joined(ROLLOUT, GOOD)
    assert (behind.behind, behind.ready, behind.present, behind.stable_ready) == ("replica c", False, False, False)
    for beat in range(round(REPLICA_GONE) + 1):
        heard.for_seconds(1, row("a", beat=beat), row("c", said=None))
    assert heard.replicas.joined(ROLLOUT, GOOD) == GOOD
    assert heard.replicas.silent() == []
    for beat in range(round(FORGOTTEN)):
        heard.for_seconds(1, row("a", beat=beat), row("c", said=None), every=1)
    assert heard.replicas.silent() == ["c"]


def test_who_does_not_serve_the_endpoint_has_no_part_in_it():
    heard = Heard()
    heard.replicas.heard(survey(row("a"), row("c", said=None, serves=("other",))))
    assert heard.replicas.joined(ROLLOUT, GOOD) == GOOD
    heard.replicas.heard(survey(row("a"), row("c", said=None, serves=None)))
    assert heard.replicas.joined(ROLLOUT, GOOD).behind == "replica c", "it has not looked yet"


def test_an_acknowledgement_counts_while_the_plan_is_the_same():
    """Pausing changes the record and not the plan; going back to the same plan over another one is not the same."""
    heard = Heard()
    heard.replicas.heard(survey(row("a", said=msgspec.structs.replace(GOOD, version=3))))

    def behind(rollout: Any) -> str:
        return heard.replicas.joined(rollout, GOOD).behind

    paused = after(ROLLOUT, paused="lunch")
    assert behind(ROLLOUT) == behind(paused) == ""
    promoting = after(paused, phase=Phase.PROMOTING)
    assert behind(promoting) == "replica a"
    again = after(promoting, phase=Phase.RUNNING)
    assert behind(again) == "replica a", "it asks for what version 3 asked for, and there was another one between"


def test_a_version_that_was_not_looked_at_breaks_the_row():
    heard = Heard()
    heard.replicas.heard(survey(row("a", said=msgspec.structs.replace(GOOD, version=3))))
    assert heard.replicas.joined(ROLLOUT, GOOD).behind == ""
    assert heard.replicas.joined(after(after(ROLLOUT)), GOOD).behind == "replica a"


SAID = st.builds(
    Said,
    version=st.integers(0, 5),
    behind=st.sampled_from(["", "worker 1"]),
    present=st.booleans(),
    ready=st.booleans(),
    stable_ready=st.booleans(),
    failed=st.sampled_from(["", "broken"]),
    digest=st.sampled_from(["", "d", "e"]),
)


@given(SAID, st.lists(st.none() | SAID, max_size=4), st.integers(0, 5))
def test_good_news_must_be_everybodys_and_bad_news_anybodys(mine, others, since):
    rows = [row(f"x{i}", said=said) for i, said in enumerate(others)]
    told = [Said(version=-1, behind="?") if said is None else said for said in others]
    together = agree("r1", mine, rows, since)
    for name in ("present", "ready", "stable_ready"):
        assert getattr(together, name) == all(getattr(said, name) for said in (mine, *told))
    follows = not mine.behind and all(not said.behind and said.version >= since for said in told)
    assert (together.behind == "") == follows
    differs = any(said.digest and mine.digest and said.digest != mine.digest for said in told)
    assert bool(together.failed) == (any(said.failed for said in (mine, *told)) or differs)
    assert agree("r1", mine, [], since) == mine


def seen(stratum: str, n: int, cut: str = "", keys: dict[int, str] | None = None, level: int = 0) -> Seen:
    arms = {"candidate": {"": ArmEvidence(assigned=n, attempts=n, failures=n // 2, latency={n % 7: n})}}
    return Seen(
        evidence=Stratum(endpoint="m", name=stratum, arms=arms),
        seed=stratum.partition("/")[0],
        cut=cut,
        keys=None if keys is None else (level, keys),
    )


ROLE = st.sampled_from(["candidate", "stable"])


@given(st.lists(st.lists(st.tuples(st.integers(0, 99), st.dictionaries(st.integers(0, 500), ROLE)), max_size=4)))
def test_evidence_over_replicas_is_the_evidence_over_all_their_workers(replicas):
    """However workers are spread over replicas, and whatever else they have seen."""
    roles: dict[int, str] = {}
    workers = [
        [seen("r1/0", n, keys={k: roles.setdefault(k, r) for k, r in keys.items()}) for n, keys in each]
        for each in replicas
    ]
    everybody = list(itertools.chain(*workers))
    told = [seen_here([ROLLOUT], [*each, seen("r1/9", 5), seen("r7/0", 3)]) for each in workers]
    together = stratum_of(ROLLOUT, [one["r1"] for one in told if "r1" in one])
    assert together == stratum_of(ROLLOUT, everybody)


def test_a_cut_is_told_whatever_stratum_it_came_in():
    told = seen_here([ROLLOUT], [seen("r1/9", 5, cut="it fails")])
    assert told["r1"].cut == "it fails"
    assert told["r1"].evidence == Stratum(endpoint="m", name="r1/0")
    assert seen_here([after(ROLLOUT, phase=Phase.ABORTING)], [seen("r1/0", 5)]) == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.dictionaries(st.integers(0, 10**6), ROLE)), max_size=4))
def test_joined_keys_are_a_sample_of_the_same_kind(samples):
    kept = [(level, {k: r for k, r in keys.items() if not k & ((1 << level) - 1)}) for level, keys in samples]
    level, keys = join_keys(kept)
    assert all(not key & ((1 << level) - 1) for key in keys)
    assert level == max((level for level, _ in kept), default=0)
    assert unite([join_keys(kept[:2]), join_keys(kept[2:])]) == unite(kept)


def test_joined_keys_stay_within_their_bound():
    samples = [(0, dict.fromkeys(range(n, n + 2000), "stable")) for n in (0, 2000, 4000)]
    level, keys = join_keys(samples)
    assert (level, len(keys)) == (2, 1500)
    assert len(keys) <= KEY_SAMPLE
    assert unite([(level, keys)]) == {"stable": 1500}


def test_a_replica_is_the_same_as_long_as_its_workers_live(tmp_path: Path):
    first, past = identity(tmp_path, "serve-8080", goes_on=False)
    assert past == ""
    assert identity(tmp_path, "serve-8080", goes_on=True) == (first, "")
    assert identity(tmp_path, "serve-8081", goes_on=True)[0] != first
    second, past = identity(tmp_path, "serve-8080", goes_on=False)
    assert past == first != second
    (tmp_path / "serve-8080.replica").unlink()
    assert identity(tmp_path, "serve-8080", goes_on=True)[0] not in (first, second)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PROMOTING])
def test_what_people_see_of_replicas(phase):
    heard = Heard()
    heard.replicas.heard(survey(row("a"), row("b"), row("c", said=None, serves=("other",))))
    rows = {r["id"]: r for r in heard.replicas.view(after(ROLLOUT, phase=phase))}
    assert (rows["a"]["leads"], rows["a"]["here"], rows["a"]["counts"], rows["a"]["record"]) == (True, False, True, 3)
    assert (rows["b"]["leads"], rows["b"]["here"]) == (False, True)
    assert (rows["c"]["counts"], rows["c"]["ready"]) == (False, False)
