"""What can be seen of a running service: metrics and logs, at no cost that the hot path can feel."""
