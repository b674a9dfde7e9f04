"""The server with an adopted model: its tokens, its chat template, and text as apps.chat writes it."""

# ruff: noqa: E402  what may be missing is imported after it was found not to be
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hope
from apps import chat

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/requirements.txt")
for package in ("tokenizers", "jinja2"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -r apps/adopt/requirements.txt")

from test_adopt import GPT2, LLAMA, TEMPLATE, TEXT, adopted
from test_serve import HELLO, Running

from apps.runs import Place, Run
from apps.sessions import Session, file_of

pytestmark = pytest.mark.filterwarnings("default")  # those of other people's packages are not ours to mend
ASKED = "7 birds and été"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.open(adopted(tmp_path_factory.mktemp("words"), LLAMA, "--chunks", "1,2", "--drift-rank", "2"))


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with Running(run, tmp_path_factory.mktemp("sessions"), longest=200) as running:
        yield running


def talking(run, *flags):
    given = chat.parser().parse_args(["", "--temperature", "0", "--max-tokens", "12", *flags])
    return chat.Chat(run, given, colours=False)


def begun(run, text: str, learn: bool = False) -> tuple[str, chat.Chat]:
    """What apps.chat goes on with after a text, greedily."""
    its, written = talking(run, "--complete"), bytearray()
    its.learning = learn
    its.hear(text.encode())
    list(its.answer(written))
    return written.decode("utf-8", "replace"), its


def piece(run, spells: bytes) -> int:
    """The token that spells these bytes."""
    return run.words.pieces.index(spells)


def dealt(monkeypatch, tokens) -> None:
    """Let the model draw these, and then them again."""
    drawn = itertools.cycle(tokens)
    monkeypatch.setattr(hope, "sample", lambda *_: next(drawn))


@pytest.mark.parametrize("about, settings", [(LLAMA, {}), (LLAMA, {"begins": True}), (LLAMA, {"kind": "pieces"}),
                                             (GPT2, {"template": None})], ids=["Llama", "begun", "pieces", "GPT-2"])
def test_completions_and_answers_are_those_of_chat(tmp_path, about, settings):
    run = Run.open(adopted(tmp_path, about, **settings))
    with Running(run, tmp_path / "sessions", longest=200) as server:
        found = server.ok("/v1/completions", prompt=ASKED, temperature=0, max_tokens=12)
        text, _ = begun(run, ASKED)
        assert found["choices"][0]["text"] == text
        size = len(run.words.encode(ASKED.encode()))
        assert found["usage"]["prompt_tokens"] == size < len(ASKED.encode())
        assert 0 < found["usage"]["completion_tokens"] <= 12
        answer = server.ok("/v1/chat/completions", messages=HELLO, temperature=0, max_tokens=12)
        its = talking(run)
        list(its.say(b"hello"))
        assert answer["choices"][0]["message"]["content"] == its.said[-1][1]
        read = server.ok("/tokenize", messages=HELLO)["tokens"]
        assert len(read) == answer["usage"]["prompt_tokens"]
        shown = run.words.tokenizer.decode(read, skip_special_tokens=False)
        begin = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert shown == (begin if run.words.taught else "user: hello\nassistant: ")
        model = server.client.get("/v1/models").json()["data"][0]
        assert model["hope"]["taught"] == run.words.taught and model["hope"]["unit"] == "token"
        assert model["max_model_len"] == about.get("n_positions")


def test_the_token_that_begins_a_text_is_read_once_though_templates_write_it_too(tmp_path):
    run = Run.open(adopted(tmp_path, template="<|endoftext|>" + TEMPLATE, begins=True))
    with Running(run, tmp_path / "sessions", longest=200) as server:
        answer = server.ok("/v1/chat/completions", messages=HELLO, temperature=0, max_tokens=12, user="a", learn=True)
        said = answer["choices"][0]["message"]["content"]
        its = talking(run, "--learn")
        list(its.say(b"hello"))
        assert said == its.said[-1][1]
        read = server.ok("/tokenize", messages=HELLO)["tokens"]
        assert read.count(0) == 1 and answer["usage"]["prompt_tokens"] == len(read)
        place = server.engine.sessions.get(("", "a")).place
        heard = len(read) + len(run.words.encode(said.encode()))
        assert place.state.blocks[0].mixer.key.shape[2] == heard - 1  # all but the last
        for what in ("memory", "all"):
            server.ok("/v1/sessions/a", reset=what)
            assert server.engine.sessions.get(("", "a")).place.last == run.words.start == 0


def test_no_character_is_broken_by_a_stream_and_none_by_a_token(server, run, monkeypatch):
    bits = [piece(run, bytes([byte])) for byte in "🙂".encode()]
    whole = run.words.encode(b" birds").tolist()
    dealt(monkeypatch, [*bits, *whole])
    parts = [chunk["choices"][0]["text"] for chunk in
             server.stream("/v1/completions", prompt=ASKED, max_tokens=2 * len(bits + whole))]
    assert "".join(parts) == "🙂 birds" * 2 and parts[0] == "🙂" and len(whole) < 6
    dealt(monkeypatch, [*bits[:2], *whole])  # half a character, which then is none
    choice, = server.ok("/v1/completions", prompt=ASKED, max_tokens=2 + len(whole))["choices"]
    assert choice["text"] == "\ufffd birds"


def test_a_stop_may_begin_and_end_within_tokens(server, run, monkeypatch):
    tokens = run.words.encode(b"3 birds and 3 birds are 6 birds").tolist()
    spells = [run.words.spell([token]) for token in tokens]
    assert b" birds" in spells
    asked = {"prompt": ASKED, "max_tokens": len(tokens), "logprobs": 0}
    for stop, text in (("rds a", "3 bi"), (" and", "3 birds"), ("never", "3 birds and 3 birds are 6 birds"),
                       (["birdx", "s are"], "3 birds and 3 bird")):
        dealt(monkeypatch, tokens)
        choice, = server.ok("/v1/completions", **asked, stop=stop)["choices"]
        assert choice["text"] == text and choice["finish_reason"] == ("length" if stop == "never" else "stop")
        dealt(monkeypatch, tokens)
        assert "".join(chunk["choices"][0]["text"] for chunk in
                       server.stream("/v1/completions", **asked, stop=stop)) == text
        assert "".join(choice["logprobs"]["tokens"]).startswith(text)
        dealt(monkeypatch, tokens)
        traced = server.ok("/v1/completions", **asked, stop=stop, trace=True)["hope"]["trace"]
        assert bytes(byte for seen in traced if seen["from"] == "answer" for byte in seen["bytes"]).decode() == text
        assert all(len(seen["bytes"]) == len(seen["bits"]) for seen in traced)


def test_a_token_that_ends_a_text_ends_the_answer(server, run, monkeypatch):
    end, = run.words.ends
    dealt(monkeypatch, [*run.words.encode(b"6 birds").tolist(), end])
    for stop in (None, "birds, and more"):  # what may be the beginning of a stop is held back until then
        found = server.ok("/v1/completions", prompt=ASKED, max_tokens=50, stop=stop)
        assert found["choices"][0]["text"] == "6 birds" and found["choices"][0]["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] == len(run.words.encode(b"6 birds")) + 1


def test_a_text_is_scored_token_by_token_and_ids_are_prompts(server, run):
    tokens = run.words.encode(ASKED.encode()).tolist()
    by_text, by_ids = (server.ok("/v1/completions", prompt=prompt, echo=True, logprobs=2, max_tokens=0)["choices"][0]
                       for prompt in (ASKED, tokens))
    assert by_text == by_ids and by_text["text"] == ASKED == "".join(by_text["logprobs"]["tokens"])
    logits = run.model(np.array([tokens]))[0].data[0].astype(np.float64)
    expected = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    found = by_text["logprobs"]["token_logprobs"]
    assert found[0] is None
    np.testing.assert_allclose(found[1:], expected[np.arange(len(tokens) - 1), tokens[1:]], rtol=1e-4)
    read = server.ok("/v1/read", text=ASKED)
    size = len(ASKED.encode()) - run.words.count(tokens[:1])  # nothing comes before the first
    assert read["bytes"] == size
    assert np.isclose(read["bits_per_byte"], -sum(found[1:]) / np.log(2) / size)
    assert sum(len(part["bytes"]) for part in read["pieces"]) == len(ASKED.encode())
    alone = server.ok("/v1/read", text="7")
    assert alone["bytes"] == 0 and alone["bits_per_byte"] is None
    chosen, = server.ok("/v1/chat/completions", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2)["choices"]
    assert bytes(byte for token in chosen["logprobs"]["content"] for byte in token["bytes"]).decode(
        "utf-8", "replace") == chosen["message"]["content"]


def test_tokens_there_and_back_and_which_there_are(server, run):
    tokens = server.ok("/tokenize", prompt=ASKED)["tokens"]
    assert tokens == run.words.encode(ASKED.encode()).tolist()
    assert server.ok("/detokenize", tokens=tokens)["prompt"] == ASKED
    info, size = server.client.get("/tokenizer_info").json(), run.model.config.vocabulary
    assert info["eos_token"] == "<|im_end|>" and info["chat_template"] == TEMPLATE
    assert server.ok("/v1/completions", prompt=[size - 1], max_tokens=0, logit_bias={str(size - 1): 1})
    for path, body in (("/v1/completions", {"prompt": [size]}), ("/detokenize", {"tokens": [size]}),
                       ("/v1/completions", {"prompt": "a", "logit_bias": {str(size): 1}})):
        answer = server.post(path, **body)
        assert answer.status_code == 400 and f"0 to {size - 1}" in answer.json()["error"]["message"]


def test_a_session_learns_reads_only_what_is_new_and_is_saved(server, run, monkeypatch):
    dealt(monkeypatch, run.words.encode(b" 6 birds").tolist())

    def say(messages):
        before = server.engine.tokens_read
        found = server.ok("/v1/chat/completions", messages=messages, user="birds", learn=True, max_tokens=8,
                          temperature=0)
        assert found["hope"]["learned"]
        said = [*messages, {"role": "assistant", "content": found["choices"][0]["message"]["content"]}]
        return said, server.engine.tokens_read - before, found["usage"]["prompt_tokens"]
    said, first, _ = say([{"role": "user", "content": ASKED}])
    said, then, whole = say([*said, {"role": "user", "content": "and again"}])
    assert then < whole and first > 0
    text = run.words.conversation([(one["role"], one["content"]) for one in said[:3]])
    about = server.client.get("/v1/sessions/birds").json()
    assert about["learned"] == len(text.encode()) + len(said[3]["content"].encode()) and about["drift"]["level 1"] > 0
    server.engine.sessions.flush()
    kept = Session.load(file_of(server.engine.sessions.folder, "birds"), run.fingerprint)
    assert kept.place.last == server.engine.sessions.get(("", "birds")).place.last
    place = kept.place
    server.ok("/v1/chat/completions", messages=[{"role": "user", "content": "all else"}], user="birds", learn=True,
              max_tokens=1, temperature=0)
    anew = server.engine.sessions.get(("", "birds")).place  # another conversation: an empty memory, levels as they were
    assert anew.state.blocks[0].mixer.key.shape[2] < place.state.blocks[0].mixer.key.shape[2]
    assert anew.state.clock > place.state.clock and anew.drifted
    assert server.ok("/v1/sessions/birds", reset="last")["learned"] == about["learned"]
    server.ok("/v1/sessions/birds", reset="all")
    assert server.engine.sessions.get(("", "birds")).place == Place(last=run.words.start) == Place(last=None)
    server.ok("/v1/read", text=ASKED, user="once", learn=True)
    server.ok("/v1/sessions/once", reset="last")
    assert server.engine.sessions.get(("", "once")).place == Place(last=None)


def test_learning_computes_what_chat_computes(server, run):
    server.ok("/v1/completions", prompt=ASKED, user="alone", learn=True, temperature=0, max_tokens=12)
    text, its = begun(run, ASKED, learn=True)
    its.hear(text.encode())
    here, there = server.engine.sessions.get(("", "alone")).place, its.session.place
    assert here.last == there.last and here.state.clock == there.state.clock
    for mine, other in zip(here.state.blocks, there.state.blocks, strict=True):
        for name, drift in mine.levels[0].drift.items():
            np.testing.assert_array_equal(drift.data, other.levels[0].drift[name].data)


def test_where_positions_end_an_answer_ends_and_a_longer_text_is_refused(tmp_path):
    run = Run.open(adopted(tmp_path, GPT2 | {"n_positions": 20}, template=None))
    tokens = run.words.encode(b"3 birds and " * 9).tolist()
    with Running(run, tmp_path / "sessions", longest=200) as server:
        found = server.ok("/v1/completions", prompt=tokens[:15], max_tokens=50, logit_bias={str(tokens[0]): 100})
        assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["completion_tokens"] == 6
        assert server.ok("/v1/completions", prompt=tokens[:21], max_tokens=50)["usage"]["completion_tokens"] == 0
        for answer in (server.post("/v1/completions", prompt=tokens[:22], max_tokens=5),
                       server.post("/v1/read", text=TEXT, user="a", learn=True)):
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
            assert "can read 20 more" in error["message"]
        assert server.client.get("/v1/sessions/a").status_code == 404


def test_a_template_that_refuses_is_quoted_and_completions_go_on(tmp_path):
    run = Run.open(adopted(tmp_path, template="{{ raise_exception('no robots') }}"))
    with Running(run, tmp_path / "sessions") as server:
        error = server.post("/v1/chat/completions", messages=HELLO).json()["error"]
        assert error["param"] == "messages" and "cannot write this conversation: no robots" in error["message"]
        assert server.ok("/v1/completions", prompt="7", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_session_with_nothing_before_goes_on_from_nothing(tmp_path, run):
    assert run.words.start is None
    assert Session("a", Place(None, 5)).reset("all", run.words.start).place == Place(last=None)
    path = Session("a", Place(last=None)).save(tmp_path, run.fingerprint)
    assert Session.load(path, run.fingerprint).place == Place(last=None)


def test_many_at_once_are_answered_as_each_alone(server):
    asked = [{"prompt": ASKED + " and" * n, "temperature": 0, "max_tokens": 9, "logprobs": 1} for n in (0, 0, 1, 2, 3)]
    alone = [server.ok("/v1/completions", **each)["choices"] for each in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda each: server.ok("/v1/completions", **each)["choices"], asked)) == alone
