"""Which version answers: the immutable route plan and the pure, sticky pick.

Nothing here reads a clock, a socket or a file; plans are written by the control plane and read by the
data plane, one reference swap at a time.
"""
