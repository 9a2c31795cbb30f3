"""The honest task: fixed test, nothing on both sides, draws that nest."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.data.read import read_records
from diptych.data.task import Task, make_task
from diptych.errors import DiptychError

from .conftest import encoded, scene

Photos = Callable[..., Path]


def both_sides(task: Task) -> tuple[set[str], set[str]]:
    return set(task.pool.ids), set(task.test.ids)


def test_split_is_stratified_fixed_and_whole(photos: Photos) -> None:
    root = photos({"cat": 10, "dog": 5, "bird": 2, "unlabelled": 4})
    task = make_task(root, shots=2)
    assert task.classes == task.names == ("bird", "cat", "dog")
    assert Counter(r.label for r in task.test) == {"cat": 4, "dog": 2, "bird": 1}
    assert Counter(r.label for r in task.pool) == {"cat": 6, "dog": 3, "bird": 1}
    assert len(task.unlabelled) == 4
    pool, test = both_sides(task)
    assert not pool & test
    assert task.labels(task.test) == [task.classes.index(r.label or "") for r in task.test]
    assert task.warnings == ()
    assert task.shots == 2
    assert task.name == "photos"
    assert set(task.digests) == pool | test | set(task.unlabelled.ids)


def test_file_order_and_names_do_not_matter(photos: Photos, tmp_path: Path) -> None:
    root = photos({"cat": 9, "dog": 9})
    records = read_records(root)
    task = make_task(records)
    shuffled = make_task(records[[*range(17, 8, -1), *range(9)]])
    assert both_sides(task) == both_sides(shuffled)
    assert task.data_hash == shuffled.data_hash
    assert set(task.draw(2, 5).ids) == set(shuffled.draw(2, 5).ids)
    moved = tmp_path / "moved"
    for path in sorted(root.rglob("*.png")):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.parent.name / f"x{9 - int(path.stem)}.png")
    renamed = make_task(moved)
    assert renamed.data_hash == task.data_hash
    assert {renamed.digests[i] for i in renamed.test.ids} == {task.digests[i] for i in task.test.ids}


def test_hash_knows_contents_labels_and_sides(photos: Photos) -> None:
    root = photos({"cat": 4, "dog": 4})
    before = make_task(root).data_hash
    assert make_task(root, test_fraction=0.25).data_hash != before
    (root / "dog/0.png").rename(root / "cat/9.png")
    assert make_task(root).data_hash != before


def test_draw(photos: Photos) -> None:
    task = make_task(photos({"cat": 20, "dog": 20, "bird": 4}))
    one, four, many = (task.draw(n, 3) for n in (1, 4, 100))
    assert set(one.ids) < set(four.ids) < set(many.ids)
    assert Counter(r.label for r in four) == {"cat": 4, "dog": 4, "bird": 2}
    assert set(many.ids) == set(task.pool.ids) == set(task.draw(None, 3).ids)
    assert task.draw(4, 3).ids == four.ids
    assert len({tuple(sorted(task.draw(4, seed).ids)) for seed in range(5)}) == 5
    assert not set(four.ids) & set(task.test.ids)
    with pytest.raises(DiptychError, match="0 shots"):
        task.draw(0, 0)


def test_copies_stay_together_and_are_drawn_last(photos: Photos) -> None:
    root = photos({"cat": 8, "dog": 8})
    for i in range(8):  # every cat has two copies
        shutil.copy(root / f"cat/{i}.png", root / f"cat/{i}b.png")
        (root / f"cat/{i}c.jpg").write_bytes(encoded(scene(i), "JPEG", quality=80))
    task = make_task(root)
    assert len(task.duplicates) == 8
    pool, test = both_sides(task)
    for i in range(8):
        names = {f"cat/{i}.png", f"cat/{i}b.png", f"cat/{i}c.jpg"}
        assert names <= pool or names <= test
    assert len({task.bundles[f"cat/{i}{x}"] for i in range(8) for x in (".png", "b.png", "c.jpg")}) == 8
    cats = sum(r.label == "cat" for r in task.pool) // 3
    for seed in range(4):
        drawn = [r for r in task.draw(cats, seed) if r.label == "cat"]
        assert len(set(task.groups(drawn))) == cats  # no picture twice while others are left
        assert sum(r.label == "cat" for r in task.draw(cats + 2, seed)) == cats + 2


def write_table(root: Path, rows: list[list[str]], header: tuple[str, ...]) -> Path:
    with open(root / "t.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([header, *rows])
    return root / "t.csv"


def test_groups_are_on_one_side(photos: Photos) -> None:
    root = photos({"p": 60})
    rows = [[f"p/{i}.png", "cat" if i % 2 else "dog", f"patient {i // 6}"] for i in range(60)]
    table = write_table(root, rows, ("image", "label", "patient"))
    task = make_task(table, group="patient")
    assert {r.group for r in task.pool}.isdisjoint({r.group for r in task.test})
    assert Counter(r.label for r in task.test) == {"cat": 12, "dog": 12}
    assert {r.group for r in make_task(table).pool} == {None}
    plain_pool = {int(r.id.split()[1]) - 1 for r in make_task(table).pool}
    plain_test = set(range(60)) - plain_pool
    assert {i // 6 for i in plain_pool} & {i // 6 for i in plain_test}  # without the column they do mix
    with pytest.raises(DiptychError, match=r'no column "pateint"; did you mean "patient"'):
        make_task(table, group="pateint")
    with pytest.raises(DiptychError, match="groups among them, come from a table"):
        make_task(root, group="patient")


def test_uneven_groups_leave_every_class_on_both_sides(photos: Photos) -> None:
    root = photos({"p": 24})
    sizes = {"cat": [9, 1], "dog": [2, 2], "bird": [5, 3, 2]}
    rows: list[list[str]] = []
    for label, counts in sizes.items():
        for g, count in enumerate(counts):
            rows += [[f"p/{len(rows) + k}.png", label, f"{label}{g}"] for k in range(count)]
    task = make_task(write_table(root, rows, ("image", "label", "g")), group="g", test_fraction=0.1)
    assert set(task.test.labels) == set(task.pool.labels) == {"bird", "cat", "dog"}
    assert {r.group for r in task.pool}.isdisjoint({r.group for r in task.test})


def test_class_of_one_group_is_named(photos: Photos) -> None:
    root = photos({"p": 12})
    rows = [[f"p/{i}.png", "cat" if i < 6 else "dog", "only" if i < 6 else f"g{i}"] for i in range(12)]
    task = make_task(write_table(root, rows, ("image", "label", "g")), group="g")
    assert any("no test pictures of cat" in warning for warning in task.warnings)
    assert task.pool.labels == ("cat", "dog")
    rows = [[*row[:2], row[1]] for row in rows]
    with pytest.raises(DiptychError, match="nothing is left to test on"):
        make_task(write_table(root, rows, ("image", "label", "g")), group="g")


def test_own_split(photos: Photos) -> None:
    root = photos({"train/cat": 4, "train/dog": 4})
    photos({"val/cat": 2, "val/dog": 2}, seed=100)
    photos({"test/cat": 3, "test/dog": 3}, seed=200)
    task = make_task(root)
    assert {r.split for r in task.test} == {"test"}
    assert (len(task.pool), len(task.test)) == (12, 6)
    assert any("4 validation pictures join the pool" in warning for warning in task.warnings)


def test_own_split_without_a_test(photos: Photos) -> None:
    root = photos({"train/cat": 5, "train/dog": 5})
    photos({"val/cat": 5, "val/dog": 5}, seed=100)
    task = make_task(root)
    assert (len(task.pool), len(task.test)) == (12, 8)
    assert any("no test split: 8 of its pictures" in warning for warning in task.warnings)


def test_copies_across_the_users_split_are_dropped_and_named(photos: Photos) -> None:
    root = photos({"train/cat": 5, "train/dog": 5})
    photos({"test/cat": 3, "test/dog": 3}, seed=200)
    photos({"unlabelled": 3}, seed=300)
    shutil.copy(root / "test/cat/0.png", root / "train/cat/copy.png")
    (root / "train/dog/near.jpg").write_bytes(encoded(scene(1200).resize((50, 50)), "JPEG", quality=70))
    shutil.copy(root / "test/dog/1.png", root / "unlabelled/copy.png")
    task = make_task(root)
    assert sorted(d.kind for d in task.duplicates) == ["exact", "exact", "near"]
    assert (len(task.pool), len(task.test), len(task.unlabelled)) == (10, 6, 3)
    (warning,) = task.warnings
    assert warning.startswith("3 pictures are copies of test pictures")
    for name in ("train/cat/copy.png", "train/dog/near.jpg", "unlabelled/copy.png"):
        assert name in warning
        assert name not in {*task.pool.ids, *task.test.ids, *task.unlabelled.ids}


def test_copies_with_another_label_are_named(photos: Photos) -> None:
    root = photos({"cat": 5, "dog": 5})
    shutil.copy(root / "cat/0.png", root / "dog/9.png")
    task = make_task(root)
    (warning,) = task.warnings
    assert "cat/0.png (cat), dog/9.png (dog)" in warning
    pool, test = both_sides(task)
    assert {"cat/0.png", "dog/9.png"} <= pool or {"cat/0.png", "dog/9.png"} <= test


def test_bad_pictures_are_counted(photos: Photos) -> None:
    root = photos({"cat": 4, "dog": 4})
    (root / "cat/bad.jpg").write_bytes(b"")
    (root / "ghost").mkdir()
    (root / "ghost/a.png").write_bytes(b"no")
    task = make_task(root)
    assert {item.id for item in task.set_aside} == {"cat/bad.jpg", "ghost/a.png"}
    assert task.classes == ("cat", "dog")
    assert any("no picture of ghost can be read" in warning for warning in task.warnings)


def test_too_little(photos: Photos) -> None:
    with pytest.raises(DiptychError, match='"bird" has one picture; each class needs at least two'):
        make_task(photos({"cat": 3, "dog": 3, "bird": 1}))
    root = photos({"cat": 2, "dog": 2}, below="b")
    (root / "dog/1.png").write_bytes(b"")
    with pytest.raises(DiptychError, match=r'"dog" has one picture \(1 more could not be read\)'):
        make_task(root)
    (root / "dog/0.png").write_bytes(b"")
    with pytest.raises(DiptychError, match=r"only pictures of cat can be read.*dog/0.png: the file is empty"):
        make_task(root)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DiptychError, match="none of the 4 pictures can be read"):
        make_task(root)


def test_class_only_in_the_test(photos: Photos) -> None:
    root = photos({"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/bird": 2})
    with pytest.raises(DiptychError, match="no picture of bird is left outside the test"):
        make_task(root)


def test_names_and_templates(photos: Photos, tmp_path: Path) -> None:
    root = photos({"n01": 3, "n02": 3})
    assert "zero-shot" in make_task(root).warnings[0]
    (tmp_path / "names.csv").write_text("n02,a dog\nn01,a cat\n")
    task = make_task(root, names=tmp_path / "names.csv", templates=["a photo of {}."])
    assert (task.classes, task.names) == (("n01", "n02"), ("a cat", "a dog"))
    assert task.templates == ("a photo of {}.",)
    assert task.warnings == ()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 7.0])
def test_fraction(photos: Photos, fraction: float) -> None:
    with pytest.raises(DiptychError, match="between 0 and 1"):
        make_task(photos({"a": 2, "b": 2}), test_fraction=fraction)


def test_real_folders(test_data: Path) -> None:
    task = make_task(test_data / "cifar10")
    assert (len(task.pool), len(task.test)) == (1000, 500)
    assert [len(d.ids) for d in task.duplicates] == [2, 3]
    photo = make_task(test_data / "pacs/photo")
    assert (len(photo.pool), len(photo.test)) == (252, 168)
    assert photo.warnings == ()
    assert make_task(replace(read_records(test_data / "pacs/photo"), source="x")).data_hash == photo.data_hash
