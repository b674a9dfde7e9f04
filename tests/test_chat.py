"""Reading, writing and learning in the apps, sessions on disk, and the console chat."""

import fcntl
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hope
from apps import chat, runs
from apps.runs import END, Place, Run, Stops, Utf8, predict, read
from apps.sessions import Session, Sessions, file_of, saved_in
from autograd import no_grad
from config import MIXERS, Config
from hope import Hope
from layers import cross_entropy
from tools import stopping

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


def test_the_newest_run_is_taken_else_the_demonstration_and_no_run_is_said_to_be_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "DEMO", tmp_path / "demo")
    with pytest.raises(ValueError, match="no run is in"):
        Run.open()
    make_run(tmp_path / "demo")
    assert Run.open().name == "demo" and Run.open().sessions == tmp_path / "runs" / "demo" / "sessions"
    for age, name in ((20, "old"), (10, "new"), (30, "older")):
        make_run(tmp_path / "runs" / name)
        stamp = time.time() - age
        os.utime(tmp_path / "runs" / name / "checkpoint.npz", (stamp, stamp))
    assert Run.open().name == "new"
    with pytest.raises(ValueError, match="there is no checkpoint runs/gone"):
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


@pytest.mark.parametrize("mixer", [*MIXERS, "attention+banks", "banks+titans", *(
    pytest.param(f"{one}+{other}", marks=pytest.mark.slow) for one, other in combinations(MIXERS, 2))])
def test_every_mixer_and_every_pair_of_them_reads_learns_and_predicts_in_batches(tmp_path, mixer):
    run = make_run(tmp_path / "run", mixer=mixer)
    texts = SENTENCE[:40], SENTENCE[1:41], b"x" * 40
    places = [list(read(run.model, Place(), text, learn=True))[-1].place for text in texts]
    assert len({str(runs.layout(place.state)) for place in places}) == 1
    for place, (logits, state) in zip(places, predict(run.model, places), strict=True):
        (alone, _), = predict(run.model, [place])
        np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)
        assert runs.distances(run.model, state)["level 1"] > 0


def test_filled_up_batches_give_the_same_bits_whoever_else_is_in_them(run):
    rows = runs.padding(run.model, places=20)  # by the processor; 0: none does, and everybody goes alone
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


def lesson(run: Run, before: Session, text: bytes = SENTENCE) -> Session:
    return before.after(list(read(run.model, before.place, text, learn=True))[-1].place, len(text))


def test_only_one_of_two_changes_of_the_same_session_is_taken(run, tmp_path):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    assert sessions.commit(None, one).result()
    assert sessions.commit(None, learned(run)) is None
    sessions.touch(one)
    two, three = lesson(run, one), lesson(run, one)
    assert sessions.commit(one, two).result()
    assert sessions.commit(one, three) is None
    assert sessions.delete(two.key) and sessions.commit(two, lesson(run, two)) is None


def test_a_change_is_on_the_disk_when_it_is_said_to_be_and_can_be_undone_once(run, tmp_path):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    two = lesson(run, one)
    for before, after in ((None, one), (one, two)):
        assert sessions.commit(before, after).result()
        assert same(Session.load(file_of(tmp_path / "s", "ann"), run.fingerprint).place, after.place)
    again = Sessions(tmp_path / "s", run.fingerprint)  # as after a crash
    assert again.reset(two.key, "last").result() and same(again.get(two.key).place, one.place)
    assert again.get(two.key).learned == len(SENTENCE)
    with pytest.raises(LookupError, match="nothing to undo"):
        again.reset(two.key, "last")


def test_what_was_deleted_before_it_was_written_does_not_come_back_under_a_new_session(run, tmp_path):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    with sessions.files:  # the writer waits
        sessions.commit(None, one)
        with sessions.lock:  # as delete does
            sessions.known.pop(one.key)
            sessions.memory.pop(one.key)
        new = learned(run)
        assert new.created != one.created
        written = sessions.commit(None, new)
    assert written.result() and sessions.reset(new.key, "last").result()
    assert sessions.get(new.key).place == Place()


def test_deleting_removes_no_file_of_another_model(run, tmp_path):
    learned(run).save(tmp_path / "s", "another model")
    sessions = Sessions(tmp_path / "s", run.fingerprint)
    with sessions.files:
        written = sessions.commit(None, one := learned(run))
        sessions.known[one.key]["created"] = 0.0  # so that the writer leaves it
    written.result()
    assert sessions.delete(one.key) and file_of(tmp_path / "s", "ann").exists()


