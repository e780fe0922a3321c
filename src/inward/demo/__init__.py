"""The demo: shipped models at work."""
