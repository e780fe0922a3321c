"""Coconut, arXiv 2412.06769, and interleaved thinking."""
