"""Sources and sinks of outside systems: tables in files, objects and databases, as record batches in and out.

Nothing here knows a model, a prediction or a job.
"""
