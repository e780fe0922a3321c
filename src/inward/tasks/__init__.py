"""One small file per benchmark: how to read, show, transform and score it."""
