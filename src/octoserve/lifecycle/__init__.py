"""Versions in memory: their states, the leases on them, and the manager that loads and unloads.

Policy is pure and stands beside the effectful manager. Which version *answers* is not decided here
(that is a route plan), and nothing here knows a protocol or a process.
"""
