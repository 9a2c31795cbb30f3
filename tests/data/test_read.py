"""What users give: folders, tables, dataset folders, and what is wrong with them."""

import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diptych.data.pictures import BadPicture, open_picture
from diptych.data.read import read_records
from diptych.errors import DiptychError

from .conftest import encoded, scene

Photos = Callable[..., Path]


# -- folders -----------------------------------------------------------------------------------------------------


def test_class_folders(photos: Photos) -> None:
    root = photos({"dog": 3, "cat": 2, "cat/kittens": 1})
    records = read_records(root)
    assert Counter(r.label for r in records) == {"dog": 3, "cat": 3}
    assert records.labels == ("cat", "dog")
    assert {r.split for r in records} == {None}
    assert records.ids == ["cat/0.png", "cat/1.png", "cat/kittens/0.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert records[0].path == root / "cat/0.png"
    assert records.warnings == ()
    assert len(records[[0, 3]]) == len(records[1:3]) == 2
    assert len(records.filter(lambda r: r.label == "dog")) == 3
    assert np.array_equal(np.asarray(open_picture(records[5])), np.asarray(scene(2)))


def test_splits_above_classes_in_any_case(photos: Photos) -> None:
    root = photos({"Train/cat": 2, "Train/dog": 2, "VALID/cat": 1, "test/dog": 1, "unlabelled": 3})
    records = read_records(root)
    assert Counter((r.split, r.label) for r in records) == {
        ("train", "cat"): 2,
        ("train", "dog"): 2,
        ("val", "cat"): 1,
        ("test", "dog"): 1,
        (None, None): 3,
    }


def test_a_class_may_be_called_train(photos: Photos) -> None:
    assert read_records(photos({"train": 2, "bus": 2})).labels == ("bus", "train")
    assert read_records(photos({"train": 2, "test": 2}, below="b")).labels == ("test", "train")


def test_splits_beside_classes_are_refused(photos: Photos) -> None:
    root = photos({"train/cat": 1, "test/cat": 1, "dog": 1})
    with pytest.raises(DiptychError, match=r"both splits \(test, train\) and other folders \(dog\)"):
        read_records(root)


def test_unlabelled_pool(photos: Photos) -> None:
    records = read_records(photos({"cat": 1, "dog": 1, "Unlabeled": 2}))
    assert Counter(r.label for r in records) == {"cat": 1, "dog": 1, None: 2}


def test_hidden_and_other_files_are_passed_over(photos: Photos) -> None:
    root = photos({"cat": 1, "dog": 1, ".git": 1, "__MACOSX": 1})
    for name in ("cat/.DS_Store", "cat/notes.txt", "cat/._0.png", "README.md"):
        (root / name).write_bytes(b"x")
    records = read_records(root)
    assert len(records) == 2
    assert records.warnings == ()


def test_pictures_at_the_root(photos: Photos) -> None:
    root = photos({"cat": 1, "dog": 1})
    scene(9).save(root / "loose.png")
    (warning,) = read_records(root).warnings
    assert "1 pictures directly in" in warning
    flat = photos({".": 4}, below="flat")
    with pytest.raises(DiptychError, match="4 pictures and no class folders"):
        read_records(flat)


def test_folders_without_pictures(photos: Photos) -> None:
    root = photos({"cat": 1, "dog": 1, "bird": 0})
    (warning,) = read_records(root).warnings
    assert "bird holds no picture" in warning
    with pytest.raises(DiptychError, match="no pictures below"):
        read_records(photos({"cat": 0, "dog": 0}, below="none"))


@pytest.mark.parametrize(
    "name", ["🐱 cat", "x" * 200, "a 'quoted' \"name\"", "größe", "with  spaces", "[1]", "100%", "猫", "-rf", "a&b;c"]
)
def test_any_class_name(photos: Photos, name: str) -> None:
    records = read_records(photos({name: 1, "dog": 1}))
    assert name in records.labels
    open_picture(records[0])


@pytest.mark.parametrize(("one", "two"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("Straße", "STRASSE")])
def test_names_that_differ_only_by_case_or_encoding(photos: Photos, one: str, two: str) -> None:
    root = photos({one: 1, two: 2})
    if len(os.listdir(root)) == 1:
        pytest.skip("this file system takes them for one")
    with pytest.raises(DiptychError, match="differ only by case"):
        read_records(root)


def test_one_class(photos: Photos) -> None:
    with pytest.raises(DiptychError, match='one class, "cat"'):
        read_records(photos({"cat": 3}))
    with pytest.raises(DiptychError, match="unlabelled"):
        read_records(photos({"unlabelled": 3}, below="b"))


def test_missing_empty_and_wrong_kinds(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DiptychError, match=r'no such folder or table; did you mean ".*photos"'):
        read_records(tmp_path / "photo")
    with pytest.raises(DiptychError, match="photos is empty"):
        read_records(tmp_path / "photos")
    for name, match in [
        ("a.jpg", "is one picture"),
        ("a.zip", "unpack"),
        ("a.xlsx", "save it as CSV"),
        ("a.doc", "neither a folder nor a table"),
    ]:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DiptychError, match=match):
            read_records(tmp_path / name)
    with pytest.raises(DiptychError, match="address"):
        read_records("https://example.org/cats")


