"""What can be asked of a model so that the right answer is known?  Recall, copying, needles, formal languages.

Each task draws (tokens, targets), both (B,T), with IGNORE where nothing is asked.

Legend: B batch, T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from data import IGNORE, Tokens


def associative_recall(
    rng: Generator, batch: int, pairs: int, queries: int, keys: int, values: int, rewritten: int = 0
) -> tuple[Tokens, Tokens]:
    """k₁ v₁ … kₙ vₙ, then different ones of these keys, each asking for its value.

    Multi-query associative recall (Arora et al. 2023, Zoology). Keys are tokens below `keys`, values follow.
    Before the questions, `rewritten` of the keys are shown once more with another value: the last one counts.
    """
    if not max(queries, rewritten) <= pairs <= keys:
        raise ValueError(f"{queries} queries, {rewritten} rewritten, {pairs} pairs, {keys} keys: neither of the "
                         "first two may be more than the pairs, nor these than the keys")
    key = rng.permuted(np.tile(np.arange(keys), (batch, 1)), axis=1)[:, :pairs]
    value = rng.integers(keys, keys + values, (batch, pairs))
    asked, again = (rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1)[:, :n]
                    for n in (queries, rewritten))
    new = rng.integers(keys, keys + values, again.shape)
    shown = np.stack([np.hstack([key, np.take_along_axis(key, again, axis=1)]), np.hstack([value, new])], axis=2)
    np.put_along_axis(value, again, new, axis=1)
    shown = shown.reshape(batch, -1)  # (B, 2 (pairs + rewritten))
    tokens = np.hstack([shown, np.take_along_axis(key, asked, axis=1)])
    return tokens, np.hstack([np.full_like(shown, IGNORE), np.take_along_axis(value, asked, axis=1)])


def copy(rng: Generator, batch: int, length: int, symbols: int) -> tuple[Tokens, Tokens]:
    """A word of `length` symbols from 1 … symbols, the marker 0, and the word again, to be predicted."""
    word = rng.integers(1, symbols + 1, (batch, length))
    tokens = np.hstack([word, np.zeros((batch, 1), np.int64), word[:, :-1]])  # (B, 2 length)
    return tokens, np.hstack([np.full_like(word, IGNORE), word])


def needle(rng: Generator, batch: int, length: int, width: int, symbols: int) -> tuple[Tokens, Tokens]:
    """Noise from 1 … symbols that hides the marker 0 and a key of `width` symbols; a second 0 asks for it."""
    room = length - 2 * width
    if width < 1 or room < 1:
        raise ValueError(f"a key of {width} does not fit in {length} tokens: need 1 ≤ width < length / 2")
    tokens = rng.integers(1, symbols + 1, (batch, length))
    key = rng.integers(1, symbols + 1, (batch, width))
    marked = np.hstack([np.zeros((batch, 1), np.int64), key])
    place = rng.integers(room, size=(batch, 1)) + np.arange(width + 1)
    np.put_along_axis(tokens, place, marked, axis=1)
    tokens[:, -width:] = marked[:, :-1]
    return tokens, np.hstack([np.full((batch, length - width), IGNORE), key])


def formal_language(name: str, rng: Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
    """Words of a formal language; the target at t is the set of symbols that may follow tokens[:t+1].

    The character prediction of Bhattamishra et al. 2020, with the set {s, …} as one class, Σ 2ˢ; usually
    a word counts as known when all its targets are. Symbols are 1, 2, …; 0 ends a word and pads the row.
        parity  an even number of 2s      anbn    1ⁿ2ⁿ, n > 0     shuffle-dyck  1 opens, 3 closes; 2 opens,
        aa      (11)*      abab  (1212)*  anbncn  1ⁿ2ⁿ3ⁿ, n > 0                 4 closes, whatever 1 and 3 do
    """
    t = np.tile(np.arange(length), (batch, 1))  # (B,T)
    if name == "shuffle-dyck":
        return _shuffle_dyck(rng, batch, length)
    if name == "parity":
        tokens = rng.integers(1, 3, (batch, length))
        return tokens, 0b110 + (np.cumsum(tokens == 2, axis=1) % 2 == 0)
    if name == "aa":
        return np.ones_like(t), 0b10 + t % 2
    if name == "abab":
        return 1 + t % 2, (0b100 >> t % 2) + (t % 4 == 3)
    if name not in ("anbn", "anbncn") or length < (letters := len(name) // 2):
        names = "parity, aa, abab, anbn, anbncn, shuffle-dyck"
        raise ValueError(f"no language {name!r} with words up to {length} symbols: choose among {names}")
    n = rng.integers(1, length // letters + 1, (batch, 1))
    tokens = np.where(t < letters * n, t // n + 1, 0)
    following = np.where(t + 1 < letters * n, 0b10 << (t + 1) // n, 0b1)
    return tokens, np.where(tokens == 0, IGNORE, np.where(t < n, 0b110, following))


def _shuffle_dyck(rng: Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
    depth, even = np.zeros((batch, 2), np.int64), length - length % 2
    tokens, targets = np.zeros((batch, length), np.int64), np.full((batch, length), IGNORE)
    for t in range(even):
        can_open = np.repeat(depth.sum(axis=1, keepdims=True) < even - t, 2, axis=1)  # and close in time
        chosen = ((1 - rng.random((batch, 4))) * np.hstack([can_open, depth > 0])).argmax(axis=1)
        depth[np.arange(batch), chosen % 2] += np.where(chosen < 2, 1, -1)
        tokens[:, t] = chosen + 1
        targets[:, t] = 0b110 + (depth > 0) @ [0b1000, 0b10000] + (depth == 0).all(axis=1)
    return tokens, targets
