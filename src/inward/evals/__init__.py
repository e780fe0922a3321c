"""Scoring of models: accuracy with its interval, votes over variants, compute, benchmarks."""
