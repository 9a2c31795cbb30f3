"""Curation on a Ray cluster of two nodes, one of which is killed in the middle: the result of one process.

Ray takes most of a minute to begin, so this runs where DIPTYCH_TEST_RAY is set.
"""

import os
import threading
import time

import pytest
from curate_world import Recipe, Short, contents, table

from diptych.curation.run import curate

pytestmark = pytest.mark.skipif(not os.environ.get("DIPTYCH_TEST_RAY"), reason="DIPTYCH_TEST_RAY is not set")


class Slower(Short):
    def select(self, batch, place, counts):
        time.sleep(1.0)
        return super().select(batch, place, counts)


class Slowly(Recipe):
    def stages(self, columns, seed=0):
        return [Slower(), *super().stages(columns, seed)[1:]]


def test_a_node_killed_in_the_middle_loses_nothing(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    for n in range(12):
        table(tmp_path / "in" / f"{n:02d}.parquet", 200, n)
    curate(Slowly(), tmp_path / "in", tmp_path / "alone")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    lost = threading.Event()

    def progress(what, done, of):
        if done >= 2 and not lost.is_set():
            lost.set()
            cluster.remove_node(second, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        curate(Slowly(), tmp_path / "in", tmp_path / "ray", engine="ray", progress=progress)
        assert lost.is_set()
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
