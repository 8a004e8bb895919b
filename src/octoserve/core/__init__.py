"""The vocabulary: tensors, signatures, errors, deadlines, messages between processes.

Holds values and pure functions that every other layer speaks in. No I/O may live here, and no
import beyond the standard library, numpy and msgspec.
"""
