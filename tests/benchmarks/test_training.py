"""The benchmarks of training: tiny sizes on a real server, and that each shows what it is for."""

import json
from dataclasses import replace

import pytest

from benchmarks.cases import SMALL, all_benchmarks
from benchmarks.cases.frozen import EVERY_TENTH, EVERYTHING, LORA, WITH_OPTIMIZER, _kinds
from benchmarks.cases.lineage import LISTED, READ
from benchmarks.cases.resume import BARE, LOADED, RESUMED
from benchmarks.cases.training import COPIED, LOOP, MOVED, WAITS, Blocking
from benchmarks.files import FileSet
from benchmarks.metrics import METRICS
from benchmarks.spec import BenchmarkError
from benchmarks.weights import MODEL, OPTIMIZER
from tests.benchmarks.test_snapshots import measured

MIB = 1 << 20
SIZE = SMALL.large.total_bytes


def tiny(name, sizes=SMALL):
    (found,) = [one for one in all_benchmarks(sizes) if one.name == name]
    return found


def samples(benchmark, lab):
    return {row: rounds[1] for row, rounds in measured(benchmark, lab).samples.items()}


# Weights ----------------------------------------------------------------------------------


def tensors_in(path):
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    found = {}
    for name, tensor in header.items():
        low, high = tensor["data_offsets"]
        found[name] = data[begin + low : begin + high]
        assert tensor["shape"] == [len(found[name])]
    assert sum(map(len, found.values())) == len(data) - begin
    return found


@pytest.mark.parametrize(
    ("kind", "share"), [(EVERY_TENTH, 0.1), (WITH_OPTIMIZER, 0.1), (LORA, 0.01), (EVERYTHING, 1)]
)
def test_a_step_changes_the_tensors_that_are_trained_and_no_other(tmp_path, kind, share):
    weights, root = _kinds(SMALL)[kind], tmp_path / "checkpoint"
    weights.write(root)
    before = tensors_in(root / MODEL)
    moments = tensors_in(root / OPTIMIZER) if weights.has_optimizer else {}
    weights.step(root)

    after = tensors_in(root / MODEL)
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    size = sum(map(len, before.values()))
    assert sum(len(before[name]) for name in changed) / size == pytest.approx(share, abs=0.002)
    assert weights.share == pytest.approx(share, abs=0.002)
    for name, data in moments.items():
        assert name.rpartition(".")[0] in changed
        assert tensors_in(root / OPTIMIZER)[name] != data
    assert len(moments) == (2 * len(changed) if weights.has_optimizer else 0)


def test_shares_are_written_in_percent_and_less_than_nothing_like_any_time():
    assert METRICS["overhead_seconds"].text(-0.0251) == "-25.1 ms"
    assert METRICS["throughput_lost"].spread_text(0.145, 0.125, 0.2) == "14.5 % [12.5-20]"


# Benchmarks -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_save_in_the_background_is_over_before_it_is_committed(lab):
    found = samples(tiny("checkpoint-blocking"), lab)

    assert set(found) == {WAITS.name, MOVED.name, COPIED.name}
    for sample in found.values():
        assert SIZE <= sample["bytes_to_server"] < 1.1 * SIZE
        assert 0 < sample["seconds"] <= sample["committed_seconds"]
    assert found[WAITS.name]["seconds"] == found[WAITS.name]["committed_seconds"]
    for row in (MOVED, COPIED):
        assert found[row.name]["seconds"] < 0.9 * found[row.name]["committed_seconds"]
    if lab.counts_disk():
        assert found[MOVED.name]["disk_bytes"] < MIB <= SIZE <= found[COPIED.name]["disk_bytes"]


@pytest.mark.slow
def test_what_should_be_moved_and_is_copied_is_no_measurement(lab, monkeypatch):
    def link(source, target):
        target.symlink_to(source)  # a link is never moved
        return target

    monkeypatch.setitem(Blocking.measure.__globals__, "_linked", link)
    benchmark = tiny("checkpoint-blocking", replace(SMALL, large=FileSet(1, 1000)))
    benchmark.set_up(lab)
    benchmark.begin_round(lab)
    with pytest.raises(BenchmarkError, match="put aside by copy"):
        benchmark.measure(lab, MOVED)
    benchmark.end_round()


@pytest.mark.slow
def test_frozen_tensors_are_stored_once(lab):
    sizes = replace(SMALL, layers=20, layer_bytes=MIB)
    benchmark = tiny("checkpoint-frozen", sizes)
    benchmark.rows = tuple(row for row in benchmark.rows if row.name == EVERY_TENTH)
    (sample,) = samples(benchmark, lab).values()

    assert 1.9 <= sample["stored_per_size"] <= 2.2
    assert sample["stored_bytes"] >= 1.9 * 20 * MIB * 0.99
    assert 0.99 * sample["stored_bytes"] < 10 * sample["bytes_to_server"]


@pytest.mark.slow
def test_a_listing_is_counted_and_its_number_checked(lab):
    benchmark = tiny("checkpoint-list")
    found = samples(benchmark, lab)

    assert found[READ.name]["requests"] >= SMALL.listed
    assert found[LISTED.name]["requests"] <= 2
    benchmark._newest = "another"
    with pytest.raises(BenchmarkError, match=f"listed {SMALL.listed} checkpoints"):
        benchmark.measure(lab, LISTED)


@pytest.mark.slow
def test_a_resumption_is_compared_with_the_bare_transfer_of_the_same_bytes(lab):
    found = samples(tiny("checkpoint-resume"), lab)

    size = SMALL.resumed.total_bytes
    for sample in found.values():
        assert size <= sample["bytes_from_server"] < 1.1 * size
    for row in (RESUMED, LOADED):
        bare = found[BARE.name]["seconds"]
        assert found[row.name]["overhead_seconds"] == found[row.name]["seconds"] - bare
    assert found[RESUMED.name]["requests"] == found[LOADED.name]["requests"] + 2
    assert "overhead_seconds" not in found[BARE.name]


@pytest.mark.slow
def test_the_end_of_a_task_is_counted_apart_from_its_saves(lab, prefect_server):
    lab._services_environ = prefect_server.environ()  # one server costs ten seconds
    benchmark = tiny("checkpoint-end")
    assert [row.name for row in benchmark.rows] == ["2 checkpoints", "20 checkpoints"]
    sample = benchmark.measure(lab, benchmark.rows[-1])

    assert sample["requests"] <= 2  # with the saves it would be a hundred
    assert 0 < sample["seconds"] < 30


@pytest.mark.slow
def test_training_goes_on_while_it_saves(lab):
    benchmark = tiny("checkpoint-throughput")
    benchmark.rows = (LOOP,)
    (sample,) = samples(benchmark, lab).values()

    assert sample["bytes_to_server"] >= 2 * SIZE
    assert sample["steps_per_second"] > 0
    assert sample["throughput_lost"] == pytest.approx(
        1 - sample["steps_per_second"] / sample["undisturbed_per_second"]
    )
