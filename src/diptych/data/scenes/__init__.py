"""Procedural scenes with their full truth: a spec in, records out.

    from diptych.data.scenes import Scenes, SceneSpec

    scenes = Scenes(SceneSpec(shapes=("circle", "star"), textures=("solid", "striped"), counts=(2,)), 1000, seed=0)
    record = scenes[17]              # any number at once; nothing depends on order or workers
    record.picture                   # [64, 64, 3] uint8
    record.masks, record.regions     # [N, 64, 64] bool; phrases with boxes
    record.text("short")             # "a red circle left of a striped blue star on grass"
    record.text("long"), record.text("alt"), record.text("rewrite 1"), record.text("short de")
    record.foils                     # captions that are false by one marked word
    record.questions                 # with their answers
    scenes.pairs("short", "long")    # pictures with texts, to train on
    scenes.records("shape")          # labelled pictures, to adapt to and compare on

One core makes some 5,000 scenes a second with their pictures of 64 pixels, or 900 with all that is said of them.
`MovingScenes(MotionSpec(...))` are frames with motions and captions of two events; `Triples(TripleSpec(...))` a sound
that picture and text tell together and neither alone. Everything needs numpy and Pillow alone.
"""

from diptych.data.scenes.motion import MotionSpec as MotionSpec
from diptych.data.scenes.motion import MovingScenes as MovingScenes
from diptych.data.scenes.sets import SceneRecord as SceneRecord
from diptych.data.scenes.sets import Scenes as Scenes
from diptych.data.scenes.sound import Triples as Triples
from diptych.data.scenes.sound import TripleSpec as TripleSpec
from diptych.data.scenes.spec import SceneSpec as SceneSpec
