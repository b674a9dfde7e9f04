"""What is asked of a model in apps/tasks.py has the right answer."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.tasks import associative_recall, copy, formal_language, needle
from data import IGNORE

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


def test_an_unknown_language_or_a_length_without_a_word_is_an_error():
    for name, length in [("dyck", 9), ("anbncn", 2)]:
        with pytest.raises(ValueError, match=f"no language '{name}' with words up to {length} symbols"):
            formal_language(name, np.random.default_rng(0), 1, length)
