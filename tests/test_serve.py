"""The server, as clients see it: OpenAI's shapes, streams, sessions that learn, many at once, errors."""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import hope
from config import Config
from hope import Hope

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")

import httpx
import uvicorn

from apps import engine, evaluate, serve
from apps.answers import spelled
from apps.app import create
from apps.engine import Engine
from apps.gate import is_ours
from apps.runs import Place, Run, conversation, predict, read
from apps.sessions import Sessions

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("default")  # those of other people's packages are not ours to mend
SMALL = Config(width=16, layers=1, heads=2, segment=16, hidden=16, chunks=(1, 2), memory_chunk=8, projection_chunk=4)
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", 10))  # per operation, right ones and wrong ones
HELLO = [{"role": "user", "content": "hello"}]


def read_to_end(run: Run, text: bytes) -> Place:
    return list(read(run.model, Place(last=None), text))[-1].place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    hope.save(folder / "checkpoint.npz", Hope(SMALL, np.random.default_rng(0)))
    return Run.open(folder)


class Running(uvicorn.Server):
    """A real server on a free port, in a thread."""

    def __init__(self, run: Run, folder: Path, rows: int = 32, waiting: int = 128, **options):
        self.engine = Engine(run, Sessions(folder, run.fingerprint, start=run.words.start), rows, waiting)
        self.app = create([self.engine], **options)
        super().__init__(uvicorn.Config(self.app, port=0, log_level="critical", timeout_graceful_shutdown=5))

    async def startup(self, sockets=None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        while not self.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=300, limits=httpx.Limits(max_connections=64))
        return self

    def __exit__(self, *_):
        self.client.close()
        self.engine.close()
        self.should_exit = True
        self.thread.join()

    def post(self, path: str, headers=None, **body):
        return self.client.post(path, json=body, headers=headers)

    def ok(self, path: str, headers=None, **body):
        answer = self.post(path, headers, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, path: str, **body) -> list:
        """The events of a stream; the last is [DONE]."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with Running(run, tmp_path_factory.mktemp("sessions"), longest=200) as running:
        yield running


# OpenAI's shapes --------------------------------------------------------------------------------------------


def test_models_lists_the_run_which_is_meant_by_its_name_or_by_none(server):
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["small"]
    assert server.client.get("/v1/models/small").json()["object"] == "model"
    for name in ({}, {"model": None}, {"model": "small"}):
        assert server.ok("/v1/completions", prompt="a", max_tokens=1, **name)["model"] == "small"
    for answer in (server.client.get("/v1/models/gpt-9"), server.post("/v1/completions", prompt="a", model="gpt-9"),
                   server.post("/v1/chat/completions", messages=HELLO, model="gpt-9", stream=True)):
        error = answer.json()["error"]
        assert answer.status_code == 404 and error["code"] == "model_not_found" and "'small'" in error["message"]


def test_a_chat_answer_has_openai_s_shape(server):
    found = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=5, seed=2)
    choice, = found["choices"]
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    read = len(conversation([("user", "hello")]))
    assert found["usage"] == {"prompt_tokens": read, "completion_tokens": 5, "total_tokens": read + 5}


def test_a_stream_is_role_content_reason_and_usage_only_when_asked_for(server):
    asked = {"messages": HELLO, "max_completion_tokens": 30, "max_tokens": 3, "seed": 1}
    whole = server.ok("/v1/chat/completions", **asked)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        first, *middle = server.stream("/v1/chat/completions", **asked, **options)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        if options:
            assert middle.pop() | {"created": 0, "id": ""} == {
                "id": "", "created": 0, "object": "chat.completion.chunk", "model": "small", "choices": [],
                "usage": whole["usage"]}
        assert all(("usage" in chunk) == bool(options) for chunk in [first, *middle])
        *contents, last = [chunk["choices"][0] for chunk in middle]
        assert "".join(choice["delta"]["content"] for choice in contents) == whole["choices"][0]["message"]["content"]
        assert all(choice["finish_reason"] is None for choice in contents)
        assert last["delta"] == {} and last["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_seed_repeats_an_answer_and_temperature_zero_needs_none(server):
    asked = {"prompt": "once", "max_tokens": 20}
    texts = [server.ok("/v1/completions", **asked, **more)["choices"][0]["text"] for more in
             ({"seed": 5}, {"seed": 5}, {"seed": -5}, {"temperature": 0}, {"temperature": 0, "seed": 9},
              {"top_p": 1e-9}, {"top_p": 0}, {"temperature": 5e-324}, {"temperature": 1e-9, "top_p": 0.5})]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[3:])) == 1


def test_penalties_and_biases_are_added_to_the_logits(server, run):
    asked = {"prompt": "x", "max_tokens": 40, "temperature": 0, "logprobs": 0}

    def tokens(**more):
        return server.ok("/v1/completions", **asked, **more)["choices"][0]["logprobs"]["tokens"]
    plain = tokens()
    assert len(set(tokens(presence_penalty=2))) > len(set(plain))
    assert len(set(tokens(frequency_penalty=2))) > len(set(plain))
    assert set(tokens(logit_bias={"65": 100})) == {"A"}
    assert tokens(presence_penalty=0, frequency_penalty=0.0, logit_bias={}) == plain
    once = tokens(logit_bias={"65": 3.0, "66": 2.0}, frequency_penalty=-2)
    place, counts, expected = read_to_end(run, b"x"), np.zeros(256), []
    bias = np.zeros(256)
    bias[65:67] = 3, 2
    for _ in range(40):
        (logits, state), = predict(run.model, [place])
        token = int(np.argmax(logits + bias + 2 * counts))
        counts[token] += 1
        expected.append(spelled(token))
        place = Place(state, token)
    assert once == expected


def test_prompts_times_n_choices_come_in_order_and_differ_by_seed(server):
    asked = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 9, "seed": 1, "echo": True}
    found = server.ok("/v1/completions", **asked)["choices"]
    assert [choice["index"] for choice in found] == [0, 1, 2, 3]
    assert [choice["text"][:2] for choice in found] == ["ab", "ab", "cd", "cd"]
    assert found[0]["text"] != found[1]["text"]
    streamed = [""] * 4
    for chunk in server.stream("/v1/completions", **asked):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == [choice["text"] for choice in found]


def test_a_stop_is_not_part_of_the_text(server):
    asked = {"prompt": "x", "max_tokens": 60, "seed": 3}
    text = server.ok("/v1/completions", **asked)["choices"][0]["text"]
    stop = next(text[i:i + 2] for i in range(9, len(text)) if "\ufffd" not in text[i:i + 2])
    for stops in (stop, ["never there", stop]):
        choice, = server.ok("/v1/completions", **asked, stop=stops)["choices"]
        assert choice["text"] == text[:text.index(stop)] and choice["finish_reason"] == "stop"
        assert "".join(chunk["choices"][0]["text"] for chunk in
                       server.stream("/v1/completions", **asked, stop=stops)) == choice["text"]


def test_echo_with_logprobs_scores_a_text_as_the_model_does_and_token_ids_are_prompts(server, run):
    text = "scored: é€"
    tokens = list(text.encode())
    by_text, by_ids = (server.ok("/v1/completions", prompt=prompt, echo=True, logprobs=3, max_tokens=1, temperature=0)
                       for prompt in (text, tokens))
    found = by_text["choices"][0]["logprobs"]
    assert found == by_ids["choices"][0]["logprobs"] and set(found) == {
        "tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(column) for column in found.values()} == {len(tokens) + 1}
    logits = run.model(np.array([tokens]))[0].data[0].astype(np.float64)
    expected = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    expected = expected[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(found["token_logprobs"][1:-1], expected, rtol=1e-4)
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
    assert found["tokens"][:2] == ["s", "c"] and found["tokens"][8] == "bytes:\\xc3"
    assert found["text_offset"][:11] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9]
    none = server.ok("/v1/completions", prompt=text, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert none["text"] == text and none["logprobs"]["token_logprobs"] == found["token_logprobs"][:-1]


def test_chat_logprobs_spell_the_content(server):
    choice, = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=9, seed=2, logprobs=True,
                        top_logprobs=2)["choices"]
    tokens = choice["logprobs"]["content"]
    spelled = bytes(byte for token in tokens for byte in token["bytes"])
    assert spelled.decode("utf-8", "replace") == choice["message"]["content"]
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)


def test_no_character_is_broken_by_a_stream(server, monkeypatch):
    word, given = "é€𝄞".encode(), []
    monkeypatch.setattr(hope, "sample", lambda *_: given.append(0) or word[(len(given) - 1) % len(word)])
    parts = [chunk["choices"][0]["text"] for chunk in server.stream("/v1/completions", prompt="x", max_tokens=20)]
    assert [part for part in parts if part] == ["é", "€", "𝄞", "é", "€", "𝄞", "é"]


def test_tokens_there_and_back(server):
    info = server.client.get("/tokenizer_info").json()
    assert server.ok("/tokenize", prompt=info["eos_token"])["tokens"] == [0]
    assert server.ok("/tokenize", prompt="é")["tokens"] == [195, 169]
    assert server.ok("/detokenize", tokens=[195, 169, 33])["prompt"] == "é!"
    assert bytes(server.ok("/tokenize", messages=HELLO)["tokens"]).decode() == "user: hello\nassistant: "


# errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path, body, param", [
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": "hot"}, "temperature"),
    ("/v1/chat/completions", {"messages": HELLO, "temperature": 3}, "temperature"),
    ("/v1/chat/completions", {"messages": HELLO, "stream": True, "top_p": -0.1}, "top_p"),
    ("/v1/chat/completions", {"messages": HELLO, "stream": True, "tools": [{"type": "function"}]}, "tools"),
    ("/v1/chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
    ("/v1/completions", {"prompt": "x", "logit_bias": {"300": 1}}, None),
    ("/v1/completions", {"prompt": "x", "frequency_penalty": 3}, "frequency_penalty"),
    ("/v1/completions", {"prompt": "x", "user": ""}, "user"),
    ("/v1/completions", {"prompt": "x", "user": "a\nb"}, "user"),
    ("/v1/chat/completions", {"messages": HELLO, "learn": True}, "user"),
    ("/v1/chat/completions", {"messages": HELLO, "learn": True, "user": "a", "n": 2}, None),
    ("/v1/completions", {"prompt": [1, 2, 256]}, "prompt"),
    ("/v1/completions", {"prompt": "\ud800"}, "prompt"),
    ("/v1/completions", {"prompt": "x", "n": 0}, "n"),
    ("/v1/completions", {"prompt": "x", "stop": ""}, "stop"),
    ("/v1/completions", {"prompt": "x", "learn": True, "user": "a", "echo": True, "logprobs": 1}, None),
    ("/v1/read", {"text": ""}, "text"),
])
def test_bad_input_is_refused_with_400_before_a_stream_begins(server, path, body, param):
    answer = server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"] == param and error["message"]


@pytest.mark.parametrize(("content", "message", "param"), [
    ('{"prompt": "é",'.encode(),
     "the body is not JSON: Expecting property name enclosed in double quotes at character 15", None),
    (b"", "the body is empty; it must be a JSON object, see GET /docs", None),
    (json.dumps({"prompt": "a", "stop": ["b"] * 17}).encode(),
     "stop: List should have at most 16 items after validation, not 17", "stop")])
def test_a_body_that_is_refused_is_told_why(server, content, message, param):
    answer = server.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (error["message"], error["param"]) == (message, param)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"prompt": 1e999}', b"[" * 5000,
                                     b'{"seed": ' + b"9" * 9999])
def test_what_is_no_json_object_is_refused(server, content):
    answer = server.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_other_errors_have_the_same_shape(server):
    for answer, status in ((server.client.get("/nowhere"), 404), (server.client.put("/v1/models"), 405),
                           (server.client.delete("/v1/sessions/nobody"), 404),
                           (server.client.get("/v1/sessions/nobody"), 404),
                           (server.post("/v1/sessions/nobody", reset="all"), 404)):
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "GET" in server.client.put("/v1/models").headers["allow"]


def test_a_body_over_the_limit_is_refused_whether_or_not_it_tells_its_length(run, tmp_path):
    with Running(run, tmp_path, body_limit=1000) as server:
        assert server.post("/v1/completions", prompt="x" * 2000).status_code == 413
        pieces = iter([b'{"prompt": "', b"x" * 2000, b'"}'])
        answer = server.client.post("/v1/completions", content=pieces, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_a_key_is_asked_for_everywhere_but_at_the_page(run, tmp_path):
    with Running(run, tmp_path, keys=["open sesame", "another"]) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "open sesame"}):
            answer = server.client.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert server.client.get("/v1/models", headers={"authorization": "Bearer open sesame"}).status_code == 200
        assert server.client.get("/").status_code == 200


def test_every_key_has_sessions_of_its_own(run, tmp_path):
    with Running(run, tmp_path, keys=["one", "two"]) as server:
        ann, bob = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        server.ok("/v1/read", ann, text="hello", user="notes", learn=True)
        assert server.client.get("/v1/sessions", headers=bob).json()["data"] == []
        assert server.client.get("/v1/sessions/notes", headers=bob).status_code == 404
        assert server.client.delete("/v1/sessions/notes", headers=bob).status_code == 404
        server.ok("/v1/read", bob, text="hello there", user="notes", learn=True)
        assert [server.client.get("/v1/sessions/notes", headers=its).json()["learned"] for its in (ann, bob)] == [5, 11]


@pytest.mark.parametrize("host, ours", [
    ("localhost", True), ("127.0.0.1:80", True), ("[::1]:8000", True), ("[::1]", True), ("10.2.3.4:8000", True),
    ("hope.localhost", True), ("Models.Example.org:1", True), ("evil.example", False), ("", False),
    ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("models.example.org.evil.example", False)])
def test_a_name_that_is_not_this_server_s_is_refused(run, tmp_path, host, ours):
    assert is_ours(host, ["models.example.org"]) is ours and is_ours(host, ["*"])


def test_what_a_page_elsewhere_sends_changes_nothing(server):
    """A page whose name leads to this machine, and one of another origin, with what needs no question beforehand."""
    body = json.dumps({"text": "hello", "user": "victim", "learn": True})
    for headers, status in (({"host": "evil.example", "content-type": "application/json"}, 421),
                            ({"origin": "http://evil.example", "content-type": "application/json"}, 403),
                            ({"origin": "null", "content-type": "application/json"}, 403),
                            ({"origin": "http://evil.example"}, 403), ({}, 415), ({"content-type": "text/plain"}, 415)):
        answer = server.client.post("/v1/read", content=body, headers=headers)
        assert answer.status_code == status and answer.json()["error"]["message"], headers
    assert server.client.delete("/v1/sessions/eve", headers={"origin": "http://evil.example"}).status_code == 403
    assert "error" in session(server, "victim")
    own = {"origin": server.url, "content-type": "application/json; charset=utf-8"}
    assert server.client.post("/v1/read", content=body.replace("true", "false"), headers=own).status_code == 200


@pytest.mark.parametrize("path, use", [
    ("/v1/responses", "/v1/chat/completions"), ("/completions", "/v1/completions"), ("/v1/model", "/v1/models"),
    ("/chat/completions", "/v1/chat/completions"), ("/v1/embeddings", "no embeddings"), ("/api/chat", "/v1/chat"),
    ("/v1/chat/completion", "/v1/chat/completions"), ("/wp-login.php", "GET /docs")])
def test_a_path_that_is_not_there_names_the_one_to_use(server, path, use):
    answer = server.post(path, input="hello")
    assert answer.status_code == 404 and use in answer.json()["error"]["message"]


def test_head_is_get_without_a_body_and_every_answer_has_headers_that_protect(server):
    for path in ("/", "/health", "/ready", "/docs", "/metrics", "/v1/models", "/page/page.js", "/nowhere"):
        got, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert int(head.headers["content-length"]) == len(got.content) or path == "/metrics"  # which has counted it
        for answer in (got, head):
            assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-request-id"]
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in server.client.get("/").headers["content-security-policy"]
    asked = server.client.get("/health", headers={"x-request-id": "trace-7/a"})
    assert asked.headers["x-request-id"] == "trace-7/a"
    assert server.client.get("/health", headers={"x-request-id": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_the_reference_has_every_path_and_field(server):
    page = server.client.get("/docs").text
    for path, methods in server.client.get("/openapi.json").json()["paths"].items():
        assert all(f"<code>{method.upper()} {path}</code>" in page for method in methods)
    for words in ("frequency_penalty", "from -2 to 2", "curl http", "all, memory, levels, last", "Let the session"):
        assert words in page


def test_counts_are_in_the_format_of_prometheus(run, tmp_path):
    line = re.compile(r"(hope_\w+?)(?:_bucket|_sum|_count)?(?:\{\w+=\"[^\"]*\"(?:,\w+=\"[^\"]*\")*\})? [-+.\de]+")
    with Running(run, tmp_path) as server:
        server.ok("/v1/completions", prompt="abc", max_tokens=4, logit_bias={"65": 100})
        server.ok("/v1/read", text="hello", user="ann", learn=True)
        server.client.get("/v1/sessions/ann")
        server.client.get("/nowhere")
        server.client.request("BREW", "/nowhere")
        found = server.client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", found.text, re.M))
    assert all(line.fullmatch(row)[1] in kinds for row in found.text.splitlines() if not row.startswith("#"))
    for row in ('hope_drawn_tokens_total{model="small"} 4', 'hope_read_tokens_total{model="small"} 8',
                'hope_lessons_total{model="small"} 1', 'hope_sessions{model="small",where="disk"} 1', "hope_ready 1",
                'hope_requests_total{method="POST",path="/v1/completions",status="200"} 1',
                'hope_requests_total{method="GET",path="/v1/sessions/{name}",status="200"} 1',
                'hope_requests_total{method="GET",path="other",status="404"} 1',
                'hope_requests_total{method="other",path="other",status="404"} 1',
                "hope_request_seconds_count 5", 'hope_request_seconds_bucket{le="+Inf"} 5'):
        assert row in found.text.splitlines(), row


def test_it_is_not_ready_while_sessions_cannot_be_saved_and_says_so_where_one_learned(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    with Running(run, tmp_path) as server:
        assert server.client.get("/ready").json() == {"status": "ready"}
        with monkeypatch.context() as patch:
            patch.setattr(hope, "write_npz", full)
            assert server.ok("/v1/read", text="hello", user="ann", learn=True)["saved"] is False
            told = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=2, user="ann", learn=True)["hope"]
            assert told == {"learned": True, "saved": False}
            answer = server.client.get("/ready")
            assert answer.status_code == 503 and "No space left" in answer.json()["error"]["message"]
            assert "hope_ready 0" in server.client.get("/metrics").text
            assert server.client.get("/health").status_code == 200
        learned = session(server, "ann")["learned"]
        assert "saved" not in server.ok("/v1/read", text="hello", user="bob", learn=True)
        end = time.monotonic() + 3000
        while server.client.get("/ready").status_code != 200:  # until it was tried once more
            assert time.monotonic() < end
            time.sleep(0.1)
    again = Sessions(tmp_path, run.fingerprint)
    assert again.get(("", "ann")).learned == learned > 5


def test_no_request_holds_the_others_for_long(run, tmp_path):
    """However large it is: at a stretch the event loop's thread computes for less than it takes this machine, now, to
    add up four million numbers.
    """
    def much() -> float:
        started = time.thread_time()
        sum(range(4_000_000))
        return time.thread_time() - started
    held: dict[str, float] = {}
    longest: dict[str, float] = {}
    large = {f"{len(body['prompt'])} {' '.join(body)}": body for body in (
        {"prompt": "x" * 20_000, "echo": True, "logprobs": 2, "max_tokens": 0},
        {"prompt": "x" * 20_000, "echo": True, "logprobs": 0, "max_tokens": 0, "stream": True},
        {"prompt": [65] * 200_000, "n": 99}, {"prompt": [[65] * 9] * 20_000}, {"prompt": ["a"] * 200_000})}
    now = ""

    async def watch() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.002)
            longest[now] = max(longest.get(now, 0.0), time.thread_time() - before)
            before = time.thread_time()
    with Running(run, tmp_path, longest=4) as server:
        server.ok("/v1/completions", prompt="warm", max_tokens=1)
        asyncio.run_coroutine_threadsafe(watch(), server.loop)
        asked = [(name, lambda body=body: server.post("/v1/completions", **body)) for name, body in large.items()]
        asked += [("tokenize", lambda: server.ok("/tokenize", prompt="x" * 900_000)),
                  ("detokenize", lambda: server.ok("/detokenize", tokens=[65] * 200_000)),
                  ("read", lambda: server.ok("/v1/read", text="x" * 20_000)),
                  ("messages", lambda: server.post("/v1/chat/completions", messages=HELLO * 4000, n=99))]
        for now, ask in asked:
            for _ in range(3):  # another process may have had the processor's caches meanwhile
                longest[now], before = 0.0, much()
                ask()
                time.sleep(0.01)
                held[now] = longest[now] / max(before, much())
                if held[now] < 1:
                    break
    assert len(held) == 9 and 0 < max(held.values()) < 1, held


@pytest.mark.parametrize("origin, allowed", [("http://localhost:3000", True), ("https://chat.example.org", True),
                                             ("https://evil.example.org", False), ("http://localhost.evil.org", False)])
def test_pages_of_this_machine_and_of_named_origins_may_ask_and_no_others(run, tmp_path, origin, allowed):
    with Running(run, tmp_path, keys=["k"], origins=["https://chat.example.org"]) as server:
        asked = {"origin": origin, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization,content-type,x-stainless-os"}
        before = server.client.options("/v1/chat/completions", headers=asked)
        after = server.post("/v1/chat/completions", {"origin": origin}, messages=HELLO, max_tokens=1)
        assert (before.headers.get("access-control-allow-origin") == origin) is allowed
        assert (before.status_code == 200) is allowed
        assert (after.headers.get("access-control-allow-origin") == origin) is allowed  # on a 401, too
        if allowed:
            assert "x-stainless-os" in before.headers["access-control-allow-headers"]


def test_a_full_queue_says_429_and_when_to_come_again(run, tmp_path):
    with Running(run, tmp_path, rows=1, waiting=1) as server, ThreadPoolExecutor(8) as pool:
        asked = {"prompt": "x", "max_tokens": 60}
        found = list(pool.map(lambda _: server.post("/v1/completions", **asked), range(8)))
        assert {answer.status_code for answer in found} == {200, 429}
        refused = next(answer for answer in found if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1" and refused.json()["error"]["type"] == "rate_limit_error"


def test_a_model_that_breaks_down_is_an_error_and_the_next_request_is_served(server, monkeypatch):
    asked = {"prompt": "x", "max_tokens": 3}
    with monkeypatch.context() as patch:
        patch.setattr(hope, "sample", lambda *_: 1 / 0)
        answer = server.post("/v1/completions", **asked)
        assert answer.status_code == 500 and "division by zero" in answer.json()["error"]["message"]
        assert "division by zero" in server.stream("/v1/completions", **asked)[-1]["error"]["message"]
    assert server.post("/v1/completions", **asked).status_code == 200


# sessions ---------------------------------------------------------------------------------------------------


def session(server, name: str) -> dict:
    return server.client.get(f"/v1/sessions/{name}").json()


def test_learning_is_off_unless_asked_for(server):
    server.ok("/v1/chat/completions", messages=HELLO, max_tokens=3, user="quiet")
    assert "error" in session(server, "quiet")
    server.ok("/v1/read", text="hello", user="quiet")
    assert "error" in session(server, "quiet")


def test_a_session_learns_what_is_new_in_a_conversation_and_only_once(server):
    said = list(HELLO)
    for turn in range(2):
        found = server.ok("/v1/chat/completions", messages=said, max_tokens=6, seed=1, user="ann", learn=True,
                          temperature=0)
        assert found["hope"] == {"learned": True}
        said += [found["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        whole = conversation((message["role"], message["content"]) for message in said[:2 * turn + 1])
        answered = whole + found["choices"][0]["message"]["content"]
        expected = len(answered.replace("\ufffd", "?").encode())  # which stands for one byte that is no text
        assert session(server, "ann")["learned"] == expected  # each byte once, over both turns


def test_a_retry_never_learns_twice(server):
    asked = {"messages": HELLO, "max_tokens": 4, "seed": 1, "user": "bob", "learn": True}
    server.ok("/v1/chat/completions", **asked)
    before = session(server, "bob")
    again = server.ok("/v1/chat/completions", {"x-stainless-retry-count": "1"}, **asked)
    assert again["hope"] == {"learned": False} and session(server, "bob")["learned"] == before["learned"]
    for _ in range(2):
        server.ok("/v1/chat/completions", {"idempotency-key": "abc"}, **asked)
    assert session(server, "bob")["learned"] == 2 * before["learned"]


def test_states_are_isolated_and_frozen_while_scoring(server):
    score = {"prompt": "hello there", "echo": True, "logprobs": 0, "max_tokens": 0}
    fresh = server.ok("/v1/completions", **score)["choices"][0]["logprobs"]["token_logprobs"]
    server.ok("/v1/read", text="hello there " * 9, user="carl", learn=True)
    before = session(server, "carl")
    taught = server.ok("/v1/completions", {"x-session": "carl"}, **score)["choices"][0]["logprobs"]["token_logprobs"]
    assert server.ok("/v1/completions", user="carl", **score)["choices"][0]["logprobs"]["token_logprobs"] == taught
    assert np.mean(taught[1:]) > np.mean(fresh[1:])
    assert session(server, "carl") | {"used": 0} == before | {"used": 0}  # and yet it was used
    other = server.ok("/v1/completions", user="dora", **score)["choices"][0]["logprobs"]["token_logprobs"]
    assert other[1:] != taught[1:]
    assert server.ok("/v1/completions", **score)["choices"][0]["logprobs"]["token_logprobs"] == fresh


@pytest.mark.parametrize("name", ["Jane Doe", "José", "名前", "a/b?c#d", "../../etc/passwd", ".", "x" * 256])
def test_a_session_may_have_any_name(server, name):
    server.ok("/v1/read", text="hello", user=name, learn=True)
    path = "/v1/sessions/" + quote(name, safe="").replace(".", "%2E")
    assert server.client.get(path).json()["id"] == name and server.client.get(path).json()["learned"] == 5
    if name.isprintable() and len(name.encode()) < 100:  # what a header can carry
        server.ok("/v1/read", {"x-session": name.encode()}, text=" there", learn=True)
        assert server.client.get(path).json()["learned"] == 11
    assert server.client.delete(path).json() == {"id": name, "object": "session", "deleted": True}


def test_sessions_are_listed_reset_and_deleted(server):
    server.ok("/v1/read", text="hello there " * 9, user="eve", learn=True)
    assert "eve" in [found["id"] for found in server.client.get("/v1/sessions").json()["data"]]
    assert session(server, "eve")["drift"]["level 1"] > 0
    server.ok("/v1/sessions/eve", reset="levels")
    drift = session(server, "eve")["drift"]
    assert drift["level 1"] == 0 and drift["memory"] > 0
    server.ok("/v1/sessions/eve", reset="memory")
    assert server.ok("/v1/chat/completions", messages=HELLO, max_tokens=2, user="eve", learn=True)["hope"]["learned"]
    server.ok("/v1/sessions/eve", reset="all")
    assert session(server, "eve")["bytes"] == 0
    assert server.client.delete("/v1/sessions/eve").json()["deleted"] is True
    assert "error" in session(server, "eve")


def test_a_client_that_leaves_in_mid_stream_teaches_nothing_and_frees_its_place(server):
    asked = {"messages": HELLO, "max_tokens": 200, "user": "fay", "learn": True, "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 300
    while server.client.get("/health").json()["running"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "error" in session(server, "fay")


def test_sessions_come_back_after_a_restart(run, tmp_path):
    with Running(run, tmp_path) as server:
        server.ok("/v1/read", text="remember", user="gil", learn=True)
        before = session(server, "gil")
    with Running(run, tmp_path) as server:
        assert session(server, "gil") == before


def test_reading_tells_surprise_and_movement_piece_by_piece(server):
    text = "surprise " * 9
    whole = server.ok("/v1/read", text=text, learn=True, user="hal")
    assert whole["bytes"] == len(text) and whole["learned"]
    assert [piece["moved"] for piece in whole["pieces"]] == [[1], [1, 2], [1]]
    *pieces, end = server.stream("/v1/read", text=text)
    assert bytes(byte for piece in pieces for byte in piece["bytes"]).decode() == text
    assert end["bits_per_byte"] == pytest.approx(np.mean([bit for piece in pieces for bit in piece["bits"]]))


# many at once -----------------------------------------------------------------------------------------------


def test_32_clients_at_once_get_to_the_bit_what_they_get_one_by_one(server):
    server.ok("/v1/read", text="some have a state of their own", user="ida", learn=True)

    def ask(i: int):
        body = {"prompt": "abc" * (i % 7 + 1), "max_tokens": 10 + i % 5, "seed": i, "logprobs": 2,
                **({"user": "ida"} if i % 8 == 0 else {})}
        if i % 3:
            return server.ok("/v1/completions", **body)["choices"]
        chunks = [chunk["choices"][0] for chunk in server.stream("/v1/completions", **body)]
        return "".join(chunk["text"] for chunk in chunks), [chunk["logprobs"] for chunk in chunks]
    alone = [ask(i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == alone


def test_sessions_that_learn_at_once_learn_what_they_learn_one_by_one(server):
    def teach(name: str, text: str):
        server.ok("/v1/read", text=text, user=name, learn=True)
        return session(server, name)["drift"]
    alone = [teach(f"one-{i}", f"text number {i} " * 3) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: teach(f"all-{i}", f"text number {i} " * 3), range(6))) == alone
        list(pool.map(lambda i: teach("shared", "the same " * 3), range(6)))
    assert session(server, "shared")["learned"] == 6 * len("the same " * 3)  # one after the other, none lost


def test_one_slow_client_does_not_stall_the_others(server):
    address = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", "max_tokens": 200, "stream": True}).encode()
    with contextlib.closing(socket.create_connection((address[0], int(address[1])))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                     b"content-length: %d\r\n\r\n%b" % (len(body), body))
        for _ in range(3):  # it never reads
            assert server.ok("/v1/completions", prompt="y", max_tokens=5)["usage"]["completion_tokens"] <= 5


# the process ------------------------------------------------------------------------------------------------


class Process:
    """`python -m apps.serve` as a process, on a free port."""

    def __init__(self, run: Run, *flags: object, **more: str):
        env = {**os.environ, "HOPE_API_KEY": "", **more}
        command = [sys.executable, "-m", "apps.serve", str(run.folder), "--port", "0", *map(str, flags)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)

    def __enter__(self):
        said = ""
        while not (found := re.search(r"https?://\S+(?=  )", said)):  # kernels may have to be compiled first
            line = self.process.stdout.readline().decode()
            assert line, said
            said += line
        self.url = found[0]
        self.client = httpx.Client(base_url=self.url, timeout=300)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.kill()
        self.process.communicate()

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; returns the process's code and what it said since its first line."""
        self.process.send_signal(number)
        out = self.process.communicate(timeout=300)[0].decode()
        return self.process.returncode, out