def test_columns_of_a_folder(photos: Photos) -> None:
    with pytest.raises(DiptychError, match="groups among them, come from a table"):
        read_records(photos({"cat": 1, "dog": 1}), group_column="patient")


def test_unreadable_folder(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos({"cat": 1, "dog": 1})
    scandir = os.scandir

    def denied(folder: str | Path) -> object:  # chmod does not stop root, who may be running this
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DiptychError, match=r"dog: no permission"):
        read_records(root)


def test_symlink_loops_are_cut_and_broken_links_kept(photos: Photos) -> None:
    root = photos({"cat": 1, "dog": 1})
    (root / "cat/again").symlink_to(root / "cat", target_is_directory=True)
    (root / "all").symlink_to(root, target_is_directory=True)
    (root / "dog/self").symlink_to(root / "dog/self")
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    records = read_records(root)
    assert records.ids == ["cat/0.png", "dog/0.png", "dog/gone.png"]
    assert any("cat/again is a link" in w for w in records.warnings)
    with pytest.raises(BadPicture, match="no such file"):
        open_picture(records[2])


def test_linked_class_folder(photos: Photos, tmp_path: Path) -> None:
    root = photos({"cat": 1})
    elsewhere = photos({"d": 2}, below="elsewhere")
    (root / "dog").symlink_to(elsewhere / "d", target_is_directory=True)
    assert Counter(r.label for r in read_records(root)) == {"cat": 1, "dog": 2}


# -- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(photos: Photos) -> Callable[..., Path]:
    """table(header, rows) -> a CSV beside 6 pictures p/0.png .. p/5.png."""
    root = photos({"p": 6})

    def make(header: list[str], rows: list[list[object]], name: str = "t.csv", delimiter: str = ",") -> Path:
        with open(root / name, "w", newline="", encoding="utf-8") as out:
            csv.writer(out, delimiter=delimiter).writerows([header, *rows])
        return root / name

    return make


ROWS: list[list[object]] = [[f"p/{i}.png", "cat" if i < 3 else "dog"] for i in range(6)]


@pytest.mark.parametrize(
    ("header", "name", "delimiter"),
    [
        (["image", "label"], "t.csv", ","),
        (["File Path", "Class"], "t.tsv", "\t"),
        (["file_name", "CATEGORY"], "t.CSV", ";"),
        (["Filename", "class_name"], "t.csv", ","),
    ],
)
def test_usual_columns(table: Callable[..., Path], header: list[str], name: str, delimiter: str) -> None:
    records = read_records(table(header, ROWS, name, delimiter))
    assert [r.label for r in records] == ["cat"] * 3 + ["dog"] * 3
    assert records.ids == [f"row {i}" for i in range(1, 7)]
    assert np.array_equal(np.asarray(open_picture(records[4])), np.asarray(scene(4)))


def test_given_columns_split_and_group(table: Callable[..., Path]) -> None:
    sides = ["train", "Test", "validation", "", "unlabelled", "train"]
    rows = [[i, *row, side, f"patient {i // 2}"] for i, (row, side) in enumerate(zip(ROWS, sides, strict=True))]
    rows[4][2] = ""
    path = table(["label", "what", "which", "split", "patient"], rows)
    records = read_records(path, image_column="what", label_column="which", group_column="patient")
    assert [r.split for r in records] == ["train", "test", "val", None, None, "train"]
    assert [r.label for r in records] == ["cat", "cat", "cat", "dog", None, "dog"]
    assert [r.group for r in records] == ["patient 0"] * 2 + ["patient 1"] * 2 + ["patient 2"] * 2


