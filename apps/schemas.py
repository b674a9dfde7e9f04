"""What may be asked of the server?  The bodies of requests, checked; and the errors in OpenAI's shape.

Names, ranges and defaults are those of OpenAI's interface. What is not known is ignored; what is known and
not supported is refused by its name unless it has no effect. Beyond OpenAI's: `learn`, `trace`, `top_k`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from apps.runs import conversation
from data import Vocabulary


def encodable(text: str) -> str:
    """JSON can hold half a character, \\ud800; UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character (a lone surrogate) stands at {error.start}") from None
    return text


def without_controls(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError("a name has no line breaks and other controls in it")
    return text


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[Text, AfterValidator(without_controls), Field(min_length=1, max_length=256,
                             description="Names a session, a running state of its own.")]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


def ids(tokens: Any) -> Any:
    """Token ids; a million of them take no time. Which of them there are is for a model to say."""
    if not isinstance(tokens, list) or set(map(type, tokens)) - {int} or (tokens and min(tokens) < 0):
        raise ValueError("token ids are whole numbers, 0 or more")
    return tokens


Ids = Annotated[list, PlainValidator(ids), WithJsonSchema(
    {"type": "array", "items": {"type": "integer", "minimum": 0}})]
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1), "min_p": (None, 0), "suffix": (None, ""),
    "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"),
    "audio": (None,), "response_format": (None, {"type": "text"}), "store": (None, False),
    "modalities": (None, ["text"]), "guided_json": (None,), "grammar": (None, ""), "prompt_logprobs": (None, False),
}


def whole(value: Any) -> Any:
    """JSON does not tell 2.0 from 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Unsupported(ValueError):
    """A field that is known and not supported."""

    def __init__(self, name: str):
        super().__init__(f"{name} is not supported here; leave it out")
        self.name = name


class Body(BaseModel):
    """A JSON object; numbers are numbers and strings are strings, nothing is converted."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None


class Asked(Body):
    """What chat and completions have in common."""

    model: str | None = None
    n: Annotated[Count, Field(ge=1, le=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, description="0, like temperature 0: the likeliest token")] | None = None
    top_k: Annotated[Count, Field(ge=0)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Count, Field(ge=-2**63, lt=2**64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    learn: bool = Field(False, description="Let the session learn from what is said.")
    trace: bool = Field(False, description="Tell surprise, movement and drift in a field `hope`.")

    @model_validator(mode="after")
    def supported(self) -> Asked:
        for name, value in (self.model_extra or {}).items():
            if name in WITHOUT_EFFECT and value not in WITHOUT_EFFECT[name]:
                raise Unsupported(name)
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 20):
                raise ValueError(f"logit_bias has the token {token[:20]!r}; tokens are whole numbers")
        if self.learn and (self.n or 1) > 1:
            raise ValueError("a session learns from one answer: n must be 1 where learn is true")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else []
        return self.content if isinstance(self.content, str) else "".join(part.text for part in parts)


def spoken(messages: list[Message], words: Vocabulary) -> str:
    """A conversation as the model was taught to read it, else as any of them can; Refused if its template refuses it.
    """
    said = [(message.role, message.text) for message in messages]
    try:
        found = words.conversation(said)
    except ValueError as error:
        raise Refused(400, str(error), param="messages") from None
    return conversation(said) if found is None else found


class ChatRequest(Asked):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None


def kind_of_prompt(prompt: Any) -> str:
    """Told by its first part, so that one reading of a long prompt is enough."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else ""
    return "texts" if isinstance(first, str) else "token lists" if isinstance(first, list) else "tokens"


Prompt = Annotated[Annotated[Text, Tag("text")]
                   | Annotated[list[Text], Field(max_length=128, fail_fast=True), Tag("texts")]
                   | Annotated[Ids, Tag("tokens")]
                   | Annotated[list[Ids], Field(max_length=128, fail_fast=True), Tag("token lists")],
                   Discriminator(kind_of_prompt)]


class CompletionRequest(Asked):
    prompt: Prompt = ""
    max_tokens: Annotated[Count, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=0)] | None = None
    logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Count | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One prompt or several, each a text or token ids."""
        one = kind_of_prompt(self.prompt) in ("text", "tokens")
        return [self.prompt] if one else self.prompt  # type: ignore[list-item, return-value]

    @model_validator(mode="after")
    def possible(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported here; leave it out")
        if self.learn and len(self.prompts) > 1:
            raise ValueError("a session learns from one text: give one prompt where learn is true")
        if self.learn and self.echo and self.logprobs is not None:
            raise ValueError("nothing moves while a text is scored: leave out learn, or echo with logprobs")
        return self


class ReadRequest(Body):
    model: str | None = None
    text: Annotated[Text, Field(min_length=1)]
    user: Name | None = None
    learn: bool = False
    stream: bool = False


class TokenizeRequest(Body):
    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(max_length=4096, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Ids


class ResetRequest(Body):
    reset: Annotated[Literal["all", "memory", "levels", "last"],
                     Field(description="What to forget; last = only the last change, which is undone.")]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class Refused(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, {"retry-after": "1"} if status in (429, 503) else {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
