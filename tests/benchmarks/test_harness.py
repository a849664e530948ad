"""The benchmark harness itself: tiny runs on a real server, and the arithmetic of its report."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.cases import FULL, SMALL, all_benchmarks
from benchmarks.cases.transfer import Loads, Saves
from benchmarks.files import FileSet, check_equal
from benchmarks.lab import Lab
from benchmarks.metrics import METRICS
from benchmarks.process import ROOT
from benchmarks.report import markdown
from benchmarks.results import Outcome
from benchmarks.run import run
from benchmarks.spec import Bar, BenchmarkError, Row

FILES = FileSet(3, 1_500_000)
OURS = Row(name="ours", contender="hfflows")
OBSTORE = Row(name="obstore", contender="obstore")
BROKEN = Row(name="broken", contender="obstore", options={"no_such_option": 1})
BARS = (
    Bar(row="ours", metric="seconds", limit=1000, against=("obstore", "broken")),
    Bar(row="ours", metric="bytes_to_server", limit=1),
    Bar(row="ours", metric="seconds", limit=1, against=("broken",)),
)


@pytest.fixture(scope="module")
def saves(server):
    benchmark = Saves(
        "tiny", "Saves.", FILES, rows=(OURS, OBSTORE, BROKEN), bars=BARS, reference="ours"
    )
    with Lab(server, is_quiet=False) as made:
        return run(benchmark, made, rounds=1, say=lambda _: None)


def test_every_round_of_every_row_is_kept_without_the_warm_up(saves):
    assert {row: sorted(rounds) for row, rounds in saves.samples.items()} == {
        "ours": [1],
        "obstore": [1],
    }


def test_a_save_is_counted_at_the_server(saves):
    for samples in saves.samples.values():
        for sample in samples.values():
            assert FILES.total_bytes <= sample["bytes_to_server"] < FILES.total_bytes * 1.1
            assert sample["bytes_from_server"] < 10_000
            assert sample["requests"] >= FILES.count
            assert sample["seconds"] > 0
            assert 0 < sample["cpu_seconds"] < 10
            assert sample["peak_bytes"] > 0


def test_a_contender_that_fails_is_reported_with_its_error(saves):
    assert "no_such_option" in saves.failures["broken"]
    report = markdown(saves, rounds=1, is_small=True)
    (line,) = [line for line in report.splitlines() if line.startswith("| broken")]
    assert "failed: TypeError" in line


def test_bars_get_a_verdict_each_or_say_that_nobody_knows(saves):
    met = [saves.verdict(bar).is_met for bar in BARS]
    assert met == [True, False, None]
    assert saves.verdict(BARS[0]).best == "obstore"
    report = markdown(saves, rounds=1, is_small=False)
    assert [line.split("|")[-2].strip() for line in report.splitlines()[-3:]] == [
        "met",
        "**missed**",
        "not measured",
    ]


def test_the_table_is_rectangular_and_the_json_holds_what_was_measured(saves):
    tables = [line for line in markdown(saves, rounds=1, is_small=True).splitlines() if "|" in line]
    assert {line.count("|") for line in tables[:5]} == {tables[0].count("|")}
    document = json.loads(json.dumps(saves.to_json(), allow_nan=False))
    assert [one["round"] for one in document["rows"]["ours"]["rounds"]] == [1]
    assert document["rows"]["broken"]["rounds"] == []
    assert "no_such_option" in document["rows"]["broken"]["error"]


def test_loads_come_from_the_server_and_constants_of_a_sweep_take_effect(lab):
    small_objects = Row(name="small", contender="hfflows", options={"object_bytes": 256 * 1024})
    benchmark = Loads("tiny", "Loads.", FILES, rows=(OURS, small_objects))
    outcome = run(benchmark, lab, rounds=1, say=lambda _: None)
    assert outcome.failures == {}
    for samples in outcome.samples.values():
        assert samples[1]["bytes_from_server"] >= FILES.total_bytes
    requests = {row: samples[1]["requests"] for row, samples in outcome.samples.items()}
    assert requests["small"] >= requests["ours"] + FILES.count * 4


def test_the_command_line_writes_results_without_this_machines_names(tmp_path, capsys):
    arguments = ["newest", "--small", "--rounds=1", f"--output={tmp_path}"]
    assert main(arguments) == 0
    report = (tmp_path / "newest.md").read_text()
    assert report in capsys.readouterr().out
    text = (tmp_path / "newest.json").read_text()
    assert str(ROOT) not in text
    document = json.loads(text)
    assert document["small"] is True
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["hfflows"]
    (sample,) = document["rows"]["fresh"]["rounds"]
    assert sample["requests"] == 2


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match=r"no benchmark nonsense; there are .*save-large"):
        main(["nonsense"])


@pytest.mark.parametrize("sizes", [FULL, SMALL], ids=["full", "small"])
def test_bars_speak_of_rows_and_metrics_that_are_there(sizes):
    benchmarks = all_benchmarks(sizes)
    assert len({one.name for one in benchmarks}) == len(benchmarks)
    for one in benchmarks:
        rows = [row.name for row in one.rows]
        assert len(set(rows)) == len(rows)
        assert {one.reference} <= {*rows, ""}
        assert {*one.plotted, *(bar.metric for bar in one.bars)} <= METRICS.keys()
        assert {name for bar in one.bars for name in (bar.row, *bar.against, *bar.or_worse)} <= set(
            rows
        )


@pytest.mark.parametrize("damage", ["byte", "missing", "longer", "extra"])
def test_files_that_differ_are_noticed(tmp_path, damage):
    FileSet(2, 5_000).write(tmp_path / "one")
    other = tmp_path / "other"
    other.mkdir()
    for path in (tmp_path / "one").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    check_equal(tmp_path / "one", other)
    victim = other / "file-00001.bin"
    data = victim.read_bytes()
    if damage == "byte":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        victim.unlink()
    elif damage == "longer":
        victim.write_bytes(data + b"x")
    else:
        (other / "more.bin").write_bytes(b"x")
    with pytest.raises(BenchmarkError, match="what was loaded"):
        check_equal(tmp_path / "one", other)


def test_a_bar_on_two_legs_is_held_against_the_best_of_the_slower_one():
    up = ("up", "slow up")
    bar = Bar(row="ours", metric="seconds", limit=1.1, against=up, or_worse=("down",))
    rows = [Row(name=name, contender="x") for name in ("ours", *up, "down")]
    outcome = Outcome(Saves("tiny", "Saves.", FILES, rows=tuple(rows), bars=(bar,)))
    for row, seconds in {"ours": 6.0, "up": 5.0, "slow up": 9.0, "down": 2.0}.items():
        outcome.add(row, 1, {"seconds": seconds})
    assert outcome.verdict(bar).best == "up"
    assert outcome.verdict(bar).measured.middle == pytest.approx(1.2)
    assert outcome.verdict(bar).is_met is False
    assert "1.1 x the worse of down and the best of up, slow up" in markdown(
        outcome, rounds=1, is_small=False
    )
    outcome.add("down", 1, {"seconds": 7.0})
    assert outcome.verdict(bar).best == "down"
    assert outcome.verdict(bar).is_met is True
    outcome.failures["down"] = "broke"  # then nobody knows which leg is slower
    assert outcome.verdict(bar).is_met is None


@given(
    st.lists(
        st.tuples(*[st.floats(0.001, 1000, allow_subnormal=False)] * 2), min_size=1, max_size=9
    )
)
def test_a_ratio_is_of_the_medians_between_those_of_the_rounds(pairs):
    outcome = Outcome(Saves("tiny", "Saves.", FILES, rows=(OURS, OBSTORE)))
    for number, (ours, theirs) in enumerate(pairs, 1):
        outcome.add("ours", number, {"seconds": ours})
        outcome.add("obstore", number, {"seconds": theirs})
    ratio = outcome.ratio("ours", "obstore", "seconds")
    ours, theirs = zip(*pairs, strict=True)
    assert ratio.middle == pytest.approx(statistics.median(ours) / statistics.median(theirs))
    each = [one / other for one, other in pairs]
    assert (ratio.low, ratio.high) == (min(each), max(each))
    bar = Bar(row="ours", metric="seconds", limit=1.0, against=("obstore",))
    assert outcome.verdict(bar).is_met is (ratio.middle <= 1.0)
    outcome.failures["obstore"] = "broke in a later round"
    assert outcome.ratio("ours", "obstore", "seconds") is None
    assert outcome.verdict(bar).is_met is None