def test_the_first_lesson_and_a_reset_can_be_undone_too(run, tmp_path):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    sessions.commit(None, one)
    assert sessions.reset(one.key, "levels").result() and not sessions.get(one.key).place.drifted
    assert sessions.reset(one.key, "last").result() and same(sessions.get(one.key).place, one.place)
    sessions.delete(one.key)
    sessions.commit(None, one)
    assert sessions.reset(one.key, "last").result() and sessions.get(one.key).place == Place()


def test_a_session_that_cannot_be_written_is_pending_and_tried_again(run, tmp_path, monkeypatch, capsys):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint, limit=1), learned(run)

    def full(*_):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(hope, "write_npz", full)
        assert sessions.commit(None, one).result() is False
        assert "No space left" in sessions.problem and sessions.failures == 1
        assert "cannot be saved" in capsys.readouterr().err
        sessions.commit(None, learned(run, "bob"))
        sessions.flush()
    assert sessions.get(one.key) is not None  # over the bound of one, for the disk does not have it
    sessions.commit(None, learned(run, "cid")).result()
    assert "No space left" in sessions.problem  # two are still to be saved
    sessions.retry()
    sessions.flush()
    assert sessions.problem == ""
    assert same(Session.load(file_of(tmp_path / "s", "ann"), run.fingerprint).place, one.place)


def test_owners_have_sessions_of_their_own_under_one_name(run, tmp_path):
    sessions = Sessions(tmp_path / "s", run.fingerprint)
    for owner, text in (("", SENTENCE), ("a", SENTENCE[:20]), ("b", SENTENCE[:40])):
        sessions.commit(None, lesson(run, Session("ann", owner=owner), text))
    sessions.close()
    again = Sessions(tmp_path / "s", run.fingerprint)
    assert [again.get((owner, "ann")).learned for owner in ("", "a", "b")] == [len(SENTENCE), 20, 40]
    assert [name for name, _ in again.list("a")] == ["ann"] and again.list("c") == []


def test_memory_holds_the_last_used_sessions_the_disk_all_but_the_old_ones(run, tmp_path):
    sessions = Sessions(tmp_path / "s", run.fingerprint, limit=2, days=1)
    for age, name in ((90_000, "ancient"), (200, "old"), (100, "middle"), (0, "new")):
        session = learned(run, name)
        sessions.commit(None, Session(**{**vars(session), "used": time.time() - age}))
        sessions.flush()
    assert [name for _, name in sessions.memory] == ["middle", "new"] and sessions.evicted == 2
    assert [name for name, _ in sessions.list()] == ["new", "middle", "old", "ancient"]
    old = sessions.get(("", "old"))  # from the disk, and back into memory
    assert same(old.place, learned(run).place) and [name for _, name in sessions.memory] == ["new", "old"]
    assert sessions.sweep() == 1
    again = Sessions(tmp_path / "s", run.fingerprint, limit=2, days=1)
    assert [name for name, _ in again.list()] == ["new", "middle", "old"] and not again.memory
    again.touch(again.get(("", "middle")))
    assert again.delete(("", "new")) and not again.delete(("", "new"))
    assert [name for name, _ in Sessions(tmp_path / "s", run.fingerprint).list()] == ["middle", "old"]


def test_another_models_session_of_the_same_name_is_moved_aside_with_the_one_before_it(run, tmp_path, capsys):
    sessions, one = Sessions(tmp_path / "s", "another model"), learned(run)
    two = lesson(run, one)
    for earlier, later in ((None, one), (one, two)):
        assert sessions.commit(earlier, later).result()
    ours = Sessions(tmp_path / "s", run.fingerprint)
    three = learned(run)
    assert ours.list() == [] and ours.commit(None, three).result() and ours.commit(three, lesson(run, three)).result()
    assert ours.reset(three.key, "last").result() and same(ours.get(three.key).place, three.place)
    path = file_of(tmp_path / "s", "ann")
    assert f"now {path.with_suffix('.other-1')}" in capsys.readouterr().err
    assert same(Session.load(path.with_suffix(".other-1"), "another model").place, two.place)
    assert same(Session.load(path.with_suffix(".other-1-before"), "another model").place, one.place)


