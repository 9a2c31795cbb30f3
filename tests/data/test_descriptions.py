"""Banks of descriptors: files, answers of language models, controls."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.data.descriptions import (
    describe,
    lookup,
    parse,
    random_words,
    read_bank,
    shuffled,
)
from diptych.errors import DiptychError

SETS = {
    "CIFAR-10": "airplane automobile bird cat deer dog frog horse ship truck",
    "STL-10": "airplane bird car cat deer dog horse monkey ship truck",
    "PACS": "dog elephant giraffe guitar horse house person",
    "EuroSAT": "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River "
    "SeaLake",
    "DTD": "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted "
    "fibrous flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined "
    "marbled matted meshed paisley perforated pitted pleated polka-dotted porous potholed scaly smeared "
    "spiralled sprinkled stained stratified striped studded swirly veined waffled woven wrinkled "
    "zigzagged",
    "COCO": "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella "
    "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard "
    "surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange "
    "broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop "
    "mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors "
    "teddy_bear hair_drier toothbrush",
}


@pytest.mark.parametrize("name", SETS)
def test_the_built_in_bank_covers(name: str) -> None:
    names = SETS[name].split()
    found = lookup(read_bank(), names)
    assert set(found) == set(names)
    assert all(3 <= len(descriptors) <= 12 for descriptors in found.values())


def test_the_built_in_bank_covers_the_built_in_pictures() -> None:
    from diptych.data.openmoji import CLASSES

    assert set(lookup(read_bank(), CLASSES)) == set(CLASSES)


def test_descriptors_make_clean_clauses() -> None:
    for name, descriptors in read_bank().items():
        assert len(set(descriptors)) == len(descriptors), name
        assert all(d == d.strip() and not d.endswith(".") and len(d.split()) <= 9 for d in descriptors), name


def bank_file(folder: Path, content: Any) -> Path:
    path = folder / "bank.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    bank = read_bank(bank_file(tmp_path, {"Cat": ["whiskers ", ""], "kitten": "Cat", "dog": []}))
    assert bank == {"Cat": ("whiskers",), "kitten": ("whiskers",), "dog": ()}
    assert lookup(bank, ["CAT", "Kitten", "dog", "cow"]) == {"CAT": ("whiskers",), "Kitten": ("whiskers",)}


@pytest.mark.parametrize("content", ["{", "[]", {"cat": 3}, {"cat": [3]}, {"cat": "dog"}])
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DiptychError, match=r"bank\.json"):
        read_bank(bank_file(tmp_path, content))
    with pytest.raises(DiptychError, match="nowhere"):
        read_bank(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (" four legs\n- a tail\n", ("four legs", "a tail")),
        ("- four legs\n- a tail\nThat is all.\n-no space", ("four legs", "a tail")),
        (" fur\n- fur\n- paws\n\nQ: Which features tell a cup?\n- handle", ("fur", "paws")),
        ("\n- fur\n", ("fur",)),
        ("", ()),
        ("I do not know.", ("I do not know.",)),
    ],
)
def test_answers_are_parsed(completion: str, found: tuple[str, ...]) -> None:
    assert parse(completion) == found


class Parrot:
    """A language model that counts how often it is asked, and breaks when told to."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.asked: list[str] = []
        self.breaks_at = breaks_at

    def complete(self, prompt: str) -> str:
        if len(self.asked) == self.breaks_at:
            raise DiptychError("gone")
        self.asked.append(prompt)
        return f" like a {len(self.asked)}\n- round"


def test_answers_are_kept_and_work_is_taken_up_again(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "answers.json"
    with pytest.raises(DiptychError, match="gone"):
        describe(["cat", "dog", "cow_shed"], Parrot(breaks_at=2), store)
    assert set(read_bank(store)) == {"cat", "dog"}
    again = Parrot()
    bank = describe(["cat", "dog", "cow_shed"], again, store)
    assert len(again.asked) == 1 and "a cow shed in a photo" in again.asked[0]
    assert again.asked[0].endswith("\n-")
    assert bank["cat"] == ("like a 1", "round") and bank["cow_shed"] == ("like a 1", "round")
    describe(["dog"], Parrot(breaks_at=0), store)


def test_controls_keep_the_form_and_lose_the_meaning() -> None:
    bank = {"a": ("one two", "three"), "b": ("four",), "c": ("five six seven",), "d": ()}
    moved = shuffled(bank, 0)
    assert sorted(moved.values()) == sorted(bank.values())
    assert all(moved[name] != bank[name] for name in bank)
    random = random_words(bank, 0)
    assert {n: [len(d.split()) for d in v] for n, v in random.items()} == {
        n: [len(d.split()) for d in v] for n, v in bank.items()
    }
    assert random == random_words(dict(reversed(bank.items())), 0) != random_words(bank, 1)
