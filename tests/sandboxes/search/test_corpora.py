"""Reading corpora: their formats, what is broken in them, and what is cut."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest

from sandboxes.search import CorpusError, Passage, read_corpus
from sandboxes.search.corpora import CorpusFormat

KOVAMIR = Passage("1", 'Kovamir "the" Great', "A river.\nIt is long.")
BENU = Passage("2", "Benu", 'A "town" in\u2028Talido.')


def lines_of(format: str) -> bytes:
    """Both passages as a file of that format."""
    if format == "wiki18":
        entries: list[object] = [{"id": "1", "contents": KOVAMIR.contents}, {"id": 2, "contents": BENU.contents}]
    elif format == "beir":
        entries = [{"_id": p.id, "title": p.title, "text": p.text, "metadata": {}} for p in (KOVAMIR, BENU)]
    elif format == "hotpotqa":
        entries = [
            {"id": "1", "url": "http://wiki/1", "title": KOVAMIR.title, "text": ["A river.", "\nIt is long.", ""]},
            {"id": "2", "url": "http://wiki/2", "title": BENU.title, "text": ['A "town"', " in\u2028Talido."]},
        ]
    else:
        return (
            'id\ttext\ttitle\n1\t"A river. It is long."\t"Kovamir ""the"" Great"\n2\tA "town" in\u2028Talido.\tBenu\n'
        ).encode()
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("format", ["wiki18", "beir", "hotpotqa", "dpr"])
def test_formats(tmp_path: Path, format: CorpusFormat, pack: type[bytes], named: bool) -> None:
    (tmp_path / "corpus").write_bytes(pack(lines_of(format)))
    corpus = read_corpus(tmp_path / "corpus", format if named else "auto")
    first, second = corpus
    assert (first.id, first.title, " ".join(first.text.split())) == ("1", KOVAMIR.title, "A river. It is long.")
    assert second == BENU
    assert (corpus.report.read, corpus.report.broken, corpus.report.cut) == (2, 0, [])


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Kovamir"\nA river.\nLong.', "Kovamir", "A river.\nLong."),
        ("Kovamir\nA river.", "Kovamir", "A river."),
        ("Only a text", "", "Only a text"),
        ('""\nNo title', "", "No title"),
        ('"\nx', '"', "x"),
    ],
)
def test_titles_within_contents(contents: str, title: str, text: str) -> None:
    passage = Passage.from_contents("7", contents)
    assert (passage.title, passage.text) == (title, text)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"_id": "1", "text": "x"}\r\n\r\n{"_id": "2", "text": "y"}\r\n')
    assert [passage.id for passage in read_corpus(tmp_path / "c.jsonl")] == ["1", "2"]


def test_dpr_lines_with_quotes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text(
        '1\t"an open quote\tOne\n2\tnone\tTwo\n3\t"" and ""\t"T""hree"\n' + f'4\t{"long " * 40_000}\t"F"\n'
    )
    passages = list(read_corpus(tmp_path / "c.tsv"))
    assert [passage.title for passage in passages[:2]] == ["One", "Two"]
    assert passages[0].text == '"an open quote'
    assert len(passages[3].text) == 200_000


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = b'{"_id": "%d", "title": "t", "text": "x"}\n'
    broken = [
        b"{\n",
        b'{"_id": "9", "text": "\xff"}\n',
        b"[1]\n",
        b'{"title": "t", "text": "x"}\n',
        b'{"_id": true, "text": "x"}\n',
        b'{"_id": "9", "text": ["x"]}\n',
        b"[" * 100_000 + b"\n",
    ]
    (tmp_path / "c.jsonl").write_bytes(broken[0] + good % 1 + b"".join(broken[1:]) + b"\n" + good % 2)
    corpus = read_corpus(tmp_path / "c.jsonl")
    assert [passage.id for passage in corpus] == ["1", "2"]
    assert (corpus.report.read, corpus.report.broken, corpus.report.cut) == (2, 7, [])
    assert [example.line for example in corpus.report.examples] == [1, 3, 4, 5, 6, 7, 8]
    reasons = [example.reason for example in corpus.report.examples]
    for reason, word in zip(
        reasons,
        ["JSON", "0xff at position 22", "found [1]", "'_id' must be", "found True", "'text'", "too deeply"],
        strict=True,
    ):
        assert word in reason
    assert str(corpus.report).splitlines()[0] == "2 passages read, broken lines left out: 7"
    assert "c.jsonl, line 3: expected UTF-8" in str(corpus.report)


def test_all_broken_lines_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"_id": "1", "text": "x"}\n' + "{\n" * 5_000)
    corpus = read_corpus(tmp_path / "c.jsonl")
    assert len(list(corpus)) == 1
    assert corpus.report.broken == 5_000
    assert len(corpus.report.examples) == 20
    assert "... and 4,980 more broken lines" in str(corpus.report)


def entries(count: int) -> bytes:
    return b"".join(b'{"_id": "%d", "title": "t", "text": "x%d"}\n' % (number, number * 7919) for number in range(count))


def test_a_plain_file_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(entries(100)[:-7])
    corpus = read_corpus(tmp_path / "c.jsonl")
    assert len(list(corpus)) == 99
    assert corpus.report.broken == 0
    (line,) = corpus.report.cut
    assert line.endswith(
        "c.jsonl ends in the middle of a line after 99 whole lines: those are read, get the file again for the rest"
    )


def test_a_whole_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(entries(100)[:-1])
    corpus = read_corpus(tmp_path / "c.jsonl")
    assert len(list(corpus)) == 100
    assert corpus.report.cut == []


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_compressed_file_that_was_cut(tmp_path: Path, pack: type[bytes]) -> None:
    whole = pack(entries(60_000))
    (tmp_path / "c").write_bytes(whole[: len(whole) * 3 // 4])
    corpus = read_corpus(tmp_path / "c")
    ids = [passage.id for passage in corpus]
    assert ids == [str(number) for number in range(len(ids))]
    assert 20_000 < len(ids) < 60_000
    (line,) = corpus.report.cut
    assert f"ends in the middle of its compressed data after {len(ids):,} whole lines" in line


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_compressed_file_that_was_damaged(tmp_path: Path, pack: type[bytes]) -> None:
    whole = bytearray(pack(entries(60_000)))
    middle = len(whole) // 2
    whole[middle : middle + 40] = b"\xff" * 40
    (tmp_path / "c").write_bytes(whole)
    corpus = read_corpus(tmp_path / "c")
    assert len(list(corpus)) < 60_000
    assert len(corpus.report.cut) == 1
    assert "damaged compressed data" in corpus.report.cut[0]


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for shard, number in (("AB/wiki_01.bz2", 3), ("AA/wiki_00.bz2", 1), ("AA/wiki_01.bz2", 2)):
        (tmp_path / shard).parent.mkdir(exist_ok=True)
        entry = {"title": f"T{number}", "text": ["One.", " Two."], "url": f"http://wiki?curid={number}"}
        (tmp_path / shard).write_bytes(bz2.compress(json.dumps(entry).encode() + b"\n"))
    (tmp_path / "README").write_text("not a corpus")
    (tmp_path / "AA" / "wiki_02.bz2").write_bytes(bz2.compress(entries(5_000))[:30])
    corpus = read_corpus(tmp_path)
    assert list(corpus) == [Passage(f"http://wiki?curid={number}", f"T{number}", "One. Two.") for number in (1, 2, 3)]
    assert len(corpus.report.cut) == 1
    assert "wiki_02.bz2 ends in the middle" in corpus.report.cut[0]


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    (tmp_path / "c.gz").write_bytes(gzip.compress(entries(25_000)))
    seen: list[tuple[int, float]] = []
    list(read_corpus(tmp_path / "c.gz", progress=lambda read, part: seen.append((read, part))))
    assert [read for read, _ in seen] == [10_000, 20_000, 25_000]
    parts = [part for _, part in seen]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert 0 < parts[0] <= 1


def test_an_empty_file_holds_no_passages(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"")
    assert list(read_corpus(tmp_path / "c.jsonl")) == []


def test_a_wrong_format_says_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_bytes(lines_of("beir"))
    with pytest.raises(
        CorpusError, match=r"no line is of the format wiki18; the first problem is in .*line 1: 'id' must be .* found none"
    ):
        list(read_corpus(file, "wiki18"))
    with pytest.raises(CorpusError, match=r"no line is of the format dpr.*expected the three columns .* found 1"):
        list(read_corpus(file, "dpr"))
    file.write_text('{"question": "who?", "answer": "Kovamir"}\n')
    with pytest.raises(CorpusError, match=r"no line is of any known format.*\(dpr\); found JSON with 'question', 'answer'"):
        list(read_corpus(file))
    file.write_text("Once upon a time\n" * 3_000)
    with pytest.raises(CorpusError, match="found the line 'Once upon a time'"):
        list(read_corpus(file))
    file.write_bytes(bz2.compress(b"folder/\0\0\0ustar  \0more"))
    with pytest.raises(CorpusError, match=r"c\.jsonl is a tar archive: unpack it first"):
        list(read_corpus(file))


def test_what_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no corpus at '.*nowhere'"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="holds no file of a corpus"):
        read_corpus(tmp_path)
    with pytest.raises(CorpusError, match="a corpus format is one of auto, wiki18, dpr, hotpotqa, beir, found 'xml'"):
        read_corpus(tmp_path, "xml")  # type: ignore[arg-type]
