"""Shadow: a candidate that gets copies of the traffic, and whose answers nobody gets.

What is here stands behind the data plane's mirror: the durable store of pairs that people can query, and the report
that says what changed, for whom, with the worst disagreements. What may not be here: anything on the path of a
request, and any decision about a rollout (that is `control`'s).
"""
