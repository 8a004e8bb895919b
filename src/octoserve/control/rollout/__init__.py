"""One rollout machine for blue-green, canary and shadow: pure decisions, a durable record, an audit log.

`values` (what a rollout is), `machine` (the pure step), `store` (durable, fenced), `audit` (hash chain),
`replay`. What drives it - clocks, workers, providers - stands in `patterns`.
"""
