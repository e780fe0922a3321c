"""What the routes take. A field that is not here is refused by name; so is a value that no model
here can keep (`errors.NOT_OFFERED` says why)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

WORDS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Of `reasoning_effort`."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, StringConstraints(max_length=1 << 20)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Words = Annotated[list[Word], Field(max_length=16)]
Cells = Annotated[
    list[Annotated[int, Field(ge=0, le=1 << 16)]], Field(min_length=1, max_length=4096)
]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0.0, le=0.0)]
Option = bool | int | float | Text | Annotated[list[int], Field(max_length=256)]


class Strict(BaseModel):
    """No field that is not named, no text for a number, no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OwnWay(Strict):
    """What goes beyond OpenAI's format.

    effort: in the method's own unit, or low, medium, high.
    options: of the method (docs/ask.md), those that can be written as JSON.
    """

    effort: Annotated[int, Field(ge=1, le=1 << 31)] | Literal["low", "medium", "high"] | None = None
    options: Annotated[dict[Word, Option | None], Field(max_length=32)] = {}


class AskingBody(Strict):
    """What all routes that ask a model share."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    stream: bool | None = None
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] | None = None
    reasoning_effort: Effort | Share | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    include_reasoning: bool | None = None
    inward: OwnWay | None = None
    user: Text | None = None
    metadata: Annotated[dict[Word, Text], Field(max_length=16)] | None = None
    store: Literal[False] | None = None


class Drawing(AskingBody):
    """How tokens are drawn, and when a text ends."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    stop: Word | Words | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: Text
    annotations: Nothing | None = None
    logprobs: Nothing | None = None


class Spoken(Strict):
    """Something with a content of text."""

    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    @property
    def text(self) -> str:
        """Its content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatMessage(Spoken):
    """One message. Thoughts of earlier answers may come along and are not read again."""

    role: Literal["system", "developer", "user", "assistant"]
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    refusal: Literal[None] = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None
    function_call: Literal[None] = None
    audio: Literal[None] = None


class StreamOptions(Strict):
    """include_usage: a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Strict):
    """The only form of an answer."""

    type: Literal["text"]


class Prediction(Spoken):
    """A guess at the answer, which is verified: right parts of it come faster, none of it changes a
    word."""

    type: Literal["content"]


class ChatBody(Drawing):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    reasoning_control: bool | None = None
    prediction: Prediction | None = None
    response_format: TextFormat | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None


class CompletionBody(Drawing):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=128)]
    max_tokens: Count | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[None] = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class ResponseMessage(Spoken):
    """A message of `input`; answers of earlier responses may be sent back as they came."""

    type: Literal["message"] | None = None
    id: Word | None = None
    status: Word | None = None
    role: Literal["system", "developer", "user", "assistant"]
    phase: Literal[None] = None


class ReasoningPart(Strict):
    """A part of thoughts that were told."""

    type: Literal["reasoning_text", "summary_text"]
    text: Text


class ReasoningInput(Strict):
    """Thoughts of an earlier response; they are not read again."""

    type: Literal["reasoning"]
    id: Word | None = None
    status: Word | None = None
    summary: Annotated[list[ReasoningPart], Field(max_length=256)] = []
    content: Annotated[list[ReasoningPart], Field(max_length=256)] | None = None
    encrypted_content: Literal[None] = None


class ReasoningWish(Strict):
    """How much is thought."""

    effort: Effort | Share | None = None
    summary: Literal[None] = None


class ResponseText(Strict):
    """The form of the answer."""

    format: TextFormat | None = None


class ResponseBody(Strict):
    """POST /v1/responses"""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    input: (
        Text
        | Annotated[list[ResponseMessage | ReasoningInput], Field(min_length=1, max_length=1024)]
    )
    instructions: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    reasoning: ReasoningWish | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    include_reasoning: bool | None = None
    inward: OwnWay | None = None
    text: ResponseText | None = None
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] | None = None
    metadata: Annotated[dict[Word, Text], Field(max_length=16)] | None = None
    user: Text | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    previous_response_id: Literal[None] = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    truncation: Literal["disabled"] | None = None


class SolveBody(AskingBody):
    """POST /v1/solve

    puzzle: digits and dots of a Sudoku, lines of '# SG' of a maze, or its cells as numbers, in one
        row or in rows.
    """

    puzzle: Text | Cells | Annotated[list[Cells], Field(min_length=1, max_length=256)]


class EventsBody(Drawing):
    """POST /v1/inward/events

    question: a text, a puzzle as text, or the messages of a chat.
    trace: send the trace with the end: true, or names of what it shall hold beside the record.
    """

    question: Text | Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_tokens: Count | None = None
    trace: bool | Annotated[list[Word], Field(min_length=1, max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None


class ControlBody(Strict):
    """POST /v1/chat/completions/control

    id: of the answer under way, as its first chunk names it.
    """

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    action: Literal["reasoning_end", "cancel"]


class ErrorTold(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """Every reply with a status from 400 on."""

    error: ErrorTold


def words_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop words as a tuple."""
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def chat_of(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Messages as chat templates take them; what OpenAI calls developer they call system."""
    roles: Mapping[str, str] = {"developer": "system"}
    return [{"role": str(roles.get(m.role, m.role)), "content": m.text} for m in messages]
