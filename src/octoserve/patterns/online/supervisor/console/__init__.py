"""The console: a page on the admin port that a person on call keeps open.

It renders what the admin API says and asks the admin API to act; it decides nothing and holds no state.
No rollout logic may live here, and nothing that is loaded from another host.
"""
