"""The ground: what at least two methods use."""

IGNORE = -100
"""Label of what a loss skips (torch's default ignore_index)."""
