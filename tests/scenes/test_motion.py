"""Clips: the motions are those of the captions; directions need the order; jumps need the set and no order."""

import re
from collections import Counter

import numpy as np
import pytest

from diptych.data.scenes import MotionSpec, MovingScenes, SceneSpec
from diptych.data.scenes.motion import DIRECTIONS, JUMPS, MOTIONS, REVERSED, TRAVEL
from diptych.data.scenes.scene import RADIUS
from diptych.errors import DiptychError

TWO = SceneSpec(counts=(2,))


def centres(record) -> np.ndarray:
    """[T, N, 2] from the masks alone; nan where nothing is seen."""
    masks = record.masks
    found = np.full((*masks.shape[:2], 2), np.nan)
    for t, n in np.ndindex(*masks.shape[:2]):
        if masks[t, n].any():
            found[t, n] = np.argwhere(masks[t, n]).mean(0)[::-1] / masks.shape[-1]
    return found


def test_what_moves_goes_where_the_caption_says():
    for record in MovingScenes(MotionSpec(), 40):
        at = centres(record)[:, 0]
        (event,) = record.events
        step = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[event.motion]
        assert np.abs((at[-1] - at[0]) - TRAVEL * np.array(step)).max() < 0.02
        thing = record.scenes[0].things[0]
        assert re.fullmatch(f"an? {thing.colour} {thing.shape} moves {event.motion}", record.caption)
        assert record.label == DIRECTIONS.index(event.motion)
        assert record.frames.shape == (8, 64, 64, 3) and record.masks.shape == (8, 1, 64, 64)
        assert thing.radius == RADIUS[thing.size]


def test_a_direction_does_not_show_in_the_unordered_frames():
    """Where the path lies is as much by chance for either way."""
    middles = {"left": [], "right": []}
    for record in MovingScenes(MotionSpec(motions=("left", "right")), 1500):
        xs = [scene.things[0].x for scene in record.scenes]
        middles[record.events[0].motion].append((min(xs) + max(xs)) / 2)
        assert xs == sorted(xs, reverse=record.events[0].motion == "left")
    left, right = (np.array(middles[way]) for way in ("left", "right"))
    assert abs(left.mean() - right.mean()) < 4 * np.sqrt(left.var() / len(left) + right.var() / len(right))


def test_jumps_show_in_the_set_of_frames_and_in_no_single_one():
    changes = {"row": (True, False), "column": (False, True), "diagonal": (True, True)}
    seen = {motion: Counter() for motion in JUMPS}
    for record in MovingScenes(MotionSpec(motions=JUMPS), 1500):
        (event,) = record.events
        corners = {(scene.things[0].x > 0.5, scene.things[0].y > 0.5) for scene in record.scenes}
        (a, b) = corners
        assert (a[0] != b[0], a[1] != b[1]) == changes[event.motion]
        first = record.scenes[3].things[0]
        seen[event.motion][first.x > 0.5, first.y > 0.5] += 1
    for counts in seen.values():
        total = sum(counts.values())
        assert (
            all(abs(n / total - 0.25) < 4 * np.sqrt(0.25 * 0.75 / total) for n in counts.values()) and len(counts) == 4
        )


def test_appearing_growing_and_staying():
    spec = MotionSpec(motions=("appear", "vanish", "grow", "shrink", "still"))
    met = set()
    for record in MovingScenes(spec, 40):
        area = record.masks.sum((1, 2, 3))
        met.add(record.events[0].motion)
        match record.events[0].motion:
            case "appear":
                assert not area[:3].any() and area[-3:].all()
            case "vanish":
                assert area[:3].all() and not area[-3:].any()
            case "grow":
                assert area[-1] > 2 * area[0] and (np.diff(area) >= -2).all()
            case "shrink":
                assert area[0] > 2 * area[-1]
            case "still":
                assert (record.frames == record.frames[0]).all()
    assert len(met) == 5


def test_two_events_happen_one_after_the_other():
    spec = MotionSpec(TWO, motions=(*DIRECTIONS, "appear", "grow"), events=2, frames=10)
    for record in MovingScenes(spec, 60):
        first, second = record.events
        assert {first.thing, second.thing} == {0, 1} and (first.start, first.stop, second.stop) == (0, 5, 10)
        later = zip(record.scenes[1:], record.scenes, strict=False)
        moved = np.array([[a.things[n] != b.things[n] for n in (0, 1)] for a, b in later])
        assert moved[:4, first.thing].any() and not moved[4:, first.thing].any()
        assert moved[4:, second.thing].any() and not moved[:4, second.thing].any()
        things = record.scenes[0].things
        clauses = record.caption.split(", then ")
        for clause, event in zip(clauses, record.events, strict=True):
            assert re.fullmatch(
                f"an? {things[event.thing].colour} {things[event.thing].shape} {MOTIONS[event.motion]}", clause
            )
        assert (record.masks.sum(1) <= 1).all()
        whole = np.stack([drawing.whole_masks for drawing in record.drawings])
        assert not (whole[:, 0] & whole[:, 1]).any()


def test_foils_of_clips_are_false_and_marked():
    spec = MotionSpec(TWO, motions=(*DIRECTIONS, "appear", "vanish"), events=2)
    kinds = Counter()
    for record in MovingScenes(spec, 80):
        for foil in record.foils:
            kinds[foil.kind] += 1
            before, after = foil.caption.split(), foil.text.split()
            assert foil.caption == record.caption != foil.text
            if foil.words:
                assert tuple(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b) == foil.words
            if foil.kind == "motion":
                assert len(foil.words) == 1
                word = after[foil.words[0]].rstrip(",")
                assert any(MOTIONS[REVERSED[event.motion]].split()[-1] == word for event in record.events)
            if foil.kind == "order":
                assert foil.text.split(", then ") == foil.caption.split(", then ")[::-1]
    assert kinds["motion"] == 160 and kinds["order"] == 80 and 40 < kinds["swap"] < 80


def test_clips_depend_on_their_number_alone():
    spec = MotionSpec(TWO, events=2)
    assert (MovingScenes(spec, 50, 1)[9].frames == MovingScenes(spec, 10, 1)[9].frames).all()
    assert MovingScenes(spec, 50, 1)[9].caption == MovingScenes(spec, 10, 1)[9].caption


@pytest.mark.parametrize(
    "wrong",
    [{"motions": ("lef",)}, {"events": 2}, {"events": 3}, {"frames": 1}, {"scene": SceneSpec()}, {"motions": ()}],
)
def test_a_wrong_motion_is_refused(wrong: dict):
    with pytest.raises(DiptychError, match="scenes: "):
        MotionSpec(**wrong)