def test_a_reset_that_a_lesson_overtakes_is_done_to_what_the_lesson_left(run, tmp_path, monkeypatch):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    sessions.commit(None, one)
    two, commit = lesson(run, one), sessions.commit

    def overtaken(old, new, undone=False):
        monkeypatch.undo()
        assert commit(one, two)
        return commit(old, new, undone)
    monkeypatch.setattr(sessions, "commit", overtaken)
    assert sessions.reset(one.key, "levels").result()
    now = sessions.get(one.key)
    assert not now.place.drifted and now.changes == two.changes + 1 and now.learned == two.learned
    assert sessions.reset(("", "nobody"), "all") is None


def test_the_writer_survives_whatever_a_write_and_its_own_words_meet(run, tmp_path, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")
        flush = write
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    for error in (OSError(28, "No space left on device"), MemoryError("no room")):
        with monkeypatch.context() as patch:
            patch.setattr(hope, "write_npz", Mock(side_effect=error))
            patch.setattr(sys, "stderr", Full())
            found = sessions.send(one)
            assert found.result(10) is False and str(error) in sessions.problem
    sessions.retry()
    sessions.flush()
    assert not sessions.problem and file_of(tmp_path / "s", "ann").exists()


def test_a_session_whose_files_cannot_be_removed_is_not_forgotten(run, tmp_path, monkeypatch):
    sessions, one = Sessions(tmp_path / "s", run.fingerprint), learned(run)
    assert sessions.commit(None, one).result()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", Mock(side_effect=OSError(30, "Read-only file system")))
        with pytest.raises(OSError):
            sessions.delete(one.key)
    assert sessions.list() and sessions.delete(one.key) and not sessions.list()


def test_no_bound_is_no_bound(run, tmp_path):
    sessions = Sessions(tmp_path / "s", run.fingerprint, limit=0, days=0)
    for i in range(40):
        sessions.commit(None, Session(f"user {i}", used=1.0))
    sessions.flush()
    assert len(sessions.memory) == 40 and sessions.sweep() == 0


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
        sessions = Sessions(folder, run.fingerprint)
        assert [name for name, _ in sessions.list()] == ["ann"]
        assert same(sessions.get(("", "ann")).place, learned(run).place)


# the console ------------------------------------------------------------------------------------------------


def talk(run: Run, text: bytes, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "apps.chat", run.folder, "--seed", "1", "--max-tokens", "12", *flags],
                          input=text, capture_output=True, cwd=ROOT, timeout=300, check=False)


def test_what_was_learned_and_not_saved_takes_no_other_sessions_place(run, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.Run, "sessions", tmp_path)
    given = chat.parser().parse_args([str(run.folder)])
    for name in ("unsaved", "unsaved-2"):
        talker = chat.Chat(run, given, False)
        talker.begin(learned(run, "chat"))
        talker.saved = False
        assert f"/load {name} goes on" in talker.keep() and talker.keep() == ""
    talker.begin(learned(run, "chat"))
    assert "the unsaved that was there is kept as" in talker.save("unsaved") and "kept" not in talker.save("unsaved")


@pytest.mark.parametrize("given", [
    "--temperature -1", "--temperature nan", "--top-p 1.5", "--top-p nan", "--top-k -1", "--seed -1",
    "--max-tokens 0"])
