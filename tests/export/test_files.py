"""Is an ONNX file set whole, and what is the digest of its graph?"""

import io
import random
import struct
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import hfflows
from hfflows.artifacts import check_onnx_set, read_onnx_graph
from hfflows.export import check_onnx_files, graph_sha256, inject_hub_metadata
from tests.export.graphs import (
    ORIGIN,
    PLACES,
    constant,
    external,
    inline,
    model,
    within_a_function,
    within_initializers,
    write,
)

WEIGHTS = struct.pack("<4f", 1, 2, 3, 4)


# External data ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_weights_in_a_file_are_found_wherever_the_format_lets_them_be(tmp_path, place):
    (tmp_path / "model.onnx").write_bytes(place(external()).SerializeToString())

    with pytest.raises(hfflows.ExportError, match=r"16 bytes of weights in w\.data.*missing"):
        check_onnx_files(tmp_path)
    (tmp_path / "w.data").write_bytes(WEIGHTS[:-1])
    with pytest.raises(hfflows.ExportError, match="15 bytes long"):
        check_onnx_files(tmp_path)
    (tmp_path / "w.data").write_bytes(WEIGHTS)
    assert check_onnx_files(tmp_path) == ["model.onnx", "w.data"]


def test_the_end_of_the_last_tensor_counts(tmp_path):
    tensors = [external("a", offset=16), external("b", offset=0), external("c", length=None)]
    write(tmp_path / "model.onnx", tensors)
    (tmp_path / "w.data").write_bytes(WEIGHTS)

    with pytest.raises(hfflows.ExportError, match="needs 32 bytes"):
        check_onnx_files(tmp_path)


