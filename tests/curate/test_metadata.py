"""The list of entries out of WordNet and Wikipedia: what is read, what is counted, and files that are made to hurt."""

import bz2
import gzip
import itertools
import math
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diptych.cli.main import main
from diptych.curation.run import curate
from diptych.errors import DiptychError
from diptych.methods.curate.parts import tally, wikipedia
from diptych.methods.curate.parts.metadata import build_metadata, write_entries
from diptych.methods.curate.parts.wikipedia import articles, runs_of_words, without_markup

PAGE = "<page><title>{n}</title><ns>{ns}</ns>{more}<revision><id>1</id><text>{text}</text></revision></page>"
BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><mediawiki>&b;</mediawiki>'


def dump(texts, ns=0, more=""):
    pages = "".join(PAGE.format(n=n, ns=ns, more=more, text=text) for n, text in enumerate(texts))
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo/>{pages}</mediawiki>'


def wordnet(folder):
    folder.mkdir()
    synsets = {
        "noun": "00001740 03 n 02 Hot_dog 0 frank 0 000 | food\n",
        "adj": "00002000 00 a 01 out(p) 0 000 | not in\n",
    }
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(f"  1 licence\n{synsets.get(part, '')}")
    return folder


def test_markup_of_a_page_is_left_out():
    text = """{{Infobox|a={{small|x}}|}}'''New York''' is a [[City (disambiguation)|big city]], [[here]].<ref name="a">
    [[ref]]</ref><ref name="a"/> &lt;b&gt;bold&lt;/b&gt; {| class="x"
    | hidden
    |} don't [[File:a.jpg|thumb|a [[caption]]]] half-way - "it's" <!-- no --> http://a.example/x [https://b.example/ y]
    {{open"""
    assert list(runs_of_words(without_markup(text))) == [
        ["New", "York", "is", "a", "big", "city"],
        ["here"],
        ["bold"],
        ["don't"],
        ["half-way"],
        ["it's"],
        ["y"],
    ]


def test_the_list_of_entries_from_its_sources(tmp_path):
    for folder in ("wiki", "views"):
        (tmp_path / folder).mkdir()
    (tmp_path / "wiki" / "1.xml.bz2").write_bytes(bz2.compress(dump(["[[new]] york", "new york, the the"]).encode()))
    (tmp_path / "wiki" / "2.xml").write_text(dump(["new york new york , the the", "the the"]))
    views = "en Main_Page 80 0\nde Haus 900 0\nen Talk:A 99 0\nen Rare 3 0\nrubbish\nen Sum 40 0\n"
    (tmp_path / "views" / "1.gz").write_bytes(gzip.compress(views.encode()))
    (tmp_path / "views" / "2.txt").write_text("en.wikipedia Sum 12 desktop 30 A30\nen.wikipedia Tab 1 x 1 A1\n")
    sources = {"wordnet": wordnet(tmp_path / "dict"), "wiki": tmp_path / "wiki", "titles": tmp_path / "views"}
    told = []
    entries = build_metadata(**sources, least_count=4, least_pmi=1.4, progress=lambda *words: told.append(words))
    # of 14 words, new 4, york 4, the 6: "new york" has log2(4 * 14 / 16) = 1.8, "the the" log2(3 * 14 / 36) = 0.2
    assert entries == [*map(str, range(100)), "hot dog", "out", "the", "new", "york", "new york", "Main Page", "Sum"]
    assert {words[0] for words in told} == {"count titles, MB", "count wiki, MB"}
    assert build_metadata(wiki=sources["wiki"], limit=101, least_count=1)[100:] == ["the"]
    (tmp_path / "names.txt").write_text("hot_dog.n.01\nDog.n.02\n\n")
    assert build_metadata(wordnet=tmp_path / "names.txt")[100:] == ["hot dog", "dog"]
    assert len(write_entries(entries, tmp_path / "entries.txt")) == 64


@pytest.mark.parametrize("page", [{"ns": 1}, {"more": '<redirect title="x" />'}])
def test_what_is_no_article_is_not_read(tmp_path, page):
    (tmp_path / "w.xml").write_text(dump(["talk of this"], **page))
    with pytest.raises(DiptychError, match="holds no article"):
        build_metadata(wiki=tmp_path / "w.xml")


