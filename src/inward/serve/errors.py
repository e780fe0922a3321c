"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Of a status; others below 500 are invalid requests, from 500 on "server_error"."""


class ApiError(Exception):
    """What a request gets instead of an answer.

    param: the field that is to blame. headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as the client gets it."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, usual)
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def reply(self) -> JSONResponse:
        """The error as a reply."""
        return JSONResponse(self.body(), self.status, self.headers)


def refused(message: str, param: str | None = None) -> ApiError:
    """400: something that cannot be kept."""
    return ApiError(400, message, param=param, code="unsupported" if param else None)


NOT_OFFERED = {
    "tools": "no model here calls tools; leave tools out",
    "tool_choice": "no model here calls tools; leave tool_choice out, or say 'none'",
    "tool_calls": "no model here calls tools; messages hold texts",
    "functions": "no model here calls functions; leave functions out",
    "function_call": "no model here calls functions; leave function_call out",
    "response_format": "answers are text; response_format can only be {'type': 'text'}",
    "presence_penalty": "presence_penalty is not offered; 0 is taken",
    "frequency_penalty": "frequency_penalty is not offered; 0 is taken",
    "logit_bias": "logit_bias is not offered",
    "top_logprobs": "only the token said has a log-probability here; top_logprobs can only be 0",
    "previous_response_id": "nothing is stored here; send the whole conversation as input",
    "store": "nothing is stored here; store can only be false",
    "background": "answers come while you wait; background can only be false",
    "best_of": "best_of is not offered; n gives several choices",
    "suffix": "a text is continued at its end alone; suffix is not offered",
    "echo": "the prompt is not repeated; echo can only be false",
}
"""Fields of OpenAI's that no model here can keep: why, and what to do."""


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for a body that is not as its route wants it; names the first field that is wrong."""
    first = errors[0]
    if first.get("type") == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('msg')}", code="invalid_json")
    loc = [part for part in first.get("loc", ()) if part != "body" and not _is_branch(part)]
    where = ".".join(map(str, loc)) or "the body"
    known = next((part for part in loc if part in NOT_OFFERED), None)
    if known is not None:
        return refused(NOT_OFFERED[str(known)], str(known))
    if first.get("type") == "extra_forbidden":
        return ApiError(
            400, f"there is no field {where!r} here", param=where, code="unknown_parameter"
        )
    param = str(loc[0]) if loc else None
    return ApiError(400, f"{where}: {first.get('msg')}", param=param, code="invalid_value")


def _is_branch(part: Any) -> bool:
    """Pydantic names the branch of a union that it tried: no field has such a name."""
    return (isinstance(part, str) and not part.isidentifier()) or part in _BRANCHES


_BRANCHES = {"str", "int", "float", "bool"}
