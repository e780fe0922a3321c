"""Puzzle sets, text records, their generators, symmetries and training sources."""