def test_a_number_out_of_its_range_is_one_line_that_names_it(run, capsys, given):
    name, value = given.split()
    assert chat.main([str(run.folder), *given.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"apps.chat: error: {name} is {float(value):g}") and said.count("\n") == 1


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
    again = talk(run, b"/load ann\n/load nobody\n/lern on\n")
    assert b"ann is loaded, " in again.stdout and again.returncode == 1
    assert b"no session 'nobody'" in again.stderr and b"did you mean 'learn'" in again.stderr


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


HEARD = [sys.executable, "-c", "import os, signal, sys\n"
         "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_DFL)\n"
         "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]  # it hears signals after nohup, too


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, run: Run, *flags: str, controls: bool = False):
        self.master, slave = pty.openpty()
        take = (lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controls else None  # who closes it hangs up
        command = [*HEARD, "-m", "apps.chat", str(run.folder), *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
                                        start_new_session=True, preexec_fn=take,
                                        env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"})
        os.close(slave)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def until(self, word: bytes) -> bytes:
        """What it has said up to a word, and has not been asked for before."""
        end = time.monotonic() + 300
        while word not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 4096)
        said, _, self.seen = self.seen.partition(word)
        return said

    def more(self) -> None:
        """Wait for one more piece of output, however long the first one takes to compile."""
        self.seen = os.read(self.master, 4096)


def test_ctrl_c_in_mid_answer_stops_the_answer_and_not_the_chat(run):
    with Terminal(run, "--max-tokens", "100000", "--temperature", "0") as terminal:
        assert b" parameters" in terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"hello\r\n")
        if not terminal.seen:
            terminal.more()
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(b"(stopped)")
        terminal.type(b"/learn on\n")
        terminal.until(b"learning is on")
        terminal.type(b"/quit\n")
        assert terminal.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_and_a_request_to_end_lose_nothing_that_was_learned(run, number):
    with Terminal(run, "--learn", "--max-tokens", "3", "--temperature", "0") as terminal:
        terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"learning on")
        end = time.monotonic() + 60
        while terminal.process.poll() is None and time.monotonic() < end:  # one that comes as the prompt is drawn waits
            terminal.process.send_signal(number)  # for a key, or for the next
            time.sleep(0.1)
        assert terminal.process.wait(1) in (128 + number, -number)  # the next may come when all is done
    assert "unsaved" in [name for _, name in saved_in(run.sessions / "chat", run.fingerprint)]


def test_a_terminal_that_goes_away_in_mid_answer_takes_nothing_with_it(run):
    with Terminal(run, "--learn", "--max-tokens", "100000", "--temperature", "0") as terminal:
        terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"hello\r\n")
        if not terminal.seen:
            terminal.more()
        os.close(terminal.master)
        assert terminal.process.wait(60)
        terminal.master = os.open(os.devnull, os.O_RDONLY)  # to be closed
    assert "unsaved" in [name for _, name in saved_in(run.sessions / "chat", run.fingerprint)]


def test_a_terminal_that_is_closed_at_the_prompt_takes_nothing_with_it(run, tmp_path):
    """Its input ends, and then comes a hang-up."""
    flags = ("--learn", "--max-tokens", "3", "--temperature", "0", "--session-folder", str(tmp_path / "chat"))
    with Terminal(run, *flags, controls=True) as terminal:
        terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"learning on")
        terminal.until(b"> ")
        time.sleep(0.2)  # it waits for a line
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, terminal.master)  # and so it is closed
        os.close(nothing)
        assert terminal.process.wait(60) in (0, 1, 128 + signal.SIGHUP)
    assert [name for _, name in saved_in(tmp_path / "chat", run.fingerprint)] == ["unsaved"]


