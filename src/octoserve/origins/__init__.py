"""Repositories that lie elsewhere: an object store, an MLflow registry; and the local cache by which they are read.

`cache.py` alone writes it. Nothing here loads a model or decides which version answers.
"""
