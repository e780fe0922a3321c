"""Huginn, arXiv 2502.05171."""
