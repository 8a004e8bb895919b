"""Judging a candidate: evidence in, verdicts out. Pure; no clock, no I/O, no random numbers.

What fetches evidence (workers, SQL, Prometheus) stands in `control.providers`; who acts on a verdict in
`control.rollout`.
"""
