"""Batch on Spark: the driver is an octoserve as ever, executors score splits. See docs/decisions/0011-spark-engine.md.

`session` is the one way to pyspark, `shipping` what executors are sent, `task` what runs there, `mailbox` how their
answers come back, `engine` the driver's side, `frame` a DataFrame with predictions. Nothing here plans, publishes under
other rules than the local engine's, or commits.
"""
