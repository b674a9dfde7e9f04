"""What can be asked of a model so that the right answer is known?  Recall, copying, needles, languages.

Each task draws (tokens, targets), both (B,T), with IGNORE where nothing is asked.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from data import IGNORE, Text, Tokens

Drawn = tuple[Tokens, Tokens]
Part = Callable[[int], Drawn]  # from the number of a task in a stream of tasks
LANGUAGES = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle-dyck")
KINDS = ("single", "multi-key", "multi-value")  # of needles hidden in text
NAMES = 26 * 26  # of two letters, for pairs to be recalled
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def associative_recall(
    rng: Generator, batch: int, pairs: int, queries: int, keys: int, values: int, rewritten: int = 0
) -> Drawn:
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


def copy(rng: Generator, batch: int, length: int, symbols: int) -> Drawn:
    """A word of `length` symbols from 1 … symbols, the marker 0, and the word again, to be predicted."""
    word = rng.integers(1, symbols + 1, (batch, length))
    tokens = np.hstack([word, np.zeros((batch, 1), np.int64), word[:, :-1]])  # (B, 2 length)
    return tokens, np.hstack([np.full_like(word, IGNORE), word])


def fuzzy_recall(rng: Generator, batch: int, pairs: int, keys: int, values: int) -> Drawn:
    """Recall where keys and values are of one, two and three tokens, as many of each; every pair is asked again.

    A task of MAD (Poli et al. 2024). Keys are made of tokens below `keys`, values of those that follow; asked is every
    token of a value, the first at the last token of its key. ValueError if pairs are no multiple of three.
    """
    if pairs % 3 or pairs > 3 * keys:
        raise ValueError(f"{pairs} pairs: take a multiple of 3, at most {3 * keys} of {keys} tokens")
    lengths, rows = np.repeat([1, 2, 3], pairs // 3), []
    for _ in range(batch):
        names: dict[tuple[int, ...], None] = {}  # different ones, in order
        for length in rng.permutation(lengths).tolist():
            while (name := tuple(rng.integers(keys, size=length).tolist())) in names:
                pass
            names[name] = None
        told = [rng.integers(keys, keys + values, n).tolist() for n in rng.permutation(lengths).tolist()]
        shown = [[*name, *value] for name, value in zip(names, told, strict=True)]
        again = [shown[i] for i in rng.permutation(pairs)]
        rows.append([token for pair in (*shown, *again) for token in pair])
    text = np.array(rows)  # (B, 8 pairs)
    asked = (text >= keys) & (np.arange(text.shape[1]) >= text.shape[1] // 2)
    return text[:, :-1], np.where(asked, text, IGNORE)[:, 1:]


def selective_copy(rng: Generator, batch: int, length: int, count: int, symbols: int) -> Drawn:
    """`count` of 2 … symbols + 1 scattered over `length` blanks 0, then as many 1s that ask for them in turn (MAD)."""
    word = rng.integers(2, symbols + 2, (batch, count))
    tokens = np.zeros((batch, length), np.int64)
    places = np.sort(rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)[:, :count], axis=1)
    np.put_along_axis(tokens, places, word, axis=1)
    return np.hstack([tokens, np.ones_like(word)]), np.hstack([np.full_like(tokens, IGNORE), word])


def memorized(rng: Generator, batch: int, length: int, keys: int, values: int) -> Drawn:
    """Keys, each before a 0 that asks for its value; the dictionary is always the same and never shown (MAD)."""
    dictionary = np.random.default_rng(0).integers(values, size=keys)
    key = rng.integers(keys, size=(batch, length))
    pair = np.stack([1 + key, np.zeros_like(key)], axis=2)
    told = np.stack([np.full_like(key, IGNORE), dictionary[key]], axis=2)
    return pair.reshape(batch, -1), told.reshape(batch, -1)


def needle(rng: Generator, batch: int, length: int, width: int, symbols: int) -> Drawn:
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


def formal_language(name: str, rng: Generator, batch: int, length: int, least: int = 1) -> Drawn:
    """Words of a formal language; the target at t is the set of symbols that may follow tokens[:t+1].

    The character prediction of Bhattamishra et al. 2020, with the set {s, …} as one class, Σ 2ˢ; usually
    a word counts as known when all its targets are. Symbols are 1, 2, …; 0 ends a word and pads the row. Those of
    aⁿbⁿ and aⁿbⁿcⁿ have `least` to `length` symbols, every n as often; all others `length`, or one fewer.
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
    if name not in ("anbn", "anbncn"):
        raise ValueError(f"no language {name!r}: choose among {', '.join(LANGUAGES)}")
    if length < (letters := len(name) // 2):
        raise ValueError(f"words of {length} symbols: those of {name} have {letters} or more")
    n = rng.integers(max(1, min(-(-least // letters), length // letters)), length // letters + 1, (batch, 1))
    tokens = np.where(t < letters * n, t // n + 1, 0)
    following = np.where(t + 1 < letters * n, 0b10 << (t + 1) // n, 0b1)
    return tokens, np.where(tokens == 0, IGNORE, np.where(t < n, 0b110, following))


def _shuffle_dyck(rng: Generator, batch: int, length: int) -> Drawn:
    depth, even = np.zeros((batch, 2), np.int64), length - length % 2
    tokens, targets = np.zeros((batch, length), np.int64), np.full((batch, length), IGNORE)
    for t in range(even):
        can_open = np.repeat(depth.sum(axis=1, keepdims=True) < even - t, 2, axis=1)  # and close in time
        chosen = ((1 - rng.random((batch, 4))) * np.hstack([can_open, depth > 0])).argmax(axis=1)
        depth[np.arange(batch), chosen % 2] += np.where(chosen < 2, 1, -1)
        tokens[:, t] = chosen + 1
        targets[:, t] = 0b110 + (depth > 0) @ [0b1000, 0b10000] + (depth == 0).all(axis=1)
    return tokens, targets


def written_recall(rng: Generator, batch: int, pairs: int) -> Drawn:
    """Multi-query recall in bytes: "ab:37 cd:12 …", then the same pairs in another order, values asked."""
    if pairs > NAMES:
        raise ValueError(f"{pairs} pairs need as many names, and there are {NAMES} of two letters: ask for fewer")
    names = rng.permuted(np.tile(np.arange(NAMES), (batch, 1)), axis=1)[:, :pairs]
    values = rng.integers(100, size=(batch, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (batch, 1)), axis=1)
    colon, space = np.full_like(names, ord(":")), np.full_like(names, ord(" "))
    shown = np.stack([97 + names // 26, 97 + names % 26, colon, 48 + values // 10, 48 + values % 10, space],
                     axis=2)  # (B,pairs,6)
    again = np.take_along_axis(shown, order[:, :, None], axis=1)
    text = np.concatenate([shown, again], axis=1).reshape(batch, -1)
    asked = np.tile(np.repeat([False, True], pairs)[:, None] & np.isin(np.arange(6), (3, 4)), (batch, 1, 1))
    return text[:, :-1], np.where(asked.reshape(batch, -1), text, IGNORE)[:, 1:]


def hidden(rng: Generator, batch: int, length: int, kind: str, hay: Text | None = None) -> Drawn:
    """A number hidden in `length` bytes of hay (repeated sentences, if none), and asked for at the end.

    multi-key hides four sentences with four names and asks for one; multi-value hides two numbers of one name
    and asks for both, in their order. ValueError if the sentences do not fit.
    """
    rows = []
    for _ in range(batch):
        count = {"single": 1, "multi-key": 4, "multi-value": 2}[kind]
        names = [f"key {i}" for i in 10 + rng.choice(90, count, replace=False)]
        if kind != "multi-key":
            names = ["pass"] * count
        numbers = [str(n) for n in rng.integers(10000, 100000, count)]
        said = [f"The {name} number is {number}. " for name, number in zip(names, numbers, strict=True)]
        i = int(rng.integers(count))
        question = "".join(said) if kind == "multi-value" else said[i]
        answers = numbers if kind == "multi-value" else numbers[i:i + 1]
        room = length + 1 - sum(map(len, said)) - len(question)
        if room < count:
            raise ValueError(f"{kind} needs a context of {length + count - room} bytes, not {length}")
        if hay:
            start = int(rng.integers(max(len(hay) - room, 1)))
            noise = hay.read(start, min(start + room, len(hay))).tobytes().ljust(room)
        else:
            noise = (GRASS * (room // len(GRASS) + 1)).encode()[:room]
        cuts = [0, *sorted(rng.integers(room + 1, size=count).tolist()), room]
        text = b"".join(noise[a:b] + sentence.encode() for (a, b), sentence
                        in zip(pairwise(cuts), [*said, question], strict=True))
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
        target, at = np.full_like(tokens, IGNORE), len(text) - len(question)
        for number in answers:
            at = text.index(f"is {number}".encode(), at) + 3
            target[at:at + 5] = tokens[at:at + 5]
        rows.append((tokens[:-1], target[1:]))
    return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def words(rng: Generator, rows: int, length: int, names: Sequence[str] = LANGUAGES, least: int = 1) -> Drawn:
    """Words of formal languages, `rows` of each; a first token, 8 + its number, names the language."""
    tokens, targets = [], []
    for name in names:
        word, following = formal_language(name, rng, rows, length, least)
        tokens.append(np.hstack([np.full((rows, 1), 8 + LANGUAGES.index(name)), word]))
        targets.append(np.hstack([np.full((rows, 1), IGNORE), following]))
    return np.vstack(tokens), np.vstack(targets)


def dictionaries(rng: Generator, batch: int, groups: int, words: int, meanings: int, own: bool = False) -> Part:
    """Groups of words, and a meaning for each, dealt anew: how to read a group.

    A segment (B, 2·words) says all words of a group in random order, each before its meaning, which is asked there.
    Tokens: words, group by group, then meanings. own: no two words have one meaning; ValueError if there are too few.
    """
    if own and meanings < groups * words:
        raise ValueError(f"{groups * words} words cannot have a meaning each, out of {meanings}")
    if own:
        meaning = rng.permuted(np.tile(np.arange(meanings), (batch, 1)), axis=1)[:, :groups * words]
    else:
        meaning = rng.integers(meanings, size=(batch, groups * words))

    def read(group: int) -> Drawn:
        word = group * words + rng.permuted(np.tile(np.arange(words), (batch, 1)), axis=1)
        said = groups * words + np.take_along_axis(meaning, word, axis=1)
        tokens = np.stack([word, said], axis=2).reshape(batch, -1)
        return tokens, np.stack([said, np.full_like(said, IGNORE)], axis=2).reshape(batch, -1)
    return read


HAY = tuple("the of and to a in is it that was for on are as with they be at one have this from by not but what all "
            "were when we there can".split())  # words that say nothing, the most frequent first
KEYS = tuple("anna ben cleo dan emma finn gina hugo iris jack kate leo mary nick olga paul".split())
VALUES = tuple("attic barn cellar desert escalator forest garden harbour island jungle kitchen library market "
               "nursery office palace".split())
WORDS = HAY + KEYS + VALUES
NEEDLES = {  # kind: needles, how often each is told, words of its value, needles asked for
    "single, repeated": (1, 1, 1, 1), "single": (1, 1, 1, 1), "long": (1, 1, 4, 1), "multi-key": (4, 1, 1, 1),
    "multi-query": (4, 1, 1, 4), "facts": (4, 2, 1, 4)}


def needles(rng: Generator, batch: int, length: int, kind: str) -> Drawn:
    """Who is where, hidden among words that say nothing, and asked for at the end: tokens are the numbers of WORDS.

    A needle is a key and its value; where a key is told again ("facts"), the last value counts. The hay is drawn as
    words are in texts, the n-th as often as 1/n, or ("single, repeated") it is one sentence, repeated. ValueError for
    an unknown kind, or where the needles do not fit.
    """
    if kind not in NEEDLES:
        raise ValueError(f"no needles of kind {kind!r}: choose among {', '.join(NEEDLES)}")
    count, times, size, asked = NEEDLES[kind]
    told, span = count * times, 1 + size
    room = length - span * (told + asked)
    if room < 1:
        raise ValueError(f"{kind} needs more than {length - room} words, not {length}")
    common = 1 / np.arange(1, len(HAY) + 1)
    hay = rng.choice(len(HAY), (batch, room), p=common / common.sum())
    if kind.endswith("repeated"):
        hay = np.tile(np.arange(12), (batch, room // 12 + 1))[:, :room]
    key = len(HAY) + rng.permuted(np.tile(np.arange(len(KEYS)), (batch, 1)), axis=1)[:, :count]  # (B,count)
    value = rng.permuted(np.tile(np.arange(len(VALUES)), (batch, told, 1)), axis=2)[:, :, :size] + len(HAY + KEYS)
    turn = rng.permuted(np.tile(np.arange(count), (batch, times)), axis=1)
    needle = np.concatenate([np.take_along_axis(key, turn, axis=1)[:, :, None], value], axis=2)  # (B,told,1+size)
    last = told - 1 - np.argmax(turn[:, ::-1, None] == np.arange(count), axis=1)  # which needle is a key's last
    order = rng.permuted(np.tile(np.arange(count), (batch, 1)), axis=1)[:, :asked]
    question = np.take_along_axis(needle, np.take_along_axis(last, order, axis=1)[:, :, None], axis=1)
    place = np.sort(rng.integers(room + 1, size=(batch, told)), axis=1) + span * np.arange(told)  # where needles begin
    tokens = np.full((batch, length), -1)
    for i in range(span):
        np.put_along_axis(tokens, place + i, needle[:, :, i], axis=1)
    tokens[:, length - span * asked:] = question.reshape(batch, -1)
    tokens[tokens < 0] = hay.ravel()
    targets = np.full_like(tokens, IGNORE)
    for i in range(asked):
        start = length - span * (asked - i)
        targets[:, start:start + size] = tokens[:, start + 1:start + span]
    return tokens, targets
