"""Faster on a CPU: packed linear layers, attention of few rows."""
