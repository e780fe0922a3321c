"""Options of a test's matrix without those that would do nothing beside the others, and are refused
then (tests/test_options.py)."""

from dataclasses import replace
from typing import Any

from inward.common.thinking import Method, Request


def acting(method: Method, model: Any, request: Request) -> Request:
    """The request without its idle options."""
    idle = method.idle(model, request)
    return replace(request, own={k: v for k, v in request.own.items() if k not in idle})