def test_what_is_inline_needs_no_file_whatever_it_names(tmp_path):
    tensor = inline()
    tensor.external_data.add(key="location", value="nowhere")
    tensor.data_location = TensorProto.DEFAULT
    write(tmp_path / "model.onnx", [tensor])

    assert check_onnx_files(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("location", ["../w.data", "/w.data", "sub/../../w.data", "..", ".", ""])
def test_weights_outside_of_the_graphs_directory_are_refused(tmp_path, location):
    write(tmp_path / "set" / "graphs" / "model.onnx", [external(location=location)])
    (tmp_path / "set" / "w.data").write_bytes(WEIGHTS)

    with pytest.raises(hfflows.ExportError, match=r"graphs/model\.onnx.*outside its directory"):
        check_onnx_files(tmp_path / "set")


def test_weights_in_a_directory_below_are_found(tmp_path):
    write(tmp_path / "onnx" / "model.onnx", [external(location="data/./w")])
    (tmp_path / "onnx" / "data").mkdir()
    (tmp_path / "onnx" / "data" / "w").write_bytes(WEIGHTS)

    assert check_onnx_files(tmp_path) == ["onnx/data/w", "onnx/model.onnx"]


@pytest.mark.parametrize("facts", [{"offset": "²"}, {"offset": "-1"}, {"length": "9" * 30}])
def test_a_place_that_is_none_names_graph_and_tensor(tmp_path, facts):
    write(tmp_path / "model.onnx", [external("weight", **facts)])

    with pytest.raises(hfflows.ExportError, match=r"model\.onnx gives weight a place"):
        check_onnx_files(tmp_path)


def test_the_onnx_package_is_not_needed(tmp_path):
    (tmp_path / "model.onnx").write_bytes(within_a_function(external()).SerializeToString())
    (tmp_path / "w.data").write_bytes(WEIGHTS)
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from hfflows.export import check_onnx_files, graph_sha256\n"
        "print(check_onnx_files(sys.argv[1]), graph_sha256(sys.argv[1] + '/model.onnx'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )

    assert done.stdout.split("] ")[0] == "['model.onnx', 'w.data'"
    assert done.stdout.split("] ")[1].strip() == graph_sha256(tmp_path / "model.onnx")


def test_inputs_are_told_in_their_order():
    made = io.BytesIO(model([inline()], inputs=("b", "c", "a")).SerializeToString())
    assert read_onnx_graph(made, "model.onnx").inputs == ["b", "c", "a"]


class Counting(io.BytesIO):
    moved = 0

    def read(self, count=-1):
        data = super().read(count)
        self.moved += len(data)
        return data


def test_weights_are_not_read():
    large = helper.make_tensor("w", TensorProto.FLOAT, [250_000], bytes(1_000_000), raw=True)
    file = Counting(model([large], nodes=[constant(large)]).SerializeToString())
    assert file.getbuffer().nbytes > 2_000_000

    assert read_onnx_graph(file, "model.onnx").inputs == ["x"]
    assert file.moved < 2_000


# Damage ----------------------------------------------------------------------------------


def test_no_damage_gives_anything_but_our_errors():
    sound = within_a_function(external()).SerializeToString()
    chance = random.Random(0)
    refused = []
    for round_ in range(4 * len(sound)):
        data = bytearray(sound)
        if round_ < len(data):
            del data[round_:]
        else:
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_onnx_graph(io.BytesIO(data), "model.onnx")
        except hfflows.ExportError as error:
            refused.append(str(error))
    assert len(refused) > len(sound) / 2
    assert {message.split(" ")[0] for message in refused} == {"model.onnx"}


def test_graphs_in_graphs_in_graphs_are_walked_and_not_stumbled_over():
    data = within_initializers(external()).graph.SerializeToString()
    for _ in range(2_000):  # graph in attribute in node
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + length_of(data) + data
    data = b"\x3a" + length_of(data) + data

    assert read_onnx_graph(io.BytesIO(data), "model.onnx").external_data == {"w.data": 16}


def length_of(data):
    encoded, value = bytearray(), len(data)
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


PAST_THE_END = b"\x3a\x02\x12\x64"  # a graph of two bytes, with a name of a hundred in it


@pytest.mark.parametrize("content", [b"", b"\x08\x09", b"no model at all", bytes(64), PAST_THE_END])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(hfflows.ExportError, match=r"^x\.onnx is "):
        check_onnx_set({"x.onnx": len(content)}, lambda _name: io.BytesIO(content))


# Parts of one model ----------------------------------------------------------------------

PLAIN = ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
INT8 = [name.replace(".onnx", "_int8.onnx") for name in PLAIN]
OURS = {"hf_export_settings": "{}"}


def write_parts(directory, names, **options):
    for name in names:
        is_decoder = not name.startswith("encoder")
        inputs = ("x", "encoder_hidden_states") if is_decoder else ("x",)
        if "past" in name:
            inputs = ("x", "past_key_values.0.encoder.key")
        write(directory / name, inputs=inputs, **options)
    return directory


@pytest.mark.parametrize(
    ("names", "metadata"),
    [
        (PLAIN, OURS),
        (PLAIN + INT8, OURS),
        (INT8, OURS),
        (PLAIN[:2], {}),
        (["encoder_model.onnx", "decoder_model_merged.onnx"], {}),
        (["encoder_model_fp16.onnx", "decoder_model_merged_q4.onnx"], {}),
        (["encoder_model.onnx"], {}),
        (["model.onnx", "model_int8.onnx"], OURS),
    ],
    ids=str,
)
def test_a_set_with_all_its_parts_is_whole(tmp_path, names, metadata):
    write_parts(tmp_path, names, metadata=metadata)
    assert check_onnx_files(tmp_path) == sorted(names)


@pytest.mark.parametrize(
    ("names", "metadata", "missing"),
    [
        *((sorted(set(PLAIN) - {name}), OURS, name) for name in PLAIN),
        *((PLAIN + sorted(set(INT8) - {name}), OURS, name) for name in INT8),
        (PLAIN[1:], {}, "encoder_model.onnx"),
        (["encoder_model.onnx", PLAIN[2]], {}, "decoder_model.onnx"),
        (["decoder_model_merged_q4.onnx"], {}, "encoder_model_q4.onnx"),
    ],
    ids=str,
)
def test_a_part_without_the_others_is_refused(tmp_path, names, metadata, missing):
    write_parts(tmp_path, names, metadata=metadata)
    with pytest.raises(hfflows.ExportError, match=f"cannot run without {missing}"):
        check_onnx_files(tmp_path)


def test_parts_in_another_directory_do_not_count(tmp_path):
    write_parts(tmp_path / "onnx", ["decoder_model.onnx"])
    write_parts(tmp_path, ["encoder_model.onnx"])

    with pytest.raises(hfflows.ExportError, match=r"onnx/decoder_model\.onnx cannot run"):
        check_onnx_files(tmp_path)


def test_a_decoder_that_needs_no_encoder_stands_alone(tmp_path):
    write(tmp_path / "decoder_model.onnx")
    write(tmp_path / "decoder_with_past_model.onnx")

    assert len(check_onnx_files(tmp_path)) == 2


# The graph's digest ----------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "w.data").write_bytes(WEIGHTS)
    return write(tmp_path / "model.onnx", [inline("a"), external("b")])


def test_metadata_never_changes_a_graphs_digest(graph):
    before = graph_sha256(graph)
    for in_place in (False, True):
        inject_hub_metadata(graph, {**ORIGIN, "hf_license": "mit"}, in_place=in_place)
        assert graph_sha256(graph) == before
    loaded = onnx.load(graph, load_external_data=False)
    loaded.metadata_props.add(key="somebody's", value="own")
    graph.write_bytes(loaded.SerializeToString())
    assert graph_sha256(graph) == before


def change_weight(made):
    made.graph.initializer[0].float_data[0] += 1


def change_producer(made):
    made.producer_version = "2"


def change_opset(made):
    made.opset_import[0].version += 1


def change_location(made):
    made.graph.initializer[1].external_data[0].value = "other"


@pytest.mark.parametrize("change", [change_weight, change_producer, change_opset, change_location])
def test_a_change_in_the_graph_changes_its_digest(graph, change):
    (graph.parent / "other").write_bytes(WEIGHTS)
    before, made = graph_sha256(graph), onnx.load(graph, load_external_data=False)
    change(made)
    graph.write_bytes(made.SerializeToString())

    assert graph_sha256(graph) != before


def test_external_data_is_part_of_the_digest(graph):
    before = graph_sha256(graph)
    (graph.parent / "w.data").write_bytes(WEIGHTS[::-1])
    assert graph_sha256(graph) != before
    (graph.parent / "w.data").unlink()
    with pytest.raises(hfflows.ExportError, match=r"model\.onnx needs w\.data"):
        graph_sha256(graph)


def test_a_digest_of_nothing_says_so(tmp_path):
    with pytest.raises(hfflows.SettingsError, match="cannot be read"):
        graph_sha256(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(hfflows.MetadataError, match="LFS"):
        graph_sha256(tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_real_export_reads_as_onnx_reads_it(exported):
    path = Path(exported.directory) / "model.onnx"
    with path.open("rb") as file:
        found = read_onnx_graph(file, "model.onnx")
    loaded = onnx.load(path)

    assert found.inputs == [value.name for value in loaded.graph.input] == exported.input_names
    assert found.metadata == {item.key: item.value for item in loaded.metadata_props}
    assert check_onnx_files(exported.directory) == ["model.onnx"]
