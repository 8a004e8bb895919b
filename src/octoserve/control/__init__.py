"""The slow path, and the only way to change which version answers.

Policy is pure: a snapshot in, the desired state out. The data plane is never imported here; the two meet
at published values (route plans, ready versions, statistics).
"""
