"""The hot path, and the only way to a prediction: admission, routing, lease, dynamic batching, run.

No wire format, status code or socket may live here, and nothing that changes which version answers.
"""