def test_counts_beyond_memory_are_those_of_a_plain_counter(tmp_path, monkeypatch):
    """Words and pairs of a text, by PMI, with a memory of 50 words; a count that was stopped goes on."""
    monkeypatch.setattr(tally, "HELD", 50)
    monkeypatch.setattr(wikipedia, "CHUNK", 700)
    drawn = random.Random(0)
    names = ["".join(drawn.choice("abcdeé猫") for _ in range(3)) for _ in range(150)]
    texts = [[drawn.choice(names) for _ in range(drawn.randint(1, 20))] for _ in range(400)]
    words, pairs = Counter(itertools.chain(*texts)), Counter(p for text in texts for p in itertools.pairwise(text))
    total = words.total()
    bound = {p: n for p, n in pairs.items() if math.log2(n * total / (words[p[0]] * words[p[1]])) >= 3}
    expected = [w for w, n in sorted(words.items(), key=lambda one: (-one[1], one[0])) if n >= 20]
    expected += [" ".join(p) for p, _ in sorted(bound.items(), key=lambda one: (-one[1], " ".join(one[0])))]
    assert len(bound) > 100
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "a.txt").write_text("\n".join(map(" ".join, texts[:150])))
    (tmp_path / "wiki" / "b.xml").write_text(dump(map(" ".join, texts[150:])))
    asked = {"wiki": tmp_path / "wiki", "least_count": 20, "least_pmi": 3.0, "work": tmp_path / "work"}

    def stops(what, done, of):
        if (tmp_path / "work" / "wiki" / "00001" / "words" / "000000.arrow").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_metadata(**asked, progress=stops)
    counted = (tmp_path / "work" / "wiki" / "00000" / "done").stat().st_mtime_ns
    assert build_metadata(**asked)[100:] == expected
    assert (tmp_path / "work" / "wiki" / "00000" / "done").stat().st_mtime_ns == counted
    assert len([*(tmp_path / "work" / "wiki" / "00001" / "pairs").iterdir()]) > 5


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("bomb.xml", BOMB.encode(), "entities of its own"),
        ("deep.xml", b"<mediawiki>" + b"<a>" * 5000, "tags in tags"),
        ("tag.xml", b"<mediawiki>" + b"<page" + b" " * (12 << 20), "a tag of more than"),
        ("cut.xml", dump(["a b c"] * 9).encode()[:-30], "cut off"),
        ("cut.xml.bz2", bz2.compress(dump(map(str, range(9999))).encode())[:-30], "broken or cut off"),
        ("wrong.xml.bz2", b"this is not packed", "broken or cut off"),
        ("cut.xml.gz", gzip.compress(dump(map(str, range(9999))).encode())[:-30], "broken or cut off"),
        ("picture.xml", b"\xff\xd8\xff\xe0", "neither an XML dump"),
        ("empty.xml", b"", "holds no article"),
    ],
)
def test_a_dump_that_is_none_is_refused(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DiptychError, match=says) as error:
        build_metadata(wiki=tmp_path / name)
    assert name in str(error.value)


def test_pages_that_are_made_to_hurt_take_no_time(tmp_path):
    """What is open is never closed, words never end: read in one pass."""
    for text in ("[[" * 300_000, "{{" * 300_000 + "]]" * 300_000, "<!--" * 200_000, "[[a|" * 99_999 + "]]" * 99_999):
        assert len(list(runs_of_words(without_markup(text)))) <= 1
    (tmp_path / "long.txt").write_bytes(b"a" * (3 << 20) + b" b" * 100)
    assert build_metadata(wiki=tmp_path / "long.txt")[100:] == ["b"]
    assert sum(map(len, articles(tmp_path / "long.txt", lambda done: None))) == (3 << 20) + 200


@pytest.mark.parametrize(
    ("setting", "content", "says"),
    [
        ("titles", "Main_Page\nDog\n", "titles alone"),
        ("wordnet", "", r"data\.noun: no such file"),
        ("wiki", "", "nothing in it"),
    ],
)
def test_sources_that_are_none(tmp_path, setting, content, says):
    path = tmp_path / "source"
    if content:
        path.write_text(content)
    else:
        path.mkdir()
    with pytest.raises(DiptychError, match=says):
        build_metadata(**{setting: path})


def pool(tmp_path):
    texts = [f"a thing{n % 40}, seen" for n in range(600)] + ["IMG"] * 100
    parquet.write_table(pa.table({"caption": texts}), tmp_path / "pool.parquet", row_group_size=300)
    return tmp_path / "pool.parquet"


def test_the_command_makes_the_list_keeps_it_and_takes_it_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "wiki.xml").write_text(dump([f"thing{n}, thing{n}" for n in range(40)]))
    out = tmp_path / "out"
    words = ["curate", "metaclip", str(pool(tmp_path)), str(out), "--workers", "2", "--set", "metaclip.t=10"]
    made = ["--set", f"metaclip.wiki={tmp_path / 'wiki.xml'}", "--set", "metaclip.least_count=2"]
    made += ["--set", f"metaclip.wordnet={wordnet(tmp_path / 'dict')}"]
    assert main([*words, *made]) == 0
    listed = (out / "metadata.txt").read_text().splitlines()
    assert listed[100:102] == ["hot dog", "out"] and set(listed[102:]) == {f"thing{n}" for n in range(40)}
    assert not (out / ".work").exists()
    again = [*words[:3], str(tmp_path / "again"), "--set", "metaclip.t=10"]
    assert main([*again, "--set", f"metaclip.metadata={out / 'metadata.txt'}"]) == 0
    one, two = (parquet.read_table(folder / "00000.parquet") for folder in (out, tmp_path / "again"))
    assert one.equals(two) and 300 < len(one) < 600
    monkeypatch.setattr("diptych.methods.curate.metaclip.build_metadata", None)  # it is there
    assert main([*words, *made]) == 0
    (tmp_path / "wiki.xml").write_text(dump(["thing1 thing1"]))
    assert main([*words, *made]) == 2
    assert "files differ (what wiki names has changed)" in capsys.readouterr().err


def test_it_says_what_can_be_given(tmp_path):
    source = pool(tmp_path)
    for settings, says in [
        ({}, r"metaclip\.metadata=FILE.*metaclip\.wordnet=FOLDER.*metaclip\.wiki="),
        ({"metaclip.wiki": str(tmp_path / "no.xml")}, "no such file"),
        ({"metaclip.wiki": "x", "metaclip.metadata": "y"}, "a finished list"),
    ]:
        with pytest.raises(DiptychError, match=says):
            curate("metaclip", source, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()
