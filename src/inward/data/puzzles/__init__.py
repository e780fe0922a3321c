"""Puzzles: grids of tokens, generators, symmetries, solvers."""
