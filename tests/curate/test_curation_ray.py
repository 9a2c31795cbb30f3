"""Curation on a Ray cluster of two nodes, one of which is killed in the middle: the result of one process.

Ray takes most of a minute to begin, so this runs where DIPTYCH_TEST_RAY is set.
"""

import os
import threading
from pathlib import Path

import pytest
from curate_slow import Slowly
from curate_world import contents, table

import diptych
from diptych.curation.run import curate

pytestmark = pytest.mark.skipif(not os.environ.get("DIPTYCH_TEST_RAY"), reason="DIPTYCH_TEST_RAY is not set")


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
        paths = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(Path(__file__).parents[1])])
        environment = {"env_vars": {"PYTHONPATH": paths}}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        curate(Slowly(), tmp_path / "in", tmp_path / "ray", engine="ray", progress=progress)
        assert lost.is_set()
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