def test_words_are_preferred_to_numbers(table: Callable[..., Path]) -> None:
    rows = [[row[0], i // 3, row[1]] for i, row in enumerate(ROWS)]
    assert read_records(table(["image", "label", "label_name"], rows)).labels == ("cat", "dog")


def test_any_class_name_in_a_table(table: Callable[..., Path]) -> None:
    names = ["and/or", "🐱", "x" * 200, "a, b", 'with "quotes"', "two\nlines"]
    rows = [[row[0], name] for row, name in zip(ROWS, names, strict=True)]
    assert set(read_records(table(["image", "label"], rows)).labels) == set(names)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"label_column": "lable"}, r'no column "lable"; did you mean "label"\?'),
        ({"image_column": "x"}, 'no column "x"; valid: image, label'),
        ({"group_column": "patient"}, 'no column "patient"'),
        ({"split_column": "fold"}, 'no column "fold"'),
    ],
)
def test_unknown_columns(table: Callable[..., Path], options: dict[str, str], match: str) -> None:
    with pytest.raises(DiptychError, match=match):
        read_records(table(["image", "label"], ROWS), **options)


def test_columns_that_cannot_be_guessed(table: Callable[..., Path]) -> None:
    with pytest.raises(DiptychError, match=r"which column holds the label\? It has 'image', 'q'; .*--label-column"):
        read_records(table(["image", "q"], ROWS))
    with pytest.raises(DiptychError, match="which column holds the image"):
        read_records(table(["a", "label"], ROWS))


def test_missing_files_are_named(table: Callable[..., Path]) -> None:
    rows = ROWS + [[f"p/none{i}.png", "dog"] for i in range(7)]
    with pytest.raises(DiptychError, match=r"7 of 13 pictures are not there: row 7 \(p/none0.png\), .* and 2 more"):
        read_records(table(["image", "label"], rows))


@pytest.mark.parametrize("hole", ["", "nan", "NaN", "null", " "])
def test_missing_labels_are_named(table: Callable[..., Path], hole: str) -> None:
    rows = [[row[0], hole if i in (1, 4) else row[1]] for i, row in enumerate(ROWS)]
    with pytest.raises(DiptychError, match='2 rows have no label in column "label": row 2, row 5;'):
        read_records(table(["image", "label"], rows))


def test_missing_pictures_and_addresses(table: Callable[..., Path]) -> None:
    with pytest.raises(DiptychError, match='1 rows have no picture in column "image": row 7'):
        read_records(table(["image", "label"], [*ROWS, ["", "cat"]]))
    with pytest.raises(DiptychError, match=r"row 7: https://x.org/a.jpg is an address"):
        read_records(table(["image", "label"], [*ROWS, ["https://x.org/a.jpg", "cat"]]))


@pytest.mark.parametrize("cell", ["['cat', 'dog']", "cat;dog", "cat | dog"])
def test_several_labels_in_a_cell(table: Callable[..., Path], cell: str) -> None:
    with pytest.raises(DiptychError, match="several labels"):
        read_records(table(["image", "label"], [*ROWS[1:], [ROWS[0][0], cell]]))


def test_a_semicolon_in_a_name_is_no_second_label(table: Callable[..., Path]) -> None:
    assert "cat; tame" in read_records(table(["image", "label"], [*ROWS[1:], [ROWS[0][0], "cat; tame"]])).labels


def test_one_picture_in_several_rows(table: Callable[..., Path]) -> None:
    with pytest.raises(DiptychError, match=r'0\.png is "cat" in row 1 and "dog" in row 7: several labels'):
        read_records(table(["image", "label"], [*ROWS, ["p/0.png", "dog"]]))
    records = read_records(table(["image", "label"], [*ROWS, ["p/0.png", "cat"]]))
    assert len(records) == 6
    assert "1 rows name a picture" in records.warnings[0]


def test_unknown_split(table: Callable[..., Path]) -> None:
    rows = [[*row, "trian" if i == 2 else "test"] for i, row in enumerate(ROWS)]
    with pytest.raises(DiptychError, match=r'row 3: "trian" is no split; did you mean "train"'):
        read_records(table(["image", "label", "split"], rows))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is empty"),
        (b"image,label\n", "has no rows"),
        (b"image,label\np/0.png,cat,extra\n", "row 1: 3 cells where the first line names 2"),
        (b"image,image\np/0.png,cat\n", 'two columns called "image"'),
        (b"image,label\n\xff\xfe\x00,cat\n", "not UTF-8"),
    ],
)
def test_broken_tables(photos: Photos, text: bytes, match: str) -> None:
    path = photos({"p": 1}) / "t.csv"
    path.write_bytes(text)
    with pytest.raises(DiptychError, match=match):
        read_records(path)


def test_byte_order_mark(photos: Photos) -> None:
    path = photos({"p": 2}) / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,label\r\np/0.png,cat\r\np/1.png,dog\r\n")
    assert read_records(path).labels == ("cat", "dog")


# -- Parquet and Hugging Face ------------------------------------------------------------------------------------


