"""Where rollouts are stored."""

from support.rollout_places import new_place, place, server

__all__ = ["new_place", "place", "server"]
