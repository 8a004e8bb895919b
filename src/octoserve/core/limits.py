"""Bounds of what one request may hold, the same behind every codec."""

MAX_TENSORS = 1024
"""Inputs, or requested outputs, of one request."""
MAX_RANK = 64
"""Dimensions of one tensor: NumPy's own bound, and what multiplying a shape's dimensions may cost."""