def test_parquet_of_paths(photos: Photos) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = photos({"p": 4})
    columns = {"path": [f"p/{i}.png" for i in range(4)], "label": ["a", "a", "b", "b"]}
    parquet.write_table(pa.table(columns), root / "t.parquet")
    assert [r.label for r in read_records(root / "t.parquet")] == ["a", "a", "b", "b"]
    parquet.write_table(pa.table({**columns, "label": [1.0, float("nan"), None, 0.0]}), root / "t.parquet")
    with pytest.raises(DiptychError, match=r"2 rows have no label.*row 2, row 3"):
        read_records(root / "t.parquet")
    parquet.write_table(pa.table({**columns, "label": [1.0, 0.0, 1.0, 0.0]}), root / "t.parquet")
    assert read_records(root / "t.parquet").labels == ("0", "1")
    parquet.write_table(pa.table({**columns, "label": [["a"], ["a", "b"], ["b"], ["b"]]}), root / "t.parquet")
    with pytest.raises(DiptychError, match="several labels"):
        read_records(root / "t.parquet")
    (root / "t.parquet").write_bytes((root / "t.parquet").read_bytes()[:50])
    with pytest.raises(DiptychError, match="not a Parquet file, or is truncated"):
        read_records(root / "t.parquet")


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    data = [encoded(scene(i)) for i in range(7)]
    labels = ["a", "b"] * 3 + ["a"]
    parquet.write_table(pa.table({"img": data, "class": labels}), tmp_path / "t.parquet", row_group_size=3)
    records = read_records(tmp_path / "t.parquet")
    assert [r.path for r in records] == [None] * 7
    for i in (6, 0, 3, 2):
        assert np.array_equal(np.asarray(open_picture(records[i])), np.asarray(scene(i)))


def dataset(count: int = 4, first: int = 0):  # -> datasets.Dataset
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["tom cat", "dog"])})
    rows = [{"bytes": encoded(scene(first + i)), "path": None} for i in range(count)]
    return datasets.Dataset.from_dict({"picture": rows, "kind": [i % 2 for i in range(count)]}, features=features)


def test_saved_dataset(tmp_path: Path) -> None:
    dataset().save_to_disk(str(tmp_path / "saved"))
    records = read_records(tmp_path / "saved")
    assert [r.label for r in records] == ["tom cat", "dog"] * 2
    assert {r.split for r in records} == {None}
    assert np.array_equal(np.asarray(open_picture(records[3])), np.asarray(scene(3)))
    with pytest.raises(DiptychError, match='no column "knd"'):
        read_records(tmp_path / "saved", label_column="knd")


def test_saved_dataset_with_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": dataset(4), "validation": dataset(2, 10), "unlabelled": dataset(2, 20)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    records = read_records(tmp_path / "saved")
    assert Counter((r.split, r.label) for r in records) == {
        ("train", "tom cat"): 2,
        ("train", "dog"): 2,
        ("val", "tom cat"): 1,
        ("val", "dog"): 1,
        (None, None): 2,
    }
    assert len(set(records.ids)) == len(records)
    assert "validation row 1" in records.ids


def test_folder_of_parquet_and_arrow_files(tmp_path: Path) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    dataset(4).to_parquet(str(tmp_path / "hub/data/train-00000-of-00001.parquet"))
    dataset(2, 10).to_parquet(str(tmp_path / "hub/data/test-00000-of-00001.parquet"))
    records = read_records(tmp_path / "hub")
    assert Counter(r.split for r in records) == {"train": 4, "test": 2}
    assert records.labels == ("dog", "tom cat")
    by_split = records.filter(lambda r: r.split == "test")
    assert np.array_equal(np.asarray(open_picture(by_split[1])), np.asarray(scene(11)))

    dataset(4).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "arrow").mkdir()
    (tmp_path / "saved/data-00000-of-00001.arrow").rename(tmp_path / "arrow/train.arrow")
    assert [r.label for r in read_records(tmp_path / "arrow")] == ["tom cat", "dog"] * 2


def test_broken_saved_dataset(tmp_path: Path) -> None:
    dataset().save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved/data-00000-of-00001.arrow").unlink()
    with pytest.raises(DiptychError, match="not a complete save_to_disk folder"):
        read_records(tmp_path / "saved")


def test_a_parquet_file_among_class_folders_is_no_dataset(photos: Photos) -> None:
    root = photos({"cat": 1, "dog": 1})
    (root / "embeddings.parquet").write_bytes(b"x")
    assert len(read_records(root)) == 2


def test_real_folders(test_data: Path) -> None:
    assert Counter(r.split for r in read_records(test_data / "cifar10")) == {"train": 1000, "test": 500}
    assert len(read_records(test_data / "pacs/photo").labels) == 7


def test_reading_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, diptych.data.records, diptych.data.read; assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
