"""Clients of a running server: `octoserve.Client` and `octoserve.AsyncClient`.

They speak the Open Inference Protocol with binary tensors over kept HTTP connections, the fastest door that octoserve
has, and so to any server that has the binary extension. What they know of the protocol is in `wire`; connections are
theirs. Stands beside `app`; nothing here serves.
"""
