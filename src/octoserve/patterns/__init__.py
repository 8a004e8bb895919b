"""The eight ways to serve, a room each: online, batch, streaming, message_queue, edge; and shadow,
canary, blue_green, by which a new version meets production in all of them.

A room is a thin layer over the data plane (the only way to a prediction) and the control plane (the only
way to change which version answers). Rooms never import each other.
"""
