"""Reading, writing and learning in the apps, sessions on disk, and the console chat."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hope
from apps import chat, runs
from apps.runs import END, Place, Run, Stops, Utf8, predict, read
from apps.sessions import Session, Sessions, file_of
from autograd import no_grad
from config import Config
from hope import Hope
from layers import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"width": 16, "layers": 2, "heads": 2, "segment": 16, "hidden": 16, "chunks": (1, 2), "memory_chunk": 8,
         "projection_chunk": 4}
SENTENCE = "The grellip sings in spring; é, €, and 𝄞 are characters of two, three and four bytes. ".encode()


def make_run(folder: Path, **changes) -> Run:
    """A run with an untrained model, in a folder."""
    folder.mkdir(parents=True)
    hope.save(folder / "checkpoint.npz", Hope(Config(**{**SMALL, **changes}), np.random.default_rng(0)))
    return Run.open(folder)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def bits(pieces) -> list[float]:
    return [token.bits for piece in pieces for token in piece.tokens]


# reading and writing ----------------------------------------------------------------------------------------


def test_the_newest_run_is_taken_and_no_run_is_said_to_be_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no run is in"):
        Run.open()
    for age, name in ((20, "old"), (10, "new"), (30, "older")):
        make_run(tmp_path / "runs" / name)
        stamp = time.time() - age
        os.utime(tmp_path / "runs" / name / "checkpoint.npz", (stamp, stamp))
    assert Run.open().name == "new"
    with pytest.raises(ValueError, match="no checkpoint in"):
        Run.open("runs/gone")


def test_surprise_is_what_the_model_loses_whatever_the_pieces(run, monkeypatch):
    found = bits(read(run.model, Place(), SENTENCE))
    tokens = np.array([[END, *SENTENCE]])
    with no_grad():
        loss = cross_entropy(run.model(tokens[:, :-1])[0], tokens[:, 1:], reduction="none").data[0]
    np.testing.assert_allclose(found, loss / np.log(2), rtol=1e-4)
    monkeypatch.setattr(runs, "READ", 7)
    np.testing.assert_allclose(bits(read(run.model, Place(), SENTENCE)), found, rtol=1e-4)


def test_without_anything_before_it_the_first_byte_has_no_surprise(run):
    found = bits(read(run.model, Place(last=None), SENTENCE))
    assert found[0] is None and None not in found[1:]
    one, = read(run.model, Place(last=None), b"a")
    assert one.place == Place(None, ord("a"))


def test_learning_moves_the_due_levels_and_nothing_else(run):
    before = {name: array.copy() for name, array in run.model.state_dict().items()}
    pieces = list(read(run.model, Place(), SENTENCE, learn=True))
    assert [piece.moved for piece in pieces] == [[1], [1, 2], [1]]
    found = [runs.distances(run.model, piece.place.state) for piece in pieces]
    moved = {chunk: [a[f"level {chunk}"] != b[f"level {chunk}"] for a, b in
                     zip([runs.distances(run.model, None) | {f"level {chunk}": 0.0}, *found], found, strict=False)]
             for chunk in (1, 2)}
    assert moved == {1: [True, True, True], 2: [False, True, False]}
    assert all(np.array_equal(before[name], array) for name, array in run.model.state_dict().items())


def test_a_text_that_was_learned_surprises_less(run):
    first = list(read(run.model, Place(), SENTENCE * 2, learn=True))
    taught = Place(first[-1].place.state.reset("memory"), END)  # what the levels know, without the memories
    assert np.mean(bits(read(run.model, taught, SENTENCE * 2))) < np.mean(bits(read(run.model, Place(), SENTENCE * 2)))


@pytest.mark.parametrize("mixer", ["titans", "plain-titans", "gated", "attention"])
def test_rows_of_a_batch_predict_what_each_predicts_alone_across_the_ends_of_chunks(tmp_path, mixer):
    model = make_run(tmp_path / mixer, mixer=mixer).model
    starts = [SENTENCE[:size] for size in (5, 5, 6, 9, 13)]
    alone = [list(read(model, Place(), text))[-1].place for text in starts]
    together = list(alone)
    for step in range(10):
        groups: dict = {}
        for i, place in enumerate(together):
            groups.setdefault(runs.alike(model, place), []).append(i)
        assert len(groups) < len(starts)  # otherwise nothing is tried here
        for members in groups.values():
            found = predict(model, [together[i] for i in members])
            for i, (logits, state) in zip(members, found, strict=True):
                (expected, after), = predict(model, [alone[i]])
                np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
                token = 65 + step
                together[i], alone[i] = Place(state, token), Place(after, token)


def test_filled_up_batches_give_the_same_bits_whoever_else_is_in_them(run):
    rows = runs.padding(run.model, places=20)
    assert rows in (0, 1, 4, 8, 16)  # by the processor; 0: none does, and everybody goes alone
    if rows:
        places = [list(read(run.model, Place(), [i, 2, 3]))[-1].place for i in range(2 * rows)]
        few = predict(run.model, [places[0]] * rows)[0][0]
        many = predict(run.model, places[::-1])[-1][0]
        assert few.tobytes() == many.tobytes()


@given(st.lists(st.binary(max_size=5)))
def test_characters_come_whole_however_their_bytes_come(parts):
    text = Utf8()
    pieces = [text.feed(part) for part in parts] + [text.feed(b"", final=True)]
    assert "".join(pieces) == b"".join(parts).decode("utf-8", "replace")


@given(st.lists(st.sampled_from(b"abc"), max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stop_is_never_shown_and_nothing_else_is_held_back_for_long(tokens, words):
    stops, shown, waiting = Stops([word.encode() for word in words]), b"", b""
    for token in tokens:
        waiting += bytes([token])
        free = stops.feed(token)
        shown, waiting = shown + waiting[:free], waiting[free:]
        if stops.hit:
            break
        assert not waiting or any(word.encode().startswith(waiting) for word in words)
    text = bytes(tokens).decode()
    ends = {text.find(word) + len(word): word for word in sorted(words, key=len) if word in text}
    if ends:
        end = min(ends)
        longest = next(word for word in words if text[:end].endswith(word))
        assert stops.hit and shown.decode() == text[:end - len(longest)]
    else:
        assert not stops.hit and (shown + waiting).decode() == text


# sessions ---------------------------------------------------------------------------------------------------


def learned(run: Run, name: str = "ann") -> Session:
    place = list(read(run.model, Place(), SENTENCE, learn=True))[-1].place
    return Session(name).after(place, len(SENTENCE), SENTENCE)


def same(a: Place, b: Place) -> bool:
    assert a.state and b.state
    one, other = a.state.pack(), b.state.pack()
    return a.last == b.last and one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_session_survives_saving_bit_for_bit(run, tmp_path):
    session = learned(run)
    found = Session.load(session.save(tmp_path / "s", run.fingerprint), run.fingerprint)
    assert same(session.place, found.place)
    assert (found.name, found.heard, found.learned) == (session.name, session.heard, session.learned)


def test_a_session_of_another_model_or_a_damaged_one_is_refused_and_left_alone(run, tmp_path, capsys):
    path = learned(run).save(tmp_path / "s", "another")
    with pytest.raises(ValueError, match="belongs to another model"):
        Session.load(path, run.fingerprint)
    (tmp_path / "s" / "x.npz").write_bytes(b"no session")
    assert Sessions(tmp_path / "s", run.fingerprint).list() == []
    assert capsys.readouterr().err.count("left alone") == 2
    assert path.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/", "a/b", "..", "", "é" * 300, "con", "\udcff"])
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    assert file_of(tmp_path, name).resolve().parent == tmp_path.resolve()


def test_only_what_is_new_in_a_conversation_is_unheard(run):
    session = learned(run)
    assert session.unheard(SENTENCE + b"more") == b"more"
    assert session.unheard(b"another" + SENTENCE) == b"another" + SENTENCE
    assert session.unheard(SENTENCE[:9]) == SENTENCE[:9]


def test_only_one_of_two_changes_of_the_same_session_is_taken(run, tmp_path):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    assert sessions.commit(None, one)
    assert not sessions.commit(None, learned(run))
    sessions.touch(one)
    assert sessions.commit(one, learned(run))
    assert not sessions.commit(one, learned(run))


def test_sessions_are_bounded_in_number_and_age_and_come_back(run, tmp_path):
    sessions = Sessions(tmp_path / "s", run.fingerprint, limit=2, days=1)
    for age, name in ((0, "new"), (100, "middle"), (200, "old"), (90_000, "ancient")):
        session = learned(run, name)
        sessions.commit(None, Session(**{**vars(session), "used": time.time() - age}))
    sessions.save()
    again = Sessions(tmp_path / "s", run.fingerprint, limit=2, days=1)
    assert [session.name for session in again.list()] == ["new", "middle"]
    assert again.delete("new") and not again.delete("new")
    assert [session.name for session in Sessions(tmp_path / "s", run.fingerprint).list()] == ["middle"]


def test_a_kill_while_saving_loses_no_earlier_state(run, tmp_path):
    """A process saves one session over and over; killed at any moment, the file is a whole one."""
    folder = tmp_path / "s"
    learned(run).save(folder, run.fingerprint)
    code = ("import sys; from apps.sessions import Session; from pathlib import Path\n"
            "folder, model = Path(sys.argv[1]), sys.argv[2]\n"
            "session = Session.load(next(folder.glob('*.npz')), model)\n"
            "print('go', flush=True)\n"
            "while True: session.save(folder, model)")
    for pause in (0.0, 0.003, 0.02):
        process = subprocess.Popen([sys.executable, "-c", code, folder, run.fingerprint], cwd=ROOT,
                                   stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"go\n"
        time.sleep(pause)
        process.kill()
        process.wait()
        process.stdout.close()
        found, = Sessions(folder, run.fingerprint).list()
        assert same(found.place, learned(run).place)


# the console ------------------------------------------------------------------------------------------------


def talk(run: Run, text: bytes, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "apps.chat", run.folder, "--seed", "1", "--max-tokens", "12", *flags],
                          input=text, capture_output=True, cwd=ROOT, timeout=120, check=False)


def test_a_pipe_gets_answers_without_prompt_or_colours_and_bytes_that_are_no_text_are_read(run):
    weights = (run.folder / "checkpoint.npz").read_bytes()
    found = talk(run, b"hello \xff\xfe\n" + SENTENCE * 10 + b"\n/surprise\n/learn on\nlearn this\n/surprise\n")
    out = found.stdout.decode()
    assert found.returncode == 0 and "\x1b" not in out and "> " not in out.split("\n")[0]
    assert "bits per byte" in out and "no level moved: learning is off" in out and "levels with chunk size 1" in out
    assert "unsaved is saved" in found.stderr.decode()  # nothing that was learned is lost
    assert (run.folder / "checkpoint.npz").read_bytes() == weights


def test_what_was_learned_survives_a_restart_when_saved(run):
    first = talk(run, b"/learn on\nremember this\n/save ann\n")
    assert b"ann is saved" in first.stdout and not first.stderr
    again = talk(run, b"/load ann\n/load nobody\n/nonsense\n")
    assert b"ann is loaded, " in again.stdout and again.returncode == 1
    assert b"no session 'nobody'" in again.stderr and b"/learn on|off" in again.stderr


def test_a_run_that_vanished_is_no_reason_to_lose_what_was_learned(run):
    talker = chat.Chat(run, chat.parser().parse_args(["--learn", "--max-tokens", "3"]), colours=False)
    "".join(talker.say(b"hello"))
    (run.folder / "checkpoint.npz").unlink()
    run.folder.rmdir()
    assert "made anew" in talker.keep() and talker.keep() == ""
    place = talker.session.place
    talker.command("/reset")
    assert talker.session.place.state is None
    talker.command("/load unsaved")
    assert same(talker.session.place, place)


def test_an_answer_that_is_broken_off_is_heard_as_far_as_it_came(run):
    talker = chat.Chat(run, chat.parser().parse_args(["--max-tokens", "50", "--seed", "3"]), colours=True)
    answer = talker.say(b"hello")
    said = ""
    while len(said) < 4:
        said += next(answer)
    answer.close()
    heard = bytes(token.byte for piece in talker.last for token in piece.tokens)
    assert heard.startswith(b"user: hello\nassistant: ") and len(heard) < 60
    assert talker.session.place.last == ord("\n")
    assert "\x1b[97;48;5;" in talker.surprise()


def test_ctrl_c_in_mid_answer_stops_the_answer_and_not_the_chat(run):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "apps.chat", run.folder, "--max-tokens", "100000", "--temperature", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""

    def until(word: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while word not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096)
    try:
        until(b"> ")
        seen = b""
        os.write(master, b"hello\n")
        until(b"hello\r\n")
        echoed = len(seen)
        while len(seen) == echoed:  # until the answer has begun, however long the first one takes to compile
            seen += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        until(b"(stopped)")
        seen = b""
        os.write(master, b"/learn on\n")
        until(b"learning is on")
        os.write(master, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_what_is_no_text_is_shown_as_an_escape_and_cannot_steer_the_terminal():
    assert chat.visible("é\n\x1b[2J\x00") == "é\n\\x1b[2J\\x00"
