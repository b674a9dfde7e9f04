"""What the evaluation measures is what it says it measures."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

import hope
from apps import claims, evaluate, optimisers, questions
from apps.claims import streams
from apps.claims.study import SWEEP, Study, alike, equal, interval, looking_back, verdict
from apps.evaluate import Reader, main, share_right, stream, transfer, with_levels
from config import Config
from data import IGNORE, Document, Text, encode
from hope import Hope, State, count

CONFIG = Config(width=16, layers=1, heads=1, segment=32, hidden=16, chunks=(1, 2), memory_chunk=8,
                projection_chunk=8)
MIXERS = ("titans", "dgd", "attention")
DEPTH = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def model(mixer="titans", **options):
    return Hope(hope.replace(CONFIG, mixer=mixer, **options), np.random.default_rng(0))


def tokens(length, batch=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, length))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    hope.save(folder / "checkpoint.npz", model())
    return folder


def asked(run, out, *arguments):
    return main([*map(str, arguments), "--run", str(run), "--out", str(out), "--quiet"])


# reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
def test_reading_with_memory_in_pieces_is_reading_at_once(mixer):
    text, whole = tokens(49), Reader(model(mixer), "memory", segment=48)
    pieces = Reader(model(mixer), "memory", segment=16)
    nats = np.hstack([pieces.step(text[:, t:t + 17])[0] for t in (0, 16, 32)])
    np.testing.assert_allclose(nats, whole.step(text)[0], rtol=2e-4, atol=2e-4)


def test_levels_that_learned_to_move_in_ticks_are_read_in_ticks():
    moving = model(moves="context", tick=8, segment=32)
    assert Reader(moving, "all").segment == 8 and Reader(model(), "all").segment == CONFIG.segment
    assert Reader(moving, "memory").segment == 32 and Reader(moving, "all", segment=16).segment == 16


@pytest.mark.parametrize("mixer", MIXERS)
def test_only_what_may_learn_outlasts_a_segment(mixer):
    states = {}
    for learn in evaluate.LEARN:
        reader = Reader(model(mixer), learn)
        for t in (0, 32, 64):
            reader.step(tokens(97)[:, t:t + 33])
        states[learn] = reader.state
    assert states["off"] is None
    for learn, state in states.items():
        if state is not None:
            assert (state.blocks[0].mixer is not None) == (learn in ("memory", "all"))
            drift = [level.drift for level in state.blocks[0].levels]
            moved = [d is not None and any(np.any(w.data) for w in d.values()) for d in drift]
            assert moved == [learn in ("levels", "all")] * 2


def test_a_segment_below_the_threshold_leaves_nothing_behind():
    text = tokens(33)
    bits = float(np.mean(Reader(model()).step(text)[0])) / evaluate.BIT
    for threshold, kept in ((bits - 1e-3, True), (bits + 1e-3, False)):
        reader = Reader(model(), "all", threshold)
        reader.step(text)
        assert (reader.state is not None) == kept


def test_the_state_is_reset_per_sample_or_kept():
    for reset, kept in (("sample", False), ("never", True)):
        reader = Reader(model(), reset=reset)
        reader.step(tokens(33))
        assert (reader.begin().state is not None) == kept


def test_reading_leaves_the_weights_alone():
    m = model()
    before = {name: a.copy() for name, a in m.state_dict().items()}
    reader = Reader(m, "all", rate=1.0)
    for seed in range(3):
        reader.step(tokens(33, seed=seed))
    assert all(np.array_equal(before[name], a) for name, a in m.state_dict().items())


# scores -----------------------------------------------------------------------------------------------------


def test_only_asked_positions_count():
    guesses, targets = np.array([[1, 2, 3], [1, 0, 3]]), np.array([[IGNORE, 2, 3], [IGNORE, 2, 3]])
    assert share_right(guesses, targets) == 0.75
    assert share_right(guesses, targets, whole=True) == 0.5


def test_transfer_of_a_matrix_worked_by_hand():
    matrix = np.array([[0.1, 0.2, 0.0], [0.9, 0.3, 0.1], [0.5, 0.8, 0.3], [0.4, 0.6, 1.0]])
    found = transfer(matrix)
    assert found["average"] == pytest.approx(2 / 3)
    assert found["forgetting"] == pytest.approx((0.5 + 0.2) / 2)  # from the best: 0.9, 0.8
    assert found["backward"] == pytest.approx((-0.5 - 0.2) / 2)
    assert found["forward"] == pytest.approx((0.1 + 0.3) / 2)  # second and third, before they were learned


def test_a_stream_of_two_tasks_gives_its_whole_matrix():
    m, text = model("attention"), tokens(9, 4)
    calls = []
    scores = [lambda m, i=i: calls.append(i) or float(i) for i in range(2)]
    matrix = stream(m, [lambda: (text[:, :-1], text[:, 1:])] * 2, scores, 2, 1e-3)
    assert matrix.tolist() == [[0, 1]] * 3
    assert calls == [0, 1] * 3


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(1.963, abs=1e-3)  # 2.776·1.5811/√5


def test_a_verdict_needs_an_interval_on_one_side_of_zero():
    assert verdict([1.0, 1.1, 0.9]) == "yes"
    assert verdict([-1.0, -1.1, -0.9]) == "no"
    assert verdict([-1.0, 1.0, 0.3]) == "not shown"


@pytest.mark.parametrize("mixer", ["attention", "dgd", "linear", "plain-titans"])
def test_models_compared_have_equal_parameters(mixer):
    ours = Config(width=32, layers=2, heads=1, chunks=(1, 4), hidden=128)
    theirs = equal(hope.replace(ours, mixer=mixer, chunks=(1,)), count(ours))
    assert abs(count(theirs) / count(ours) - 1) < 0.01


def test_every_model_of_a_claim_reads_through_an_equal_filter_with_as_many_parameters():
    base = Config(width=32, layers=2, heads=1, vocabulary=40, chunks=(1,), hidden=64)
    models = [looking_back(one, 0) for one in alike(
        base, {"ours": "titans", "matrix": "delta", "attention": "attention"}).values()]
    sizes = [sum(p.size for p in one.parameters()) for one in models]
    assert max(sizes) / min(sizes) < 1.01
    for one in models:
        for block in one.blocks:
            now, before = block.mixer.conv.weight.data[:2].round()
            assert np.all(now + before == 1) and before.sum() == 16


def test_filtered_attention_in_pieces_is_attention_at_once():
    one, text = looking_back(hope.replace(CONFIG, mixer="attention"), 0), tokens(20)
    whole, (first, state) = one(text)[0], one(text[:, :7])
    second, _ = one(text[:, 7:], state)
    np.testing.assert_allclose(np.hstack([first.data, second.data]), whole.data, rtol=1e-4, atol=1e-4)


def test_levels_are_exchanged_at_equal_size():
    config = Config(width=32, layers=3, heads=1, chunks=(1, 4, 16), hidden=64, level_rates=(0.1, 0.2, 0.3))
    assert count(with_levels(config, (1,))) == count(config)
    spread = hope.replace(config, cms="spread")
    assert count(with_levels(spread, (1,))) == count(with_levels(spread, (1, 2))) == count(spread)
    assert with_levels(spread, (1, 2, 4)).level_rates == spread.level_rates


def test_a_last_batch_of_fewer_rows_counts_by_its_rows():
    parts, size = SimpleNamespace(batch=8, reader=lambda m: Reader(m, "off")), 9 * CONFIG.segment + 1
    m, held_out = model(), Text([Document("text", bytes(i * i % 7 for i in range(size)), size)], "text")
    full = SimpleNamespace(batch=3, reader=parts.reader)  # the same nine segments, three at a time
    assert evaluate.scoring(held_out, parts)(m) == pytest.approx(evaluate.scoring(held_out, full)(m), abs=1e-12)


# the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    ("text", "--limit", 200, "--learn", "all", "--files", __file__),
    ("recall", "--pairs", "1,2", "--samples", 1, "--steps", 1),
    ("needle", "--contexts", "260", "--samples", 1, "--batch", 1),
    ("passkey", "--contexts", "128", "--samples", 1, "--batch", 2, "--learn", "off"),
    ("languages", "--lengths", "8,16", "--steps", 2, "--batch", 1, "--fresh"),
    ("forgetting", "--tasks", __file__, evaluate.__file__, "--chunks", "1", "1,2", "--steps", 1, "--batch", 2),
], ids=lambda arguments: arguments[0])
def test_every_task_writes_its_numbers_and_its_picture(run, tmp_path, capsys, arguments):
    assert asked(run, tmp_path, *arguments) == 0
    kept = json.loads((tmp_path / f"{arguments[0]}.json").read_text(encoding="utf-8"))
    assert kept["results"] and kept["task"] == arguments[0]
    assert (tmp_path / f"{arguments[0]}.png").read_bytes().startswith(b"\x89PNG")
    assert "---" in capsys.readouterr().out


def test_text_counts_every_byte_once_and_off_ignores_the_past(run, tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 40, encoding="utf-8")
    (tmp_path / "b.txt").write_text("hgfedcba" * 40, encoding="utf-8")
    assert asked(run, tmp_path, "text", "--files", tmp_path / "a.txt", tmp_path / "b.txt") == 0
    found = json.loads((tmp_path / "text.json").read_text(encoding="utf-8"))["results"]
    reader = Reader(hope.load(run / "checkpoint.npz")[0], "off")
    nats = []
    for text in ("abcdefgh" * 40, "hgfedcba" * 40):
        read = encode(text)[None]
        nats += [reader.step(read[:, t:t + 33])[0] for t in range(0, 319, 32)]
    assert found["off"]["bits per byte"] == pytest.approx(np.mean(np.hstack(nats)) / evaluate.BIT, rel=1e-5)
    assert found["off"]["state bytes"] == 0 < found["memory"]["state bytes"]


def test_multiple_choice_takes_the_likelier_choice(run, tmp_path):
    m = hope.load(run / "checkpoint.npz")[0]
    context, choices = "x" * 40, ["ab", "cdef", "g"]  # longer than a segment
    whole = [Reader(m, segment=64).step(encode(context + c)[None])[0][0, -len(c):] for c in choices]
    plain, per_byte = np.argmin([n.sum() for n in whole]), np.argmin([n.mean() for n in whole])
    for answer, name in ((plain, "plain"), (per_byte, "per byte")):
        line = {"context": context, "choices": choices, "answer": int(answer)}
        (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        assert asked(run, tmp_path, "multiple-choice", "--questions", tmp_path / "q.jsonl") == 0
        found = json.loads((tmp_path / "multiple-choice.json").read_text(encoding="utf-8"))["results"]
        assert found[name] == 1 and found["chance"] == pytest.approx(1 / 3) and found["questions"] == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (("text", "--learn", "everything"), "learn is 'everything'; choose from off"),
    (("text", "--reset", "daily"), "reset is 'daily'"),
    (("text", "book.txt"), "text takes no name such as 'book.txt'; files are given by --files"),
    (("recall", "--batch", "0"), "batch is 0"),
    (("recall", "--pairs", "0,2"), "pairs is 0,2"),
    (("recall", "--pears", "2"), "--pears"),
    (("forgetting", "--tasks", __file__), "two files"),
    (("multiple-choice",), "--questions"),
    (("multiple-choice", "--questions", "/nowhere.jsonl"), "/nowhere.jsonl cannot be read"),
    ((), "which task? choose from text"),
    (("optimisers", "--optimizers", "adamv"), "did you mean 'adamw'"),
    (("optimisers", "--preset", "tinny"), "did you mean 'tiny'"),
    (("optimisers", "--rates", "0,1"), "--rates"),
    (("claims", "recal"), "did you mean 'recall'"),
    (("claims", "--quick"), "--out"),
    (("claims", "recall", "--out", f"{__file__}/below"), "is a file; choose another --out"),
    (("recall", "--pairs", ""), "a list with nothing in it"),
    (("languages", "--lengths", "x"), "is no list of whole numbers"),
    (("forgetting", "--chunks", ""), "a list with nothing in it"),
    (("recall", "--pairs", "2,700"), "700 pairs need as many names"),
    (("needle", "--contexts", "64"), "needs a context of"),
    (("languages", "--lengths", "32,2"), "words of 2 symbols"),
    (("recall", "--steps", "-7"), "steps is -7"),
    (("optimisers", "adamw"), "optimisers takes no name such as 'adamw'"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_gets_one_line(run, capsys, arguments, message):
    assert main([*arguments, "--run", str(run), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_shards_are_no_texts(run, tmp_path, capsys):
    (tmp_path / "index.json").write_text('{"format": "nested-learning shards"}', encoding="utf-8")
    for task, flag in (("text", "--files"), ("optimisers", "--files"), ("forgetting", "--tasks")):
        assert asked(run, tmp_path / "out", task, flag, tmp_path, tmp_path) == 2
        said = capsys.readouterr().err
        assert "is a folder of shards, and texts are wanted" in said and said.count("\n") == 1


def test_needles_are_asked_in_contexts_that_hold_them(run, tmp_path):
    assert asked(run, tmp_path, "needle", "--samples", 1, "--batch", 1) == 0
    found = json.loads((tmp_path / "needle.json").read_text(encoding="utf-8"))["results"]
    assert [len(scores) for scores in found.values()] == [4, 4, 4]


def test_a_rate_at_which_predictions_are_no_numbers_is_said(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("words and words " * 30, encoding="utf-8")
    with np.errstate(all="ignore"):
        assert asked(run, tmp_path, "text", "--files", tmp_path / "a.txt", "--learn", "all", "--rate", "1e30") == 1
    assert "choose a lower --rate" in capsys.readouterr().err and not (tmp_path / "text.json").exists()


def test_a_picture_that_cannot_be_drawn_costs_no_numbers(run, tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise ImportError("no backend")
    monkeypatch.setattr(evaluate, "draw_lines", broken)
    assert asked(run, tmp_path, "passkey", "--samples", 1, "--batch", 1) == 0
    said = capsys.readouterr().out
    assert "no pictures: ImportError: no backend" in said and "context" in said and "and .png" not in said
    assert (tmp_path / "passkey.json").exists()


def test_tasks_of_one_name_keep_apart(run, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(f"{folder} word " * 200, encoding="utf-8")
    files = [tmp_path / folder / "text.txt" for folder in ("a", "b")]
    assert asked(run, tmp_path, "forgetting", "--steps", 1, "--batch", 2, "--tasks", *files) == 0
    said = capsys.readouterr().out
    assert all(f"after {file}" in said for file in files)


def test_where_nothing_can_be_written_is_said_before_anything_is_measured(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setitem(evaluate.TASKS, "text", None)
    monkeypatch.setattr(evaluate.optimisers, "compare", None)
    for task in ("text", "optimisers"):
        for out in ("file", "file/below"):
            assert main([task, "--run", str(run), "--quiet", "--out", str(tmp_path / out)]) == 2
            said = capsys.readouterr().err
            assert f"{tmp_path / 'file'} is a file; choose another --out" in said and said.count("\n") == 1


def test_a_missing_run_is_said(tmp_path, capsys):
    assert main(["text", "--run", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


GOOD = '{"context": "a", "choices": ["b", "c"], "answer": 1}'


@pytest.mark.parametrize(("line", "message"), [
    ("{", "Expecting property name"), ("[]", "a question is an object"), ('{"choices": []}', "context is None"),
    (GOOD.replace(', "c"', ""), "choices is"), (GOOD.replace('"c"', "5"), "choices is"),
    (GOOD.replace('"c"', '""'), "choices is"), (GOOD.replace("1}", "2}"), "answer is 2"),
    (GOOD.replace("1}", "true}"), "answer is True"), (GOOD.replace("1}", "-1}"), "answer is -1")])
def test_a_line_that_is_no_question_is_named_by_its_number_in_the_file(tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(f"{GOOD}\n\n{line}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"q.jsonl, line 3: {message}"):
        list(questions.questions(tmp_path / "q.jsonl"))


def test_a_byte_order_mark_and_a_line_separator_inside_a_text_are_read(tmp_path):
    text = GOOD.replace('"a"', '"a\u2028b"')
    (tmp_path / "q.jsonl").write_text(text, encoding="utf-8-sig")
    assert list(questions.questions(tmp_path / "q.jsonl")) == [("a\u2028b", ["b", "c"], 1)]


def test_every_row_of_forgetting_begins_at_its_own_start(run, tmp_path):
    texts = [tmp_path / name for name in ("a.txt", "b.txt")]
    for n, path in enumerate(texts):
        path.write_text("".join(f"{i} and {n} are {i + n}\n" for i in range(300)), encoding="utf-8")
    asked_for = ("forgetting", "--tasks", *texts, "--steps", 3, "--lr", 0.05, "--batch", 2)
    found = []
    for chunks in (("1,2",), ("1", "1,2"), ("1,2", "1,2")):
        assert asked(run, tmp_path, *asked_for, "--chunks", *chunks) == 0
        kept = json.loads((tmp_path / "forgetting.json").read_text(encoding="utf-8"))["results"]
        found.append(kept["1,2 from the run's weights"]["matrix"])
    assert found[0] == found[1] == found[2]  # whatever was trained before it
    assert "1 from new weights" in json.dumps(list(asked_keys(run, tmp_path, asked_for)))


def asked_keys(run, out, asked_for):
    asked(run, out, *asked_for, "--chunks", "1")
    return json.loads((out / "forgetting.json").read_text(encoding="utf-8"))["results"]


def test_optimisers_are_compared_at_the_best_of_their_rates(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat; " * 400, encoding="utf-8")
    assert main(["optimisers", "--preset", "tiny", "--optimizers", "adamw", "sgd", "--rates", "1e-9,1e-3,1e12",
                 "--seeds", "2", "--steps", "3", "--files", str(tmp_path / "text.txt"), "--out", str(tmp_path),
                 "--quiet"]) == 0
    kept = json.loads((tmp_path / "optimisers.json").read_text(encoding="utf-8"))["results"]["optimisers"]
    for name in ("adamw", "sgd"):
        its = kept[name]
        assert its["rate"] == 1e-3 and not its["edge"] and list(its["sweep"]) == ["1e-09", "0.001", "1e+12"]
        assert len(its["bits per byte"]) == 2 and len({tuple(losses) for losses in its["losses"]}) == 2
    assert (tmp_path / "optimisers.png").read_bytes().startswith(b"\x89PNG") and "sgd" in capsys.readouterr().out


def test_a_best_rate_at_the_end_of_its_sweep_is_marked_and_a_run_that_diverges_is_not_chosen(monkeypatch):
    losses = {0.1: [3.0], 1.0: [2.0], 10.0: [float("nan")]}
    monkeypatch.setattr(optimisers, "trained", lambda *known: (losses[known[4]], 1.0, 1.0))
    given = evaluate.parser().parse_args(["optimisers", "--optimizers", "sgd", "--rates", "0.1,1", "--quiet"])
    assert optimisers.compare(given)["results"]["optimisers"]["sgd"]["edge"]
    given.rates = (0.1, 1.0, 10.0)
    found = optimisers.compare(given)["results"]["optimisers"]["sgd"]
    assert found["rate"] == 1.0 and not found["edge"]


def test_the_list_of_tasks_has_minutes_for_each(run, capsys):
    assert main(["--list", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    for task in (*evaluate.TASKS, "optimisers", "claims"):
        line, = [line for line in said.splitlines() if line.startswith(f"{task} ")]
        assert re.search(r" [\d.]+ (seconds|minutes|hours)", line) or task in ("optimisers", "claims")


# levels that move in streams ---------------------------------------------------------------------------------


def drifts(state):
    return [d.data for block in state.blocks for level in block.levels if level.drift for d in level.drift.values()]


def in_levels(*chunks):
    family = streams.Family(groups=2, words=3, meanings=4, said=1)
    return family, streams.placed(looking_back(family.config, 0), chunks, 0)


def test_a_tick_in_which_all_tokens_are_answers_is_learning_while_reading():
    family, m = in_levels(1, 2, 2, streams.NEVER)
    window = np.random.default_rng(0).integers(family.config.vocabulary, size=(2, 7))
    ours = theirs = None
    for _ in range(2):
        ours = streams.tick(m, window[:, :-1], window[:, 1:], ours or State.start(m.config))[1].detach()
        theirs = m.learn(window, theirs)[1]
    assert ours.clock == theirs.clock == 2 and ours.blocks[3].levels[0].drift is None
    assert len(drifts(ours)) == 6  # up and down of three levels; the fourth stands still
    for a, b in zip(drifts(ours), drifts(theirs), strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_questions_reach_initial_states_and_rates_through_the_move_only_in_training():
    family, m = in_levels(1, 1, 1, streams.NEVER)
    tokens, targets = family.draw(np.random.default_rng(0), 2)(0)
    for training in (True, False):
        for p in m.parameters():
            p.grad = None
        _, state = streams.tick(m, tokens, targets, State.start(m.config), training=training)
        m(tokens, state)[0].mean().backward()
        moved = [block.cms.log_rate.grad for block in m.blocks]
        assert [g is not None and bool(np.any(g != 0)) for g in moved] == [True] * 3 + [False]
        assert all(np.any(block.cms.levels[0].up.weight.grad != 0) for block in m.blocks)


def test_mlps_placed_in_levels_compute_what_the_trained_model_does():
    family = streams.Family(groups=2, words=3, meanings=4, said=1)
    trained = looking_back(family.config, 3)
    tokens = np.random.default_rng(0).integers(family.config.vocabulary, size=(2, 6))
    for chunks in streams.LEVELS.values():
        np.testing.assert_array_equal(streams.placed(trained, chunks, 0)(tokens)[0].data, trained(tokens)[0].data)


def test_a_stream_counts_only_meanings_that_were_told_before():
    family = streams.Family(groups=3, words=2, meanings=5, said=2)
    for seed in range(20):
        tokens, targets = family.stream(np.random.default_rng(seed), 2)
        assert tokens.shape == targets.shape == (2, 4 * (3 * 2 + 2))
        for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            told = {}
            for word, meaning, asked, nothing in zip(row[::2], row[1::2], wanted[::2], wanted[1::2], strict=True):
                assert nothing == IGNORE and asked == (told[word] if word in told else IGNORE)
                told[word] = meaning


def test_the_frontier_is_the_most_that_is_kept_where_enough_is_known():
    new, old = np.array([1.0, 0.95, 0.8]), np.array([0.2, 0.4, 0.9])
    assert [streams.frontier(new, old, least) for least in (0.5, 0.9, 1.0)] == [0.9, 0.4, 0.2]
    assert streams.frontier(new, old, 1.1) == 0


# claims -----------------------------------------------------------------------------------------------------


def test_a_sweep_takes_the_best_rate_on_a_seed_that_is_not_measured():
    study, seeds = Study(), []
    best = study.sweep("m", (1.0, 2.0, 3.0), lambda rate, seed: seeds.append(seed) or -abs(rate - 2))
    assert best == 2 and set(seeds) == {SWEEP} and SWEEP >= study.seeds
    assert study.sweeps == {"m": {"1": -1, "2": 0, "3": -1}}


def test_a_sweep_goes_on_beyond_a_best_rate_at_its_edge_and_a_rate_that_breaks_down_is_the_worst():
    def scored(best: float):
        def score(rate: float, seed: int) -> float:
            if rate > 50:
                raise FloatingPointError("the loss is nan")
            return -abs(np.log(rate / best))
        return score
    study = Study()
    assert study.sweep("above", (1.0, 2.0, 4.0), scored(16)) == 16
    assert list(study.sweeps["above"]) == ["1", "2", "4", "8", "16", "32"]
    assert study.sweep("below", (1.0, 2.0, 4.0), scored(0.5)) == 0.5
    assert list(study.sweeps["below"]) == ["0.25", "0.5", "1", "2", "4"]
    assert study.sweep("far", (1.0, 2.0, 4.0), scored(1e9)) == 32  # three more, and no further
    assert study.sweep("broken", (25.0, 50.0, 100.0), scored(1e9)) == 50
    assert study.sweep("level", (1.0, 2.0, 4.0), lambda rate, seed: 1.0) == 2 and len(study.sweeps["level"]) == 3
    assert claims.edges(study.sweeps) == ["far"]


def test_a_claim_whose_package_is_missing_is_left_out_or_refused_if_it_was_named(tmp_path, capsys, monkeypatch):
    def measure(study: Study) -> None:
        raise ImportError("the digits come with scikit-learn: pip install -r apps/claims/requirements.txt")
    monkeypatch.setattr(claims, "CLAIMS", {"optimisers": SimpleNamespace(measure=measure, PAPER="", __doc__="")})
    assert main(["claims", "--quick", "--out", str(tmp_path), "--quiet"]) == 0
    assert "optimisers is left out: the digits come with scikit-learn" in capsys.readouterr().out
    assert main(["claims", "optimisers", "--quick", "--out", str(tmp_path), "--quiet"]) == 2
    assert "pip install -r apps/claims/requirements.txt" in capsys.readouterr().err


def test_a_best_rate_at_the_edge_of_a_sweep_is_named():
    inside, outside = {"0.1": 1.0, "1": 3.0, "10": 2.0}, {"0.1": 1.0, "1": 2.0, "10": 3.0}
    assert claims.edges({"inside": inside, "outside": outside}) == ["outside"]


def test_a_claim_that_was_not_measured_is_in_the_table(tmp_path):
    table = claims.overview(tmp_path)
    assert all(f"| {name} |" in table for name in claims.CLAIMS)
    assert table.count("not measured") == len(claims.CLAIMS)


def test_the_list_of_claims_tells_the_minutes_of_those_measured(capsys):
    assert main(["claims", "--list"]) == 0
    lines, found = capsys.readouterr().out.splitlines(), claims.measured(claims.FOLDER)
    for line, name in zip(lines, claims.CLAIMS, strict=True):
        assert line.split()[0] == name
        if name in found:
            assert f"{found[name]['processor seconds'] / 60:.1f} min" in line


def test_a_claim_that_took_more_than_ten_minutes_of_a_core_is_a_long_one():
    for name, found in claims.measured(claims.FOLDER).items():
        assert claims.long(name) == (found["processor seconds"] > 600), name


def test_all_claims_are_those_of_at_most_ten_minutes_unless_the_long_ones_are_asked_for(tmp_path, monkeypatch, capsys):
    def claim(name: str, **more: bool) -> SimpleNamespace:
        def measure(study: Study) -> None:
            raise ImportError(f"{name} would run")  # which leaves it out, with a line
        return SimpleNamespace(measure=measure, PAPER="", __doc__="", **more)
    monkeypatch.setattr(claims, "CLAIMS", {"short": claim("short"), "endless": claim("endless", LONG=True)})
    for given, wanted in (((), {"short"}), (("--long",), {"short", "endless"})):
        assert main(["claims", "--out", str(tmp_path), "--quiet", *given]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == wanted
    assert main(["claims", "--list"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["?", "--long"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-languages", "writes", "variants"])
def test_a_claim_is_measured_drawn_and_entered_in_the_table(tmp_path, capsys, name):
    assert main(["claims", name, "--quick", "--out", str(tmp_path), "--quiet"]) == 0
    kept = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert kept["command"].endswith(name) and kept["seeds"] == 2 and kept["sweep"] and kept["scores"]
    sizes = list(kept["parameters"].values())
    assert max(sizes) / min(sizes) < 1.01
    assert (tmp_path / f"{name}.png").exists()
    assert f"[{name}]({name}.png)" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_claim_runs(tmp_path):
    pytest.importorskip("sklearn", reason="the claim on optimisers needs apps/claims/requirements.txt")
    assert main(["claims", "--quick", "--out", str(tmp_path), "--quiet"]) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == set(claims.CLAIMS)
