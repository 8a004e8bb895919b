"""Batch: a table, however large, scored once and completely.

`job` and `plan` are what is to be done, `journal`, `lease` and `manifest` what is durable, `sinks` what is asked of the
place where the result appears and `places` which one it is, `matching`, `conversion`, `outputs` and `scoring` the rows'
way through the model, `lanes` the threads. No printing here, no other
pattern, and nothing that listens.
"""
