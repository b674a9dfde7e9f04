"""What may be asked of the server?  The bodies of requests, checked; and the errors in OpenAI's shape.

Names, ranges and defaults are those of OpenAI's interface. What is not known is ignored; what is known and
not supported is refused unless it has no effect. Beyond OpenAI's: `learn`, `trace`, `top_k`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from apps.runs import conversation


def encodable(text: str) -> str:
    """JSON can hold half a character, \\ud800; UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character (a lone surrogate) stands at {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@:+=-]{0,127}$",
                            description="Names a session, a running state of its own.")]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Byte = Annotated[int, Field(ge=0, le=255)]
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
    "suffix": (None, ""), "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"),
    "audio": (None,), "response_format": (None, {"type": "text"}),
}


def whole(value: Any) -> Any:
    """JSON does not tell 2.0 from 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole)]


class Body(BaseModel):
    """A JSON object; numbers are numbers and strings are strings, nothing is converted."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(Body):
    include_usage: bool | None = None


class Asked(Body):
    """What chat and completions have in common."""

    model: str | None = None
    n: Annotated[Count, Field(ge=1, le=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Count, Field(ge=0)] | None = None
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
                raise ValueError(f"{name} is not supported here; leave it out")
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


def spoken(messages: list[Message]) -> str:
    return conversation((message.role, message.text) for message in messages)


class ChatRequest(Asked):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None


class CompletionRequest(Asked):
    prompt: Text | list[Text] | list[Byte] | list[list[Byte]] = ""
    max_tokens: Annotated[Count, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=0)] | None = None
    logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Count | None = None

    @property
    def prompts(self) -> list[bytes]:
        """One prompt or several, as bytes."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt.encode()]
        if all(isinstance(item, int) for item in prompt):
            return [bytes(prompt)]
        return [item.encode() if isinstance(item, str) else bytes(item) for item in prompt]

    @model_validator(mode="after")
    def possible(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported here; leave it out")
        if len(self.prompts) > 128:
            raise ValueError(f"{len(self.prompts)} prompts are too many for one request; 128 may be given")
        if self.learn and len(self.prompts) > 1:
            raise ValueError("a session learns from one text: give one prompt where learn is true")
        if self.learn and self.echo and self.logprobs is not None:
            raise ValueError("nothing moves while a text is scored: leave out learn, or echo with logprobs")
        return self


class ReadRequest(Body):
    text: Annotated[Text, Field(min_length=1)]
    user: Name | None = None
    learn: bool = False
    stream: bool = False


class TokenizeRequest(Body):
    prompt: Text | None = None
    messages: list[Message] | None = None

    @model_validator(mode="after")
    def one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    tokens: list[Byte]


class ResetRequest(Body):
    reset: Literal["all", "memory", "levels"]


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
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, {"retry-after": "1"} if status in (429, 503) else {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
