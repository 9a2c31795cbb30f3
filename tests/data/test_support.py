"""Folds and cuts of the shots."""

from dataclasses import replace

import pytest
import torch
from tiny import MadeUp, support_of

from diptych.data.records import Records
from diptych.data.support import Support

NAMES = ("a", "b", "c")


def shots(labels: list[int], groups: list[int] | None = None, seed: int = 0) -> Support:
    support = support_of(MadeUp(torch.zeros(len(labels), 2)), labels, NAMES, seed)
    return support if groups is None else replace(support, groups=tuple(groups))


@pytest.mark.parametrize("each", [2, 3, 4, 7, 16])
def test_every_shot_is_held_once_and_folds_are_stratified(each: int) -> None:
    support = shots([0, 1, 2] * each)
    folds = support.folds(4)
    assert len(folds) == min(4, each)
    assert sorted(i for _, held in folds for i in held) == list(range(3 * each))
    for fit, held in folds:
        assert sorted(fit + held) == list(range(3 * each))
        counts = torch.bincount(support.labels[held], minlength=3)
        assert counts.max() - counts.min() <= 1
        assert (torch.bincount(support.labels[fit], minlength=3) > 0).all()


def test_one_shot_has_no_folds() -> None:
    assert shots([0, 1, 2]).folds() == []
    assert shots([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]).folds() == []  # two pictures of one burst are one
    assert shots([]).folds() == []


def test_groups_never_straddle() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator).tolist()
    groups = torch.randint(12, (60,), generator=generator).tolist()  # patients, each seen in several classes
    folds = shots(labels, groups).folds(4)
    assert len(folds) == 4
    for fit, held in folds:
        assert not {groups[i] for i in fit} & {groups[i] for i in held}
        assert {labels[i] for i in fit} == {0, 1, 2}


def test_a_class_with_one_picture_stays_in_every_fit() -> None:
    support = shots([0, 0, 0, 1, 1, 1, 2])
    for fit, held in support.folds():
        assert 6 in fit and 6 not in held


def test_a_group_that_is_all_of_a_class_stays_in_every_fit() -> None:
    support = shots([0, 1, 0, 1, 2, 1], [0, 0, 1, 2, 3, 4])  # group 0 holds both classes 0 and 1
    folds = support.folds(2)
    for fit, _ in folds:
        assert {int(support.labels[i]) for i in fit} == {0, 1, 2}


def test_folds_depend_on_the_seed_and_not_on_any_order() -> None:
    support = shots([0, 1, 2] * 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = support.only(order)
    renamed = support.of_classes([2, 0, 1])

    def held(cut: Support) -> set[frozenset[str]]:
        return {frozenset(cut.records[i].id for i in part) for _, part in cut.folds()}

    assert held(support) == held(mixed) == held(renamed)
    assert held(support) != held(replace(support, seed=1))


def test_of_classes_relabels() -> None:
    support = shots([0, 1, 2, 0, 1, 2]).of_classes([2, 0])
    assert support.names == ("c", "a")
    assert support.labels.tolist() == [1, 0, 1, 0]
    assert [r.id for r in support.records] == ["0", "2", "3", "5"]
    assert support.counts.tolist() == [2, 2]


def test_holds_no_test_picture() -> None:
    held = {name for name, value in vars(shots([0, 1, 2])).items() if isinstance(value, Records)}
    assert held == {"records", "unlabelled"}
