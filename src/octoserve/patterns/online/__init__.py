"""Online serving: a supervisor and its workers, HTTP and gRPC doors over the one data plane.

Doors translate, and nothing else: what is decided about a request is decided in `dataplane`.
"""
