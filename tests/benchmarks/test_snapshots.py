"""The benchmarks of Hub snapshots: tiny repos on a real Hub and a real server."""

import os
import signal
from dataclasses import replace

import pytest

from benchmarks.cases import SMALL, all_benchmarks
from benchmarks.cases.snapshots import DOWNLOAD, OURS, REPO_ID, UPLOADS
from benchmarks.files import FileSet
from benchmarks.results import Outcome
from benchmarks.spec import BenchmarkError
from hfflows.artifacts import _pipeline

pytestmark = pytest.mark.slow

OBSTORE = UPLOADS[1]
SIZE = SMALL.repo.total_bytes


def tiny(name, sizes=SMALL):
    (found,) = [one for one in all_benchmarks(sizes) if one.name == name]
    found.keep_only([OURS.contender, DOWNLOAD.contender, OBSTORE.contender])
    return found


def measured(benchmark, lab):
    """Return what one round gives, without the warm-up before it."""
    outcome = Outcome(benchmark)
    benchmark.set_up(lab)
    benchmark.begin_round(lab)
    for row in benchmark.rows:
        outcome.add(row.name, 1, benchmark.measure(lab, row))
    benchmark.end_round()
    return outcome


def test_a_cold_snapshot_is_measured_beside_both_legs(lab):
    outcome = measured(tiny("snapshot-cold"), lab)
    ours, down, up = (outcome.samples[row.name][1] for row in (OURS, DOWNLOAD, OBSTORE))
    for sample in (ours, down):
        assert SIZE <= sample["hub_bytes"] < SIZE * 1.01
        assert sample["hub_requests"] >= 5
    for sample in (ours, up):
        assert SIZE <= sample["bytes_to_server"] < SIZE * 1.1
    assert up["hub_requests"] == down["requests"] == 0
    if lab.counts_disk():
        assert ours["disk_bytes"] < 0.05 * SIZE <= SIZE <= down["disk_bytes"]


def test_a_load_comes_from_the_store_and_a_pinned_commit_asks_nobody_much(lab):
    loaded = measured(tiny("snapshot-warm-load"), lab).samples[OURS.name][1]
    assert loaded["bytes_from_server"] >= SIZE
    assert loaded["hub_requests"] == loaded["hub_bytes"] == 0
    pinned = tiny("snapshot-pinned")
    outcome = measured(pinned, lab)
    assert [outcome.verdict(bar).is_met for bar in pinned.bars[:2]] == [True, True]
    assert 0 < outcome.samples[OURS.name][1]["requests"] <= 2


def test_of_a_new_revision_only_the_changed_file_comes_from_the_hub(lab):
    benchmark = tiny("snapshot-new-revision")
    outcome = measured(benchmark, lab)
    assert outcome.samples[OURS.name][1]["hub_bytes"] >= SMALL.repo.size_bytes
    assert outcome.verdict(benchmark.bars[0]).is_met


def test_a_fleet_downloads_once(lab):
    benchmark = tiny("snapshot-fleet")
    assert benchmark.parameters["workers"] == 16
    outcome = measured(benchmark, lab)
    sample = outcome.samples[OURS.name][1]
    assert sample["hub_requests"] >= 16  # each of them resolves the branch
    assert 1 <= sample["hub_per_byte"] <= 1.02


@pytest.mark.parametrize("name", ["snapshot-dead-holder", "snapshot-killed"])
def test_what_a_killed_worker_had_fetched_counts_too(lab, name):
    sample = measured(tiny(name), lab).samples[OURS.name][1]
    window = _pipeline.READS_AHEAD + _pipeline.UPLOADS_IN_FLIGHT + 1
    lost = window * _pipeline.OBJECT_BYTES / SMALL.killed_repo.total_bytes
    assert 1.001 < sample["hub_per_byte"] <= 1 + lost  # without a kill: 1.0001
    assert sample["seconds"] > SMALL.lease_seconds - 1  # the dead one's lease has run out


def test_a_download_that_is_over_before_the_kill_is_no_measurement(lab):
    benchmark = tiny("snapshot-killed", replace(SMALL, killed_repo=FileSet(1, 1000)))
    benchmark.begin_round(lab)
    benchmark._files = FileSet(1, 10**9)  # half of which will never come
    with pytest.raises(BenchmarkError, match="ended before it could be killed"):
        benchmark.measure(lab, OURS)


def test_the_hub_is_a_process_of_its_own_that_ends_when_the_next_one_is_needed(lab, tmp_path):
    FileSet(1, 1000, ".safetensors").write(tmp_path / "files")
    first = lab.new_hub()
    assert first.publish(REPO_ID, tmp_path / "files")
    assert first.counts().requests == first.counts().bytes_sent == 0
    second = lab.new_hub()
    assert first.environ["HF_ENDPOINT"] != second.environ["HF_ENDPOINT"]
    assert first._process._process.poll() is not None
    os.killpg(second._process._process.pid, signal.SIGKILL)
    with pytest.raises(BenchmarkError):
        second.counts()
