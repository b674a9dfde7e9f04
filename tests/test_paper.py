"""What PAPER.md promises: its names exist, its links lead there, what the code cites is in it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "PAPER.md").read_text(encoding="utf-8")

spec = importlib.util.spec_from_file_location("equation_index", ROOT / "docs" / "index.py")
assert spec and spec.loader
index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(index)

SOURCES = index.sources()
CODE = [source for source in SOURCES if not source.file.startswith("tests/")]
NAMES = set().union(*(source.names for source in SOURCES)) | {"docs/index.py"}
ROW = pytest.mark.parametrize("row", index.ROWS, ids=lambda row: row.numbers or row.formula.split(":")[0])


def plain(text: str) -> str:
    """One line, without the marks of comments that go on."""
    return re.sub(r"\s*\n\s*(# ?)?", " ", text)


# --- names and numbers --------------------------------------------------------------------------------------


def test_the_tables_and_their_links_are_what_the_code_says():
    _, committed, _ = index.split(TEXT)
    assert committed == index.table(SOURCES), "PAPER.md is behind the code: run `python docs/index.py`"


def test_every_link_to_a_line_leads_to_the_definition_of_its_name():
    found = re.findall(r"\[`([\w/]+\.py)::(\w+)(\[\"[\w-]+\"\])?`\]\(([\w/]+\.py)#L(\d+)\)", TEXT)
    assert len(found) > 60 and any(row for *_, row, _, _ in found)
    for file, name, row, target, line in found:
        assert file == target
        there = (ROOT / target).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        defines = rf"\s*{row.strip('[]')}:" if row else rf"\s*((async )?def|class) {name}\b|{name}\b.* = "
        assert re.match(defines, there), f"{target}:{line} is {there!r}"


def test_the_first_link_of_a_row_is_to_the_line_that_is_most_about_it():
    first = {row.numbers: index.places(row, SOURCES)[0] for row in index.ROWS if index.places(row, SOURCES)}
    assert first["A 88"] == "titans.py::SelfModifyingTitans.write"
    assert first["A 90"] == "titans.py::SelfModifyingTitans.chunk"
    assert first["A 65"] == 'memory.py::RULES["delta"]'


def test_every_row_with_a_number_can_be_linked_to():
    anchors = re.findall(r'<a id="([\w-]+)"></a>', TEXT)
    assert len(anchors) == len(set(anchors)) == sum(row.numbers.startswith("A") for row in index.ROWS)


def test_every_link_to_a_test_leads_to_its_file():
    found = re.findall(r"\[`(test_\w+)`\]\((tests/\w+\.py)\)", TEXT)
    assert len(found) > 60 and {f"{file}::{name}" for name, file in found} <= NAMES


def test_every_function_and_test_named_in_the_paper_exists():
    named = set(re.findall(r"(?<!\[)`((?:\w+/)*\w+\.py(?:::[\w.]+)?)`", TEXT))
    missing = sorted(named - NAMES)
    assert not missing, (
        f"{missing} do not exist: correct the name in docs/index.py or PAPER.md, "
        "then run `python docs/index.py`"
    )


def test_every_equation_of_the_paper_stands_in_one_row():
    found = [number for row in index.ROWS for number in index.numbers(row.numbers)]
    assert len(found) == len(set(found))
    assert {number for number in found if number[0] == "A" and number[1] == " "} == {
        f"A {n}" for n in range(1, index.LAST + 1)}  # fmt: skip
    assert list(index.SHORT) == list(range(1, 32))


def test_every_citation_in_code_is_of_a_row_and_short_numbers_are_those_of_the_long_ones():
    known = set().union(*(index.numbers(row.numbers) for row in index.ROWS))
    for source in SOURCES:
        for place, cited in source.citations:
            short = {number for number in cited if number[0] == "N"}
            unknown = sorted(number for number in cited - known if number[0] == "A")
            assert not unknown, (
                f"{place} cites {unknown}: give it a row in docs/index.py and run `python docs/index.py`")  # fmt: skip
            for number in short:
                long = f"A {index.SHORT[int(number[2:])]}"
                assert long in cited, f"{place} cites {number} without {long}, which it is in the long edition"


@ROW
def test_every_row_is_computed_where_it_says_and_tested(row):
    kind = row.verdict.partition(":")[0]
    where = index.places(row, SOURCES)
    if kind == "omitted":
        assert not where, f"{row.numbers} is said to be omitted and cited in {where}: give its row another verdict"
    elif kind != "definitional":
        cited = set().union(*(numbers for source in CODE for _, numbers in source.citations))
        missing = sorted(index.numbers(row.numbers) - cited)
        assert not missing, (
            f"no code cites {missing}: cite it where it is computed, as [{missing[0]}], or say 'omitted: why' "
            "in docs/index.py; then run `python docs/index.py`"
        )
        assert where and index.tests(row, SOURCES)
        assert re.fullmatch(r"exact|choice \d+(, \d+)*", row.verdict)
    for name in row.names.split():
        assert any(re.search(rf"(^|::|\.){name}$", place) for place in where), f"no {name}: correct docs/index.py"


def test_help_of_the_index_changes_nothing():
    before = (ROOT / "PAPER.md").read_bytes()
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "index.py"), "--help"], capture_output=True, text=True,
                          encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0 and "python docs/index.py" in done.stdout
    assert (ROOT / "PAPER.md").read_bytes() == before


def test_citations_are_read_as_they_are_written():
    assert index.numbers("A 10–12, 33; N 7-8, 17") == {"A 10", "A 11", "A 12", "A 33", "N 7", "N 8", "N 17"}
    assert index.numbers("A 75, Algorithm 1") == {"A 75", "Algorithm 1"}
    assert index.numbers("§7.3") == {"§ 7.3"} and index.numbers("A 61–62, Fig. 3; Su 2021") == {"A 61", "A 62"}
    written = ["A\n  70–71, N 30", "§7.3"]
    assert index.CITATION.findall(f"S[A @ 1] [{written[0]}] x[N - 1] [{written[1]}]") == written
    assert index.ranges({3, 4, 6, 8, 9, 10}) == "3–4, 6, 8–10"


# --- choices ------------------------------------------------------------------------------------------------

PARTS = dict(re.findall(r"^### Choice (\d+)\n(.*?)(?=^##)", TEXT, re.M | re.S))  # number → what it says


def claims() -> list[tuple[str, str]]:
    """(place, the words that follow CHOICE there), for all that PAPER.md quotes."""
    quoted = re.findall(r"`([\w./:]+)` \((“.*?”(?:, “.*?”)*)\)", plain("\n".join(PARTS.values())))
    return [(place, words) for place, several in quoted for words in re.findall("“(.*?)”", several)]


def mentions() -> list[tuple[str, str, str]]:
    """(place, number if one is given, the words that follow) for every CHOICE in the code."""
    found = []
    for source in CODE:
        for match in re.finditer(r"\bCHOICE(?:S \(PAPER\.md\)| (\d+))?[:,.] *", source.text):
            rest = plain(source.text[match.end() :].split('"""')[0].split("\n\n")[0])
            items = rest.split("; ") if match[0].startswith("CHOICES") else [rest]
            found += [(source.place(match.start()), match[1] or "", words) for words in items]
    return found