def lines_on_any_processor(out: str) -> list[str]:
    """What a server says, without what going alone costs where batches would change bits."""
    return [line for line in out.splitlines() if "every request is computed alone" not in line]


def test_several_runs_at_one_server_are_told_by_name_and_have_sessions_apart(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    hope.save(other / "checkpoint.npz", Hope(SMALL, np.random.default_rng(1)))
    with Process(run, other, "--session-folder", tmp_path / "s", "--api-key", "k") as server:
        server.client.headers["authorization"] = "Bearer k"

        def score(**more):
            body = {"prompt": "hello there", "echo": True, "logprobs": 0, "max_tokens": 0, **more}
            answer = server.client.post("/v1/completions", json=body).json()
            return answer["model"], answer["choices"][0]["logprobs"]["token_logprobs"]
        assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["small", "other"]
        assert server.client.get("/v1/models/other").json()["id"] == "other"
        assert score() == score(model="small") and score(model="other")[0] == "other"
        assert score()[1] != score(model="other")[1]
        refused = server.client.post("/v1/completions", json={"prompt": "a", "model": "third"})
        assert refused.status_code == 404 and "'small', 'other'" in refused.json()["error"]["message"]
        for model, text in (("small", "one"), ("other", "three")):
            asked = {"text": text, "user": "ann", "learn": True, "model": model}
            assert server.client.post("/v1/read", json=asked).json()["learned"]
        learned = [server.client.get("/v1/sessions/ann", params={"model": model}).json()["learned"]
                   for model in ("small", "other", "")]
        assert learned == [3, 5, 3]
        assert server.client.delete("/v1/sessions/ann?model=other").json()["deleted"]
        listed = [server.client.get(f"/v1/sessions?model={model}").json()["data"] for model in ("small", "other")]
        assert [len(found) for found in listed] == [1, 0]
        assert 'hope_lessons_total{model="other"} 1' in server.client.get("/metrics").text
        assert server.end(signal.SIGTERM)[0] == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"small", "other"}


