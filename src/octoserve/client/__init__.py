"""Clients of a running server: `octoserve.Client` and `octoserve.AsyncClient`.

They speak the Open Inference Protocol with binary tensors over kept HTTP connections, the fastest door that octoserve
has, and so to any server that has the binary extension. The protocol's bytes are in `wire`, what is asked when is in
`talk`; connections are theirs. Stands beside `app`; nothing here serves.
"""