def test_choices_are_numbered_from_one_without_gaps():
    assert [int(n) for n in PARTS] == list(range(1, len(PARTS) + 1)) and len(PARTS) > 30


def test_every_choice_mentioned_in_code_is_in_the_paper():
    known, found = claims(), mentions()
    assert len(found) > 20
    for place, number, words in found:
        if "/" in place:
            continue  # a room's choices are about its own experiments
        assert not number or f"`{place}`" in PARTS.get(number, ""), f"choice {number} does not name {place}"
        assert number or any(place == where and words.startswith(said) for where, said in known), (
            f"PAPER.md quotes no choice of {place} that begins “{words[:50]}”: add it to part 6")  # fmt: skip


def test_every_choice_quoted_in_the_paper_is_in_the_code():
    found = mentions()
    for place, said in claims():
        assert any(place == where and words.startswith(said) for where, _, words in found), (
            f"{place} has no CHOICE that begins “{said}”: correct part 6 of PAPER.md")  # fmt: skip


def test_every_choice_says_where_it_is_in_code_and_every_reference_to_one_exists():
    for number, part in PARTS.items():
        assert re.search(r"^In code: `", part, re.M), f"choice {number} does not say where it is"
    mentioned = set(re.findall(r"\(#choice-(\d+)\)", TEXT))
    assert mentioned <= set(PARTS)


def test_every_link_inside_the_paper_leads_somewhere():
    headings = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^##+ (.+)$", TEXT, re.M)}
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= headings


# --- findings -----------------------------------------------------------------------------------------------


def test_every_finding_but_the_ambiguous_one_runs_and_every_slip_has_a_line():
    part = TEXT[TEXT.index("## What we found"):]
    findings = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^###|\Z)", part, re.M | re.S)
    assert [int(n) for n, _ in findings] == list(range(1, 22))
    assert [n for n, words in findings if "`tests/" not in words] == ["14"]  # ambiguous, so nothing to run
    slips = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", part[part.index("### Slips in print"):], re.M)
    assert [int(n) for n, _ in slips] == list(range(1, len(slips) + 1)) and len(slips) >= 23
    for _, shown in slips:
        assert shown == "–" or re.fullmatch(r"finding \d+", shown) or (
            f"tests/test_findings.py::{shown.strip('`')}" in NAMES), shown  # fmt: skip
