"""Message queue: each message scored, its result stored once, and nothing lost.

`loop` is one micro-batch after another; `ledger` is what is persisted before a run, `scoring` the way through the
model, `outcome` what becomes of failures, `pace` how large a micro-batch is, `promise` what a source and a sink give.
`worker` is the process that runs the loop, `supervisor` the one that starts it again. No client of a broker or a
database, no printing, no other pattern.
"""
