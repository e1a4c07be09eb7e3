"""The model by which training on many GPUs is reckoned, and the record of it."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import figures  # noqa: E402
import scale  # noqa: E402

RECORD = json.loads(figures.SCALE.read_text())
NETWORK = {"parameters": 5_000_000, "flops": 1e9, "norms": 20}


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_a_ring_takes_the_time_of_its_steps_one_after_the_other(gpus):
    assumed = scale.ASSUMED | {"node": 8, "nvlink": (1e9, 1e-3)}
    # Each GPU passes one of n chunks on to the next, until every chunk has been everywhere, added up and then whole.
    seconds, arrived = 0.0, [{place} for place in range(gpus)]
    for _ in range(2):
        while any(len(chunks) < gpus for chunks in arrived):
            seconds += 8e6 / gpus / 1e9 + 1e-3
            arrived = [chunks | arrived[place - 1] for place, chunks in enumerate(arrived)]
        arrived = [{place} for place in range(gpus)]
    assert scale.all_reduce_seconds(8e6, gpus, assumed=assumed) == pytest.approx(seconds)


def test_between_nodes_each_gpu_carries_its_share_of_the_bytes():
    none = scale.ASSUMED | {"nvlink": (float("inf"), 0.0), "infiniband": (1e9, 0.0)}
    assert scale.all_reduce_seconds(8e6, 16, assumed=none) == pytest.approx(2 * 1 / 2 * 1e6 / 1e9)
    assert scale.all_reduce_seconds(8e6, 8, assumed=none) == 0


def test_more_gpus_never_do_better_than_in_proportion_and_less_to_send_is_never_slower():
    before = 1.0
    for gpus in scale.GPUS:
        plain = scale.simulate(NETWORK, {"batch": 8192}, gpus)
        rounded = scale.simulate(NETWORK, {"batch": 8192, "bytes": 2}, gpus)
        norms = scale.simulate(NETWORK, {"batch": 8192, "sync_norm": True}, gpus)
        assert norms["efficiency"] < plain["efficiency"] <= rounded["efficiency"]
        assert plain["efficiency"] <= before
        before = plain["efficiency"]


def test_a_part_of_a_batch_below_two_images_is_none():
    assert scale.simulate(NETWORK, {"batch": 1024}, 1024) is None
    assert scale.simulate(NETWORK, {"batch": 2048}, 1024)["batch"] == 2048
    assert scale.simulate(NETWORK, {"each": 2, "accumulate": 4}, 8)["batch"] == 64


def test_the_record_is_what_the_model_says_of_what_was_counted():
    network = RECORD["networks"][scale.NETWORK]
    assert network == scale.described(scale.NETWORK)
    for row in RECORD["reckoned"]:
        for gpus, one in zip(scale.GPUS, row["at"], strict=True):
            assert one == pytest.approx(scale.simulate(network, scale.WAYS[row["way"]], gpus))
    assert json.loads(json.dumps(scale.ASSUMED)) == RECORD["assumed"]


def test_what_was_measured_has_every_way_and_its_spread():
    for measured in RECORD["measured"]:
        assert len(measured["rows"]) == 4
        for row in measured["rows"]:
            for spread in (row["images_per_second"], row["of_one_core"], row["of_threads"]):
                assert 0 < spread["min"] <= spread["median"] <= spread["max"]