def test_where_a_batch_would_change_bits_the_price_of_going_alone_is_said(run, tmp_path, monkeypatch):
    with Process(run, "--session-folder", tmp_path / "a", OPENBLAS_CORETYPE="HASWELL") as server:
        padded = server.client.get("/v1/models").json()["data"][0]["hope"]["batch_padding"]
        said = server.end(signal.SIGTERM)[1]
    assert (padded == 0) is bool(re.search(r"computed alone; eight at once then take [\d.]+ times", said))
    monkeypatch.setattr(engine, "padding", lambda model: 0)
    assert Engine(run, Sessions(tmp_path / "b", run.fingerprint), fast=True).padding == 1
    assert Engine(run, Sessions(tmp_path / "c", run.fingerprint)).padding == 0


def test_two_runs_of_one_name_are_refused(run, capsys):
    assert serve.main([str(run.folder), str(run.folder), "--port", "0"]) == 2
    assert "two runs are called 'small'" in capsys.readouterr().err


def test_the_process_ends_cleanly_in_mid_stream_keeps_sessions_and_logs_no_contents(run):
    with Process(run, "--max-tokens", 100000) as server:
        asked = {"text": "confidential", "user": "kim / 7", "learn": True}
        server.client.post("/v1/read", json=asked).raise_for_status()
        assert server.client.get("/v1/sessions/kim%20%2F%207").json()["learned"] == len("confidential")
        asked = {"prompt": "confidential", "max_tokens": 100000, "stream": True, "temperature": 0,
                 "stop": ["confidential"]}  # the likeliest bytes go round in circles, and never end
        with server.client.stream("POST", "/v1/completions", json=asked) as answer:
            lines, number = answer.iter_lines(), answer.headers["x-request-id"]
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert "shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
        code, out = server.end(0)
    assert code == 0 and "confidential" not in out and "kim" not in out and "Traceback" not in out
    assert re.search(rf"^\S+ {number} 127.0.0.1 POST /v1/completions 200 \d+ ms \d+ bytes$", out, re.M)
    assert "GET /v1/sessions/{name} 200" in out and out.splitlines()[-1].startswith("ended; sessions kept in")
    found = Sessions(run.folder / "sessions" / "serve", run.fingerprint).get(("", "kim / 7"))
    assert found is not None and found.learned == len("confidential")


