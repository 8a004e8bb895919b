"""Drift: what a version was made with against what it gets. Profiles are made here, and reports out of counts.

What may not be here: anything on the path of a request (`dataplane.drift` counts), and any decision.
"""
