"""The ground: what at least two methods use."""
