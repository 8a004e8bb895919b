"""The comparison of a candidate with the stable version, made from pairs of answers, for people and for programs.

Whoever has pairs uses it: the shadow pattern's store, a batch with a shadow's columns. Nothing here reads a store or a
table, and nothing here decides.
"""
