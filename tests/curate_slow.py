"""A recipe that takes its time, for a test that stops it."""

import os
import time
from pathlib import Path

from curate_world import Config, Half, Recipe


class Slow(Recipe):
    Config = Config

    def stages(self, columns, seed=0):
        return [Sleeps(seed)]


class Sleeps(Half):
    def select(self, batch, place, counts):
        Path(os.environ["CURATE_BEGUN"]).touch()
        time.sleep(60)
        return super().select(batch, place, counts)
