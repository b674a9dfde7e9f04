"""The server, as clients see it: OpenAI's shapes, streams, sessions that learn, many at once, errors."""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hope
from config import Config
from hope import Hope

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")

import httpx
import uvicorn

from apps import evaluate, serve
from apps.engine import Engine
from apps.runs import Run, conversation
from apps.sessions import Sessions

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("default")  # those of other people's packages are not ours to mend
SMALL = Config(width=16, layers=1, heads=2, segment=16, hidden=16, chunks=(1, 2), memory_chunk=8, projection_chunk=4)
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", 10))  # per operation, right ones and wrong ones
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    hope.save(folder / "checkpoint.npz", Hope(SMALL, np.random.default_rng(0)))
    return Run.open(folder)


class Running(uvicorn.Server):
    """A real server on a free port, in a thread."""

    def __init__(self, run: Run, folder: Path, rows: int = 32, waiting: int = 128, **options):
        self.engine = Engine(run, Sessions(folder, run.fingerprint), rows, waiting)
        self.app = serve.create(self.engine, **options)
        super().__init__(uvicorn.Config(self.app, port=0, log_level="critical", timeout_graceful_shutdown=5))

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        while not self.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=120, limits=httpx.Limits(max_connections=64))
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


def test_models_lists_the_run_and_an_unknown_or_missing_model_name_is_tolerated(server):
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["small"]
    assert server.client.get("/v1/models/small").json()["object"] == "model"
    assert server.client.get("/v1/models/gpt-9").status_code == 404
    for name in ({}, {"model": None}, {"model": "gpt-9"}):
        assert server.ok("/v1/completions", prompt="a", max_tokens=1, **name)["model"] == "small"


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
              {"top_p": 1e-9})]
    assert texts[0] == texts[1] != texts[2] and texts[3] == texts[4] == texts[5]


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
    ("/v1/chat/completions", {"messages": HELLO, "stream": True, "top_p": 0}, "top_p"),
    ("/v1/chat/completions", {"messages": HELLO, "stream": True, "tools": [{"type": "function"}]}, None),
    ("/v1/chat/completions", {"messages": HELLO, "learn": True}, "user"),
    ("/v1/chat/completions", {"messages": HELLO, "learn": True, "user": "a", "n": 2}, None),
    ("/v1/chat/completions", {"messages": HELLO, "user": "../../etc/passwd"}, "user"),
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
    with Running(run, tmp_path, key="open sesame") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "open sesame"}):
            answer = server.client.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert server.client.get("/v1/models", headers={"authorization": "Bearer open sesame"}).status_code == 200
        assert server.client.get("/").status_code == 200


@pytest.mark.parametrize("origin, allowed", [("http://localhost:3000", True), ("https://chat.example.org", True),
                                             ("https://evil.example.org", False), ("http://localhost.evil.org", False)])
def test_pages_of_this_machine_and_of_named_origins_may_ask_and_no_others(run, tmp_path, origin, allowed):
    with Running(run, tmp_path, key="k", origins=["https://chat.example.org"]) as server:
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
    assert session(server, "carl") | {"used": 0} == before | {"used": 0}
    other = server.ok("/v1/completions", user="dora", **score)["choices"][0]["logprobs"]["token_logprobs"]
    assert other[1:] != taught[1:]
    assert server.ok("/v1/completions", **score)["choices"][0]["logprobs"]["token_logprobs"] == fresh


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
    end = time.monotonic() + 30
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
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                     b"content-length: %d\r\n\r\n%b" % (len(body), body))
        for _ in range(3):  # it never reads
            assert server.ok("/v1/completions", prompt="y", max_tokens=5)["usage"]["completion_tokens"] <= 5


# the process ------------------------------------------------------------------------------------------------


def test_the_process_ends_cleanly_in_mid_stream_keeps_sessions_and_logs_no_contents(run, tmp_path):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "apps.serve", run.folder, "--port", str(port), "--max-tokens", "100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, "HOPE_API_KEY": ""})
    try:
        client, url = httpx.Client(timeout=60), f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                client.get(url + "/health")
                break
            time.sleep(0.1)
        client.post(url + "/v1/read", json={"text": "confidential", "user": "kim", "learn": True}).raise_for_status()
        asked = {"prompt": "confidential", "max_tokens": 100000, "stream": True, "temperature": 0,
                 "stop": ["confidential"]}  # the likeliest bytes go round in circles, and never end
        with client.stream("POST", url + "/v1/completions", json=asked) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert "shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
        out = process.communicate(timeout=60)[0].decode()
        assert process.returncode in (0, -signal.SIGTERM) and "confidential" not in out and "Traceback" not in out
        client.close()
    finally:
        process.kill()
        process.wait()
    found = Sessions(run.folder / "sessions" / "serve", run.fingerprint).get("kim")
    assert found is not None and found.learned == len("confidential")


@pytest.mark.slow
def test_memory_stays_flat_under_full_load(run, tmp_path):
    """A soak, the long one with SOAK_SECONDS=600: 32 clients chat, stream, learn, leave; memory must not grow."""
    from apps.runs import process_bytes
    seconds = float(os.environ.get("SOAK_SECONDS", 30))
    with Running(run, tmp_path, rows=16, waiting=64) as server, ThreadPoolExecutor(32) as pool:
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
        clients = [pool.submit(client, i) for i in range(32)]
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
    with Running(run, tmp_path, longest=3) as server:
        for operation in schemathesis.openapi.from_url(server.url + "/openapi.json").get_all_operations():
            for mode in schemathesis.GenerationMode:
                @given(case=operation.ok().as_strategy(generation_mode=mode))
                def holds(case):
                    # rules about several fields at once (learning needs a session) are not in the description
                    answer = case.call_and_validate(base_url=server.url, timeout=60,
                                                    excluded_checks=[positive_data_acceptance])
                    answered.append(answer.status_code)
                with contextlib.suppress(Unsatisfiable):  # what takes no input cannot be asked wrongly
                    kept(holds)()
    assert len(answered) > 12 * EXAMPLES
    assert answered.count(200) > len(answered) / 8 and answered.count(400) > len(answered) / 8