def test_ctrl_c_ends_it_with_one_line(run, tmp_path):
    with Process(run, "--session-folder", tmp_path) as server:
        server.client.get("/health")
        code, out = server.end(signal.SIGINT)
    assert code == 130 and lines_on_any_processor(out)[1:] == [f"stopped; sessions kept in {tmp_path}: 0"]


def test_what_is_said_to_be_learned_survives_kill_9(run, tmp_path):
    with Process(run, "--session-folder", tmp_path, "--quiet") as server:
        for text in ("one", "and two"):
            assert server.client.post("/v1/read", json={"text": text, "user": "ann", "learn": True}).json()["learned"]
        assert lines_on_any_processor(server.end(signal.SIGKILL)[1]) == []
    assert Sessions(tmp_path, run.fingerprint).get(("", "ann")).learned == len("oneand two")


def test_two_servers_do_not_share_the_sessions_of_a_run(run, tmp_path):
    with Process(run, "--session-folder", tmp_path):
        second = subprocess.run([sys.executable, "-m", "apps.serve", run.folder, "--port", "0", "--session-folder",
                                 tmp_path], cwd=ROOT, capture_output=True, timeout=300)
    assert second.returncode == 2 and second.stderr.decode().count("\n") == 1
    assert "another process is serving sessions in" in second.stderr.decode()


