"""Speed: beside the official code, beside transformers, against the limit."""
