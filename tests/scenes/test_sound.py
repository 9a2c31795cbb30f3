"""Triples: any two modalities are independent, all three are not; the sound can be heard."""

from collections import Counter

import numpy as np
import pytest

from diptych.data.scenes import Triples, TripleSpec
from diptych.data.scenes.sound import LOWEST, RATE, SAMPLES, note
from diptych.data.scenes.spec import SHAPES, SceneSpec
from diptych.errors import DiptychError


def heard(sound: np.ndarray, values: int) -> int:
    """The note with the greatest energy, at any phase."""
    energy = [np.hypot(sound @ note(n), sound @ note(n, 0.25)) for n in range(values)]
    return int(np.argmax(energy))


@pytest.mark.parametrize("values", [2, 5])
def test_two_modalities_tell_nothing_of_the_third_and_of_each_other(values: int):
    """Read from what is drawn, said and played."""
    rows = []
    for record in Triples(TripleSpec(values=values), 600):
        (thing,) = record.scene.things
        said = next(shape for shape in SHAPES if record.text.endswith(shape))
        rows.append((SHAPES.index(thing.shape), SHAPES.index(said), heard(record.sound, values)))
        assert rows[-1] == record.classes
    rows = np.array(rows)
    assert (rows[:, 0] == (rows[:, 1] + rows[:, 2]) % values).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        table = np.zeros((values, values))
        np.add.at(table, (rows[:, a], rows[:, b]), 1)
        expected = 600 / values**2
        chi = ((table - expected) ** 2 / expected).sum()
        free = values**2 - 1
        assert chi < free + 4 * np.sqrt(2 * free)


def test_the_control_has_one_class_in_all_three():
    assert all(len(set(record.classes)) == 1 for record in Triples(TripleSpec(values=4, link="same"), 50))


def test_everything_else_is_independent_of_the_classes():
    by_class = {0: [], 1: []}
    for record in Triples(TripleSpec(), 1000):
        by_class[record.classes[0]].append(record.scene.things[0].colour)
    counts = [Counter(colours) for colours in by_class.values()]
    for colour in counts[0] | counts[1]:
        a, b = (c[colour] / c.total() for c in counts)
        assert abs(a - b) < 4 * np.sqrt(2 * 0.1 * 0.9 / 500)


def test_a_sound_is_short_and_has_the_pitch_of_its_note():
    sound = Triples(TripleSpec(hiss=0.0))[0].sound
    assert sound.dtype == np.float32 and sound.shape == (SAMPLES,) and 0.6 < np.abs(sound).max() <= 1
    for number in range(8):
        spectrum = np.abs(np.fft.rfft(note(number), 8 * SAMPLES))
        pitch = np.argmax(spectrum) * RATE / (8 * SAMPLES)
        assert pitch == pytest.approx(LOWEST * 2 ** (number / 3), rel=0.02)


@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_modalities_are_missing_at_the_rate_that_was_asked(missing: float):
    present = np.array([record.present for record in Triples(TripleSpec(missing=missing), 1500)])
    assert present.any(1).all()
    kept = 1 - missing + missing**3 / 3  # one at least stays
    assert np.abs(present.mean(0) - kept).max() < 4 * np.sqrt(0.25 / 1500)
    assert missing > 0 or present.all()


def test_triples_as_pairs_and_by_number():
    triples = Triples(TripleSpec(), 20, 3)
    pair = triples.pairs()[7]
    assert pair.texts == (triples[7].text,) and pair.extra["classes"] == triples[7].classes
    holes = Triples(TripleSpec(missing=0.5), 20)
    for record, one in zip(holes, holes.pairs(), strict=True):
        assert [name not in one.extra["missing"] for name in ("image", "text", "sound")] == list(record.present)
    assert (pair.extra["sound"] == Triples(TripleSpec(), 8, 3)[7].sound).all()
    assert (np.asarray(pair.picture()) == triples[7].picture).all()


@pytest.mark.parametrize("wrong", [{"values": 1}, {"values": 13}, {"link": "xr"}, {"missing": 2.0}])
def test_a_wrong_triple_is_refused(wrong: dict):
    with pytest.raises(DiptychError, match="scenes: "):
        TripleSpec(**wrong)
    with pytest.raises(DiptychError, match="from 2 to 1"):
        TripleSpec(SceneSpec(shapes=("star",), counts=(1,)))