def test_it_is_served_by_tls(run, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("no openssl is installed to make a certificate")
    pem = [tmp_path / "key.pem", tmp_path / "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", pem[0], "-out", pem[1], "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with Process(run, "--session-folder", tmp_path / "s", "--ssl-keyfile", pem[0], "--ssl-certfile", pem[1]) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(pem[1]))
        assert httpx.get(server.url + "/ready", verify=trusted).json() == {"status": "ready"}


@pytest.mark.parametrize(("flags", "message"), [
    (["--rows", "0"], "--rows: 0 is less than 1"), (["--port", "99999"], "99999 is not between 0 and 65,535"),
    (["--rows", "many"], "invalid whole number value: 'many'"), (["--host", "0.0.0.0"], "no key is asked for"),
    (["--host", "::"], "give --api-key KEY, or --open"),
    (["--host", "no.such.host.invalid", "--open"], "cannot listen"),
    (["--api-key-file", "/nowhere"], "/nowhere cannot be read"), (["--api-key", "ä"], "no header can carry"),
    (["--ssl-keyfile", __file__], "needs --ssl-certfile"), (["--ssl-certfile", __file__], "in PEM"),
    (["--session-folder", "/proc/no"], "choose another --session-folder"), (["--prot", "1"], "unrecognized"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_served_is_said_in_one_line(run, tmp_path, capsys, flags, message):
    folder = [] if "--session-folder" in flags else ["--session-folder", str(tmp_path)]
    port = [] if "--port" in flags else ["--port", "0"]
    assert serve.main([str(run.folder), *folder, *port, *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_keys_come_from_flags_a_file_and_a_variable(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("# of the school\nthree\n four\n\n", encoding="utf-8")
    monkeypatch.setenv("HOPE_API_KEY", "five")
    monkeypatch.setenv("MINE", "six")
    flags = ["--host", "0.0.0.0", "--api-key", "one", "--api-key", "two", "--api-key-file", str(tmp_path / "keys")]
    for again in ([], ["--api-key", "one"]):
        given = serve.parser().parse_args([*flags, *again])
        assert serve.keys(given) == ["one", "two", "three", "four", "five"]
    assert serve.keys(serve.parser().parse_args(["--api-key-env", "MINE"])) == ["six"]
    monkeypatch.delenv("HOPE_API_KEY")
    assert serve.keys(serve.parser().parse_args([])) == serve.keys(serve.parser().parse_args(["--host", "::1"])) == []


def test_a_key_that_is_asked_for_and_empty_is_not_no_key(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n", encoding="utf-8")
    for flags, where in ((["--api-key", ""], "--api-key"), (["--api-key-file", str(tmp_path / "keys")], "keys")):
        with pytest.raises(ValueError, match=f"{where} holds no key"):
            serve.keys(serve.parser().parse_args(flags))


@pytest.mark.parametrize("given", ["-1", "nan", "inf"])
def test_the_days_of_a_session_are_a_number_or_0_for_never(given):
    with pytest.raises(ValueError, match="0 for never"):
        serve.parser().parse_args(["--session-days", given])
    assert serve.parser().parse_args(["--session-days", "0"]).session_days == 0


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:"),
                                         ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://")])
def test_the_address_that_is_shown_is_one_that_a_browser_opens(host, shown):
    try:
        listening = serve.listen(host, 0)
    except ValueError:
        pytest.skip(f"this machine has no {host}")
    with contextlib.closing(listening):
        assert serve.address_of(listening, False).startswith(shown)
        with pytest.raises(ValueError, match=r"cannot listen at .*in use"):
            serve.listen(host, listening.getsockname()[1])


def test_help_needs_none_of_the_server_s_packages(tmp_path):
    for name in ("uvicorn", "fastapi", "pydantic", "starlette"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')", encoding="utf-8")
    for flags, code, words in ((["--help"], 0, "--allowed-host"), ([], 2, "pip install -r apps/requirements.txt")):
        found = subprocess.run([sys.executable, "-m", "apps.serve", *flags], cwd=ROOT, capture_output=True,
                               env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=300)
        assert found.returncode == code and words in (found.stdout + found.stderr).decode()
        assert b"Traceback" not in found.stderr


@pytest.mark.slow
def test_memory_stays_flat_under_full_load(run, tmp_path):
    """A soak, the long one with SOAK_SECONDS=200: 64 clients chat, stream, learn, leave; memory must not grow."""
    from apps.runs import process_bytes
    seconds = float(os.environ.get("SOAK_SECONDS", 30))
    with Running(run, tmp_path, rows=16, waiting=128) as server, ThreadPoolExecutor(64) as pool:
        end, served, sizes = time.monotonic() + seconds, [], []

        def client(i: int) -> None:
            body = {"messages": HELLO, "max_tokens": 20, "user": f"user-{i % 8}", "learn": i % 4 == 0,
                    "trace": i % 3 == 0}
            while time.monotonic() < end:
                if i % 5 == 0:  # asks for much and leaves
                    with server.client.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 200,
                                                                                    "stream": True}) as answer:
                        next(answer.iter_lines())
                    served.append(200)
                elif i % 2:
                    served.append(200 if server.stream("/v1/chat/completions", **body) else 0)
                else:
                    served.append(server.post("/v1/chat/completions", **body).status_code)
        clients = [pool.submit(client, i) for i in range(64)]
        while time.monotonic() < end:
            time.sleep(seconds / 20)
            sizes.append(process_bytes() / 1e6)
        for one in clients:
            one.result()
    print(f"{len(served)} requests in {seconds:.0f} s, MB: {', '.join(f'{size:.0f}' for size in sizes)}")
    assert set(served) == {200} and max(sizes[10:]) < min(sizes[5:10]) * 1.1 + 5


def test_the_real_openai_client_is_served(server):
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install -r apps/requirements.txt")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["small"]
        asked = {"model": "small", "messages": HELLO, "max_completion_tokens": 12, "seed": 2}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage == whole.usage
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert streamed == whole.choices[0].message.content
        found = client.completions.create(model="small", prompt=[[1, 2], [3]], echo=True, logprobs=1, max_tokens=0)
        assert [len(choice.logprobs.tokens) for choice in found.choices] == [2, 1]
        learned = client.chat.completions.create(**asked, user="lee", extra_body={"learn": True})
        assert learned.hope["learned"]
        with pytest.raises(openai.BadRequestError, match="top_p"):
            client.chat.completions.create(**asked, top_p=7)


def test_the_evaluation_harness_finds_what_multiple_choice_finds(run, server, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -r apps/requirements.txt")
    rng, questions = np.random.default_rng(0), tmp_path / "questions.jsonl"

    def words(most: int) -> str:
        return bytes(rng.integers(97, 123, rng.integers(1, most))).decode()
    lines = [{"context": words(40), "choices": [f" {words(9)}" for _ in range(4)], "answer": i % 4} for i in range(60)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(f"""
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""", encoding="utf-8")
    reached = f"model=small,base_url={server.url}/v1/completions,tokenizer_backend=remote,tokenized_requests=True"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", reached,
                           "--tasks", "local_choice", "--include_path", tmp_path, "--output_path", tmp_path / "out"],
                          env=os.environ | offline, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(next((tmp_path / "out").rglob("*.json")).read_text(encoding="utf-8"))["results"]["local_choice"]
    assert evaluate.main(["multiple-choice", "--run", str(run.folder), "--questions", str(questions), "--quiet",
                          "--out", str(tmp_path / "ours")]) == 0
    ours = json.loads((tmp_path / "ours" / "multiple-choice.json").read_text(encoding="utf-8"))["results"]
    assert 0 < ours["plain"] < 1 and ours["plain"] != ours["per byte"]
    assert [theirs["acc,none"], theirs["acc_norm,none"]] == pytest.approx([ours["plain"], ours["per byte"]])


def test_the_interface_keeps_what_its_own_description_promises(run, tmp_path):
    """Requests made up from /openapi.json, right and wrong ones: every answer is one that is described there."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: "
                                                              "pip install -r apps/requirements.txt")
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.specs.openapi.checks import positive_data_acceptance
    kept = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))
    answered: list[int] = []
    refusals = [*range(400, 500)]  # 413 too: some of what is made up is longer than a body may be
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": refusals}}})
    with Running(run, tmp_path, longest=3, body_limit=500) as server:
        described = schemathesis.openapi.from_url(server.url + "/openapi.json", config=config)
        for operation in described.get_all_operations():
            for mode in schemathesis.GenerationMode:
                @given(case=operation.ok().as_strategy(generation_mode=mode))
                def holds(case):
                    # rules about several fields at once (learning needs a session) are not in the description
                    answer = case.call_and_validate(base_url=server.url, timeout=300,
                                                    excluded_checks=[positive_data_acceptance])
                    answered.append(answer.status_code)
                with contextlib.suppress(Unsatisfiable):  # what takes no input cannot be asked wrongly
                    kept(holds)()
    assert len(answered) > 12 * EXAMPLES
    assert answered.count(200) > len(answered) / 8 and answered.count(400) > len(answered) / 8
