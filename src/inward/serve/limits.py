"""What a server takes, and what one request may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; a request beyond one is refused with its name, before any work."""

    max_tokens: int = 4096
    """tokens that a request may ask for"""
    default_tokens: int = 512
    """tokens of an answer where neither the request nor the model says how many"""
    max_prompt_tokens: int = 8192
    """tokens, or cells, of a question"""
    max_steps: int = 256
    """steps of thinking that a request may ask for: of each kind that its method has"""
    max_rows: int = 32
    """rows that a request may ask for: choices, prompts, votes, views times rollouts"""
    max_waiting: int = 128
    """rows that wait for a place; one more is answered 429"""
    max_seconds: float = 600.0
    """from a request's arrival to its end; what there is by then is the answer"""
    max_body: int = 1 << 20
    """bytes of a request"""
    stall_seconds: float = 60.0
    """that a reader may leave a stream unread; then it is ended"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_waiting" else 1
            if not least <= value < float("inf"):
                raise ValueError(f"{field.name} is {value}, must be at least {least} and finite")
        if self.default_tokens > self.max_tokens:
            raise ValueError(
                f"default_tokens is {self.default_tokens}, above max_tokens {self.max_tokens}"
            )
