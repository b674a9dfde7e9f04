"""What is asked of a model in apps/tasks.py has the right answer."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.tasks import (
    HAY,
    KINDS,
    NEEDLES,
    VALUES,
    WORDS,
    associative_recall,
    copy,
    dictionaries,
    formal_language,
    fuzzy_recall,
    hidden,
    memorized,
    needle,
    needles,
    selective_copy,
    written_recall,
)
from apps.tasks import LANGUAGES as NAMES
from apps.tasks import words as named_words
from data import IGNORE, decode

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 4), st.data())
@few
def test_associative_recall_asks_for_what_was_shown(seed, batch, draw):
    keys = draw.draw(st.integers(1, 9))
    pairs = draw.draw(st.integers(1, keys))
    queries = draw.draw(st.integers(1, pairs))
    rng = np.random.default_rng(seed)
    tokens, targets = associative_recall(rng, batch, pairs, queries, keys, values=5)
    assert tokens.shape == targets.shape == (batch, 2 * pairs + queries)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        shown = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(shown) == pairs and len(set(row[2 * pairs :])) == queries
        assert all(0 <= key < keys <= value < keys + 5 for key, value in shown.items())
        assert answers == [IGNORE] * 2 * pairs + [shown[key] for key in row[2 * pairs :]]


def test_associative_recall_refuses_more_queries_than_pairs_and_more_pairs_than_keys():
    for pairs, queries, keys, rewritten in [(3, 4, 9, 0), (5, 2, 4, 0), (3, 2, 4, 4)]:
        with pytest.raises(ValueError, match=f"{queries} queries, {rewritten} rewritten, {pairs} pairs, {keys} keys"):
            associative_recall(np.random.default_rng(0), 1, pairs, queries, keys, 5, rewritten)


@given(seeds, st.integers(1, 3), st.integers(3, 9))
@few
def test_fuzzy_recall_asks_for_every_token_of_a_value_of_a_key_that_was_shown(seed, thirds, keys):
    pairs = 3 * thirds
    tokens, targets = fuzzy_recall(np.random.default_rng(seed), 2, pairs, keys, 5)
    assert tokens.shape == targets.shape == (2, 8 * pairs - 1)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        told, shown = [*row, answers[-1]], {}
        for half, asked in ((told[:4 * pairs], False), (told[4 * pairs:], True)):
            letters = "".join("k" if token < keys else "v" for token in half)
            for found in re.finditer("(k{1,3})(v{1,3})", letters):
                key, value = tuple(half[slice(*found.span(1))]), half[slice(*found.span(2))]
                assert shown.setdefault(key, value) == value
                first = found.start(2) + (4 * pairs if asked else 0) - 1  # answered one token before
                assert answers[first:first + len(value)] == (value if asked else [IGNORE] * len(value))
        assert len(shown) == pairs and sorted(map(len, shown)) == sorted([1, 2, 3] * thirds)


@pytest.mark.parametrize("pairs", [4, 12])
def test_fuzzy_recall_refuses_pairs_that_are_no_thirds_or_too_many(pairs):
    with pytest.raises(ValueError, match=f"{pairs} pairs: take a multiple of 3, at most 9"):
        fuzzy_recall(np.random.default_rng(0), 1, pairs, 3, 3)


@given(seeds, st.integers(1, 9), st.integers(0, 9), st.integers(1, 20))
@few
def test_selective_copying_asks_for_the_symbols_in_their_order(seed, count, blanks, symbols):
    tokens, targets = selective_copy(np.random.default_rng(seed), 3, count + blanks, count, symbols)
    assert tokens.shape == targets.shape == (3, 2 * count + blanks)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        word = [token for token in row[:count + blanks] if token]
        assert len(word) == count and all(2 <= token < symbols + 2 for token in word)
        assert row[count + blanks:] == [1] * count and answers == [IGNORE] * (count + blanks) + word


@given(seeds, seeds)
@few
def test_what_is_to_be_memorised_is_the_same_in_every_sample_and_never_shown(one, other):
    known: dict[int, int] = {}
    for seed in (one, other):
        tokens, targets = memorized(np.random.default_rng(seed), 4, 8, 9, 12)
        assert (tokens[:, 1::2] == 0).all() and (targets[:, ::2] == IGNORE).all()
        for key, value in zip(tokens[:, ::2].ravel().tolist(), targets[:, 1::2].ravel().tolist(), strict=True):
            assert 1 <= key <= 9 and 0 <= value < 12 and known.setdefault(key, value) == value


@given(seeds, st.integers(1, 9), st.data())
@few
def test_the_last_value_of_a_key_is_asked(seed, pairs, draw):
    rewritten = draw.draw(st.integers(0, pairs))
    shown = 2 * (pairs + rewritten)
    tokens, targets = associative_recall(np.random.default_rng(seed), 3, pairs, pairs, 9, 5, rewritten)
    assert tokens.shape == targets.shape == (3, shown + pairs)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        last = dict(zip(row[:shown:2], row[1:shown:2], strict=True))  # of a key that comes twice, the second
        assert len(last) == pairs and len(set(row[2 * pairs : shown : 2])) == rewritten
        assert answers == [IGNORE] * shown + [last[key] for key in row[shown:]]


@given(seeds, st.integers(1, 4), st.integers(1, 9))
@few
def test_copy_asks_for_the_word_after_the_marker(seed, batch, length):
    tokens, targets = copy(np.random.default_rng(seed), batch, length, symbols=7)
    assert tokens.shape == targets.shape == (batch, 2 * length)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        word = row[:length]
        assert all(1 <= symbol <= 7 for symbol in word)
        assert [*row[length:], word[-1]] == [0, *word] and answers == [IGNORE] * length + word


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 20))
@few
def test_needle_asks_for_the_key_behind_the_first_marker(seed, batch, width, room):
    tokens, targets = needle(np.random.default_rng(seed), batch, 2 * width + room, width, symbols=7)
    assert tokens.shape == targets.shape == (batch, 2 * width + room)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        first, second = (i for i, token in enumerate(row) if token == 0)
        key = row[first + 1 : first + 1 + width]
        assert first + width < second == len(row) - width and len(key) == width and 0 < min(key)
        assert answers == [IGNORE] * (len(row) - width) + key and row[second + 1 :] == key[:-1]


def test_needle_hides_the_key_everywhere_and_refuses_one_that_does_not_fit():
    tokens, _ = needle(np.random.default_rng(0), 400, 12, 3, 7)
    assert set((tokens == 0).argmax(axis=1)) == set(range(6))
    with pytest.raises(ValueError, match="a key of 3 does not fit in 6 tokens"):
        needle(np.random.default_rng(0), 1, 6, 3, 7)


def balanced(word: str) -> bool:
    for opening, closing in ("13", "24"):
        depth = np.cumsum([(c == opening) - (c == closing) for c in word] or [0])
        if depth.min() < 0 or depth[-1]:
            return False
    return True


LANGUAGES = {  # name: symbols, membership of a whole word, lengths to enumerate, longest prefix to check
    "parity": ("12", lambda w: w.count("2") % 2 == 0, 8, 5),
    "aa": ("1", lambda w: re.fullmatch("(11)*", w), 12, 9),
    "abab": ("12", lambda w: re.fullmatch("(1212)*", w), 12, 7),
    "anbn": ("12", lambda w: w and w == "1" * (len(w) // 2) + "2" * (len(w) // 2), 12, 6),
    "anbncn": ("123", lambda w: w and w == "".join(c * (len(w) // 3) for c in "123"), 9, 6),
    "shuffle-dyck": ("1234", balanced, 8, 4),
}


@pytest.fixture(scope="module")
def words():
    """Every word of every language, up to a length, found by trying all strings."""
    found = {}
    for name, (symbols, member, longest, _) in LANGUAGES.items():
        strings = ("".join(s) for n in range(longest + 1) for s in product(symbols, repeat=n))
        found[name] = {word for word in strings if member(word)}
    return found


@pytest.mark.parametrize("name", LANGUAGES)
def test_targets_of_a_language_are_the_symbols_that_some_word_goes_on_with(words, name):
    longest = LANGUAGES[name][3]
    following: dict[str, set[int]] = {}
    for word in words[name]:
        for i in range(len(word) + 1):
            following.setdefault(word[:i], set()).add(int(word[i]) if i < len(word) else 0)
    checked = set()
    for length in range(len(LANGUAGES[name][0]), longest + 1):
        tokens, targets = formal_language(name, np.random.default_rng(length), 40, length)
        assert tokens.shape == targets.shape == (40, length)
        assert tokens.dtype == targets.dtype == np.int64
        for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
            word = "".join(map(str, row)).rstrip("0")
            assert "0" not in word and answers[len(word) :] == [IGNORE] * (length - len(word))
            for i in range(len(word)):
                legal = following[word[: i + 1]]
                assert answers[i] == sum(1 << symbol for symbol in legal), (word[: i + 1], legal)
                checked.add(word[: i + 1])
    assert len(checked) >= longest


@pytest.mark.parametrize("name", ["anbn", "anbncn", "shuffle-dyck"])
def test_rows_of_the_counting_languages_are_whole_words_of_many_kinds(name):
    tokens, _ = formal_language(name, np.random.default_rng(0), 60, 25)
    rows = ["".join(map(str, row)).rstrip("0") for row in tokens.tolist()]
    assert all(LANGUAGES[name][1](word) for word in rows)
    assert len(set(rows)) >= 25 // len(LANGUAGES[name][0])
    if name == "shuffle-dyck":
        assert {len(word) for word in rows} == {24} and any(re.search("1[^3]*2[^4]*3", word) for word in rows)


@given(seeds, st.integers(3, 40), st.data())
@few
def test_words_of_counting_languages_have_at_least_the_symbols_that_are_asked_for(seed, length, draw):
    least = draw.draw(st.integers(1, length))
    for name, letters in (("anbn", 2), ("anbncn", 3)):
        tokens, _ = formal_language(name, np.random.default_rng(seed), 50, length, least)
        found = set(np.count_nonzero(tokens, axis=1).tolist())
        whole = range(min(-(-least // letters), length // letters) * letters, length + 1, letters)
        assert found <= set(whole) and (len(whole) > 4 or found == set(whole))


def test_an_unknown_language_or_a_length_without_a_word_is_an_error():
    for name, length, wrong in [("dyck", 9, "no language 'dyck': choose among parity"),
                                ("anbncn", 2, "words of 2 symbols: those of anbncn have 3 or more")]:
        with pytest.raises(ValueError, match=wrong):
            formal_language(name, np.random.default_rng(0), 1, length)


def test_more_pairs_than_there_are_names_are_an_error():
    rng = np.random.default_rng(0)
    assert written_recall(rng, 1, 676)[0].shape == (1, 2 * 676 * 6 - 1)
    with pytest.raises(ValueError, match="677 pairs need as many names, and there are 676"):
        written_recall(rng, 1, 677)


@given(seeds, st.integers(1, 40))
@few
def test_every_recalled_value_was_shown_before(seed, pairs):
    rng = np.random.default_rng(seed)
    text, targets = written_recall(rng, 2, pairs)
    for row, target in zip(text, targets, strict=True):
        pieces = decode(row).split(" ")
        shown = dict(piece.split(":") for piece in pieces[:pairs])
        assert len(shown) == pairs
        for i in np.flatnonzero(target != IGNORE)[::2]:  # the position of the colon
            assert shown[decode(row[i - 2:i])] == decode(target[i:i + 2])
        assert np.sum(target != IGNORE) == 2 * pairs


@given(seeds, st.sampled_from(KINDS), st.integers(220, 700))
@few
def test_a_hidden_number_is_told_once_before_it_is_asked(seed, kind, length):
    rng = np.random.default_rng(seed)
    text, targets = hidden(rng, 2, length, kind)
    assert text.shape == targets.shape == (2, length)
    for row, target in zip(text, targets, strict=True):
        at = np.flatnonzero(target != IGNORE)
        numbers = [decode(target[at[i:i + 5]]) for i in range(0, len(at), 5)]
        assert len(numbers) == (2 if kind == "multi-value" else 1)
        for number in numbers:
            assert decode(row).count(f"number is {number}. ") >= 1
            assert decode(row[:at[0] + 1]).rindex("number is ") > decode(row).index(number)


def test_a_context_too_short_for_what_it_hides_is_refused():
    with pytest.raises(ValueError, match="single needs a context of"):
        hidden(np.random.default_rng(0), 1, 20, "single")


def test_every_language_is_named_by_its_first_token():
    text, targets = named_words(np.random.default_rng(0), 2, 12)
    assert text.shape == (2 * len(NAMES), 13)
    assert text[::2, 0].tolist() == list(range(8, 8 + len(NAMES)))
    assert np.all(targets[:, 0] == IGNORE)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.booleans())
@few
def test_a_group_read_tells_the_meaning_of_each_of_its_words_once(seed, groups, size, meanings, own):
    meanings = meanings + groups * size if own else meanings
    read, told = dictionaries(np.random.default_rng(seed), 2, groups, size, meanings, own), [{}, {}]
    for group in [*range(groups)] * 2:
        tokens, targets = read(group)
        assert tokens.shape == targets.shape == (2, 2 * size) and np.all(targets[:, 1::2] == IGNORE)
        assert np.array_equal(targets[:, ::2], tokens[:, 1::2])
        for row, known in zip(tokens.tolist(), told, strict=True):
            said = dict(zip(row[::2], row[1::2], strict=True))
            assert sorted(said) == list(range(group * size, (group + 1) * size))
            assert all(0 <= m - groups * size < meanings for m in said.values())
            assert all(known.setdefault(word, m) == m for word, m in said.items())  # said again, it means the same
    assert not own or all(len(set(known.values())) == groups * size for known in told)


def test_words_cannot_have_a_meaning_each_out_of_fewer():
    with pytest.raises(ValueError, match="6 words cannot have a meaning each, out of 5"):
        dictionaries(np.random.default_rng(0), 1, 2, 3, 5, own=True)


@given(seeds, st.sampled_from(list(NEEDLES)), st.integers(45, 90))
@few
def test_needles_are_asked_for_as_they_were_last_told(seed, kind, length):
    count, times, size, asked = NEEDLES[kind]
    tokens, targets = needles(np.random.default_rng(seed), 2, length, kind)
    assert tokens.shape == targets.shape == (2, length) and 0 <= tokens.min() <= tokens.max() < len(WORDS)
    questions = (1 + size) * asked
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        text, told = row[:-questions], {}
        for i, token in enumerate(text):
            if len(HAY) <= token < len(WORDS) - len(VALUES):
                told[token] = text[i + 1:i + 1 + size]
        assert len(told) == count and sum(token >= len(HAY) for token in text) == count * times * (1 + size)
        assert answers[:-questions] == [IGNORE] * (length - questions)
        for q in range(length - questions, length, 1 + size):
            assert row[q + 1:q + 1 + size] == told.pop(row[q]) == answers[q:q + size]
            assert answers[q + size] == IGNORE


def test_needles_that_do_not_fit_or_that_nobody_knows_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="facts needs more than 24 words, not 24"):
        needles(rng, 1, 24, "facts")
    with pytest.raises(ValueError, match="no needles of kind 'haystack'"):
        needles(rng, 1, 99, "haystack")
