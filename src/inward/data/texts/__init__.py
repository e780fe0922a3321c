"""Texts: plain, packed, generated, requests."""
