"""One module a model format, each behind the `Runtime` protocol of `runtimes.protocol`.

A runtime loads an artifact and runs it. No routing, batching, validation of requests or wire format may
live here. Third-party model libraries are imported in the one module that needs them, when it loads.
"""
