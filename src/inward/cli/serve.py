"""`inward serve`: models for any client that speaks OpenAI's format, and for puzzles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inward.cli.options import UsageError, _go


def serve(words: list[str]) -> int:
    """Serve models."""
    return _go(Serve, "serve", words)


@dataclass(kw_only=True)
class Serve:
    """Serve models over HTTP in OpenAI's format (extra "serve"); see docs/serve.md."""

    models: tuple[str, ...]
    """shipped names, folders of runs or models, or NAME=FOLDER"""
    host: str = "127.0.0.1"
    """where to listen; other machines reach it only elsewhere than here, and then need a key"""
    port: int = 8000
    """0: any free one"""
    api_key: tuple[str, ...] = ()
    """keys that requests may bring; better as the environment variable INWARD_API_KEY"""
    batch_size: int | None = None
    """rows of a forward at most, each model's own default"""
    threads: int | None = None
    """threads of torch; with several workers each model of each has so many, by default the cores
    divided by the workers"""
    workers: int = 1
    """processes that share the port, each with the models of its own"""
    reasoning: Literal["reasoning_content", "reasoning", "off"] = "reasoning_content"
    """field under which thoughts are told; off: only to requests that ask for them"""
    max_tokens: int = 4096
    """tokens that a request may ask for"""
    default_tokens: int = 512
    """tokens of an answer where neither request nor model says how many"""
    max_prompt_tokens: int = 8192
    """tokens, or cells, of a question"""
    max_steps: int = 256
    """steps of thinking that a request may ask for"""
    max_rows: int = 32
    """choices, votes, or views that a request may ask for"""
    max_waiting: int = 128
    """requests that wait for a row; one more is answered 429"""
    max_seconds: float = 600.0
    """that an answer may take; then it is what there is"""
    max_body: int = 1 << 20
    """bytes of a request"""
    grace: float = 20.0
    """seconds that answers may go on after SIGTERM"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """what is told on standard error"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.serve.limits import Limits
        from inward.serve.server import Address, Settings, key_of_environment
        from inward.serve.server import serve as run_server
        from inward.viz.page import playground_html, playground_policy

        if not self.models:
            raise UsageError("no model given; name at least one, such as sudoku6")
        keys = (*self.api_key, *key_of_environment())
        place = Address(self.host, self.port, keys)
        limits = Limits(
            max_tokens=self.max_tokens,
            default_tokens=min(self.default_tokens, self.max_tokens),
            max_prompt_tokens=self.max_prompt_tokens,
            max_steps=self.max_steps,
            max_rows=self.max_rows,
            max_waiting=self.max_waiting,
            max_seconds=self.max_seconds,
            max_body=self.max_body,
        )
        settings = Settings(
            self.models,
            limits,
            batch_size=self.batch_size,
            threads=self.threads,
            thoughts_as="reasoning" if self.reasoning == "reasoning" else "reasoning_content",
            reasoning=self.reasoning != "off",
            grace=self.grace,
            workers=self.workers,
            log_level=self.log_level,
            playground=(playground_html(), playground_policy()),
        )
        run_server(place, settings)
        return 0
