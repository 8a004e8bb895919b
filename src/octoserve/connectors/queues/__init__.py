"""Brokers that messages come from, and places that results go to. `protocol` says what each of them offers.

One file an outside system, which alone knows that system's client and imports it when it is opened. Nothing here knows
a model, an attempt or when a message is done: that is `patterns.message_queue`.
"""