def test_learning_that_cannot_be_kept_is_said_when_it_begins(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for lines, flags in ((b"/learn on\n/quit\n", []), (b"/quit\n", ["--learn"])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        chat.main([str(run.folder), "--session-folder", str(tmp_path / "file" / "chat"), *flags])
        said = capsys.readouterr()
        assert f"{tmp_path / 'file'} is a file; choose another --session-folder" in said.out + said.err


def test_without_an_input_there_is_nothing_to_answer(run):
    command = shlex.join([sys.executable, "-m", "apps.chat", str(run.folder)])
    done = subprocess.run(["sh", "-c", f"exec {command} <&-"], cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == 0 and not done.stderr


def test_a_checkpoint_other_than_the_last_can_be_talked_to(run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(run.folder / "checkpoint.npz", copy / "best.npz")
    opened = Run.open(copy / "best.npz")
    assert opened.fingerprint == run.fingerprint and opened.folder == copy
    with pytest.raises(ValueError, match=r"there is no checkpoint .*; name a run's folder, or a checkpoint in it"):
        Run.open(copy)


def test_lines_typed_ahead_while_it_answers_are_messages_of_their_own_in_order(run):
    with Terminal(run, "--max-tokens", "300", "--temperature", "0") as terminal:
        terminal.until(b"> ")
        terminal.type(b"first\n")
        terminal.until(b"first\r\n")
        if not terminal.seen:
            terminal.more()  # the answer has begun
        terminal.type(b"second\n/learn on\nthird\n/quit\n")
        words = (b"learning off", b"learning off", b"learning is on", b"learning on")
        answered = [terminal.until(word) for word in words]
        assert all(text.count(b"bytes learned") == 1 for text in answered[:2])
        assert terminal.process.wait(60) == 0


def test_a_paste_is_one_message_even_where_it_begins_with_a_stroke(run):
    with Terminal(run, "--max-tokens", "5", "--seed", "1") as terminal:
        terminal.until(b"> ")
        terminal.type(b"/learn off is a line\n/quit is another\nthe last\n")
        terminal.until(b"bytes learned")
        terminal.type(b"/surprise\n")
        said = terminal.until(b"bits per byte of")
        assert b"/quit is another" in said
        assert len(b"user: /learn off is a line\n/quit is another\nthe last\nassistant: ") <= int(
            terminal.until(b" bytes"))


@pytest.mark.parametrize("line, command", [
    (b"/learn on", "/learn on"), (b"/quit", "/quit"), (b" /help ", "/help"), (b"/usr/bin/python is broken", ""),
    (b"//learn on", ""), (b"/quit\nand more", ""), (b"hello /quit", ""), (b"/", "")])
def test_what_is_a_command_and_what_a_message(line, command):
    assert chat.command_in(line) == command
    with pytest.raises(ValueError, match="did you mean 'learn'"):
        chat.command_in(b"/lern on")


def test_what_is_no_text_is_shown_as_an_escape_and_cannot_steer_the_terminal():
    assert chat.visible("é\n\x1b[2J\x00") == "é\n\\x1b[2J\\x00"


@given(st.lists(st.text("ab \n\t", max_size=9), max_size=6), st.booleans())
def test_blank_lines_in_a_row_are_one_and_none_is_at_the_end(parts, within):
    shown = chat.Squeezed(within)
    text, whole = "".join(map(shown.feed, parts)), "".join(parts)
    assert text == text.rstrip() and text.split() == whole.split()
    assert not re.search(r"\n[ \t]*\n[ \t]*\n", text)
    if not within:
        assert text == text.lstrip()
    for line in (line for line in text.split("\n") if line.strip()):
        assert line in whole  # indented as it was


def test_the_chat_begins_with_what_the_model_is_and_what_to_try(run):
    talker = chat.Chat(run, chat.parser().parse_args([]), colours=False)
    assert talker.introduction().startswith(f"run: {hope.count(run.model.config):,} parameters.\nIt continues texts")
    training = {"data": [], "random_data": False}
    (run.folder / "config.json").write_text(json.dumps({"preset": "nano", "training": training}), encoding="utf-8")
    lines = [{"step": 499, "loss": 1.5, "bits_per_byte": 2.2}, {"step": 500, "loss": 1.4, "bits_per_byte": 2.0}]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "500 steps on Python's documentation and library, 2.10 bits per byte in training" in talker.introduction()
    assert "such as `def main(`" in talker.introduction()
    with open(run.folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 500, "validation_bits_per_byte": {"this run": 1.96, "gzip": 2.7}}))
    assert "1.96 bits per byte of text it has not seen" in talker.introduction()
    training["data"] = ["/home/ann/tales.txt", "/home/ann/more.txt"]
    (run.folder / "config.json").write_text(json.dumps({"preset": "nano", "training": training}), encoding="utf-8")
    (run.folder / "sample.txt").write_text("step 100: x ▶ y\n\nstep 500: Once upon a time there\n\nwas ▶ a bee\n\n",
                                           encoding="utf-8")
    assert "500 steps on tales.txt and 1 more" in talker.introduction()
    assert "such as `Once upon a time`" in talker.introduction()


def test_a_text_is_completed_as_it_stands(run):
    talker = chat.Chat(run, chat.parser().parse_args(["--complete", "--max-tokens", "20", "--temperature", "0"]), False)
    "".join(talker.say(b"def main"))
    heard = bytes(token.byte for piece in talker.last for token in piece.tokens)
    place = list(read(run.model, Place(), b"def main"))[-1].place
    expected = b""
    for _ in range(20):
        (logits, state), = predict(run.model, [place])
        token = int(np.argmax(logits))
        if token == END:
            break
        expected += bytes([token])
        place = Place(state, token)
    assert heard == b"def main" + expected + b"\n"
    assert talker.command("/complete off") == "lines are messages"
    "".join(talker.say(b"hello"))
    assert bytes(token.byte for piece in talker.last for token in piece.tokens).startswith(b"user: hello\nassistant: ")


def test_the_last_message_can_be_undone_and_saved_sessions_are_listed(run):
    talker = chat.Chat(run, chat.parser().parse_args(["--learn", "--max-tokens", "3"]), colours=False)
    assert "no session is saved" in talker.command("/sessions")
    "".join(talker.say(b"hello"))
    first = talker.session
    "".join(talker.say(b"and more"))
    assert talker.command("/undo") == "the last message is undone" and talker.session is first
    assert talker.command("/undo") == "there is nothing to undo"
    talker.command("/save ann")
    assert talker.command("/sessions").startswith(f"ann: {first.learned} bytes learned, 20")
    talker.command("/reset")
    talker.command("/undo")
    assert same(talker.session.place, first.place) and talker.saved
    "".join(talker.say(b"more"))
    talker.command("/reset")
    talker.command("/undo")
    assert not talker.saved
    talker.command("/load ann")
    "".join(talker.say(b"more"))
    talker.command("/save ann")
    talker.command("/undo")  # to what was there before "more", which is on the disk no longer
    assert same(talker.session.place, first.place) and not talker.saved and "unsaved" in talker.keep()


@pytest.mark.parametrize("name", ["chat", "ann"])
def test_a_session_that_is_not_the_one_talked_in_is_kept_when_its_name_is_taken(run, name):
    for words in (b"hello", b"more"):
        talker = chat.Chat(run, chat.parser().parse_args(["--learn", "--max-tokens", "3"]), colours=False)
        "".join(talker.say(words))
        assert ("kept as" in talker.command(f"/save {name}")) == (words == b"more")


def test_what_another_conversation_saved_meanwhile_in_the_same_session_is_kept(run):
    one, other = (chat.Chat(run, chat.parser().parse_args(["--learn", "--max-tokens", "3"]), False) for _ in "ab")
    "".join(one.say(b"hello"))
    one.command("/save ann")
    other.command("/load ann")
    "".join(other.say(b"more"))
    assert "kept as" not in other.command("/save ann") and "kept as" not in other.command("/save ann")
    "".join(one.say(b"something else"))
    assert "the ann that was there is kept as" in one.command("/save ann")
    assert "kept as" not in one.command("/save ann")


def test_nothing_interrupts_the_saving_of_what_was_learned(run, monkeypatch, capsys):
    save = Session.save

    def interrupted(session, *given):
        for number in stopping.SIGNALS:
            signal.raise_signal(number)
        return save(session, *given)
    monkeypatch.setattr(Session, "save", interrupted)
    monkeypatch.setattr(chat, "piped", lambda: iter([b"hello"]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    for number in stopping.SIGNALS:
        signal.signal(number, signal.default_int_handler)
    assert chat.main([str(run.folder), "--learn", "--max-tokens", "3"]) == 0
    assert "unsaved is saved" in capsys.readouterr().err
    for number, handler in zip(stopping.SIGNALS, before, strict=True):
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, handler)


def test_a_text_of_which_the_vocabulary_makes_nothing_moves_nothing(run, monkeypatch):
    talker = chat.Chat(run, chat.parser().parse_args(["--learn"]), colours=False)
    monkeypatch.setattr(type(talker.words), "encode", lambda self, text: np.zeros(0, np.int64))
    before = talker.session
    talker.hear(b"\n")
    assert talker.session is before


@pytest.mark.parametrize(("command", "encoding"), [
    ("apps.chat --help", "ascii"), ("apps.serve --help", "cp1252"), ("apps.evaluate --help", "ascii"),
    ("apps.chat RUN", "cp1252"), pytest.param("apps.chat RUN", "ascii", marks=pytest.mark.slow)])
def test_what_a_console_cannot_show_is_escaped(run, command, encoding):
    words = [str(run.folder) if word == "RUN" else word for word in command.split()]
    said, env = "\ufeffhello ▶ é\n/surprise\n".encode(), {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run([sys.executable, "-m", *words, *["--max-tokens", "2"] * ("RUN" in command)], cwd=ROOT,
                           env=env, input=said, capture_output=True, timeout=300)
    assert found.returncode == 0 and found.stdout and b"Traceback" not in found.stderr
    found.stdout.decode(encoding)
    if "RUN" in command:
        assert b"user: hello" in found.stdout  # without the byte order mark
