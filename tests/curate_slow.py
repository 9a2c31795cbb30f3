"""A recipe that takes its time, for tests that stop it."""

import os
import time
from pathlib import Path

from curate_world import Config, Half, Recipe, Short


class Slow(Recipe):
    Config = Config

    def stages(self, columns, seed=0):
        return [Sleeps(seed)]


class Sleeps(Half):
    def select(self, batch, place, counts):
        Path(os.environ["CURATE_BEGUN"]).touch()
        time.sleep(60)
        return super().select(batch, place, counts)


class Slower(Short):
    def select(self, batch, place, counts):
        time.sleep(1.0)
        return super().select(batch, place, counts)


class Slowly(Recipe):
    Config = Config

    def stages(self, columns, seed=0):
        return [Slower(), *super().stages(columns, seed)[1:]]
