"""What the loops must know of it."""

from typing import Any

from inward.common.thinking import Method, Option, Work


def begin(model: Any, **sizes: Any) -> Work:
    from tests.fifth.work import Repeating

    return Repeating(model, **sizes)


METHOD = Method(
    name="parrot",
    begin=begin,
    options={"times": Option(1, "how often the question is said again", int)},
    unit=("times", "repetitions"),
    traces=("echo",),
)
