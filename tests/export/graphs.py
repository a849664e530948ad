"""Small graphs made by hand, with weights wherever the format lets them be."""

import onnx
from onnx import TensorProto, helper

FLOATS = 4
ORIGIN = {"hf_model_type": "hub", "hf_hub_id": "org/model", "hf_hub_revision": "a" * 40}


def external(name="w", location="w.data", offset=0, length=4 * FLOATS):
    """Return a tensor whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[FLOATS])
    tensor.data_location = TensorProto.EXTERNAL
    facts = {"location": location, "offset": offset, "length": length}
    for key, value in facts.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def inline(name="w", values=(1.0, 2.0, 3.0, 4.0)):
    return helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)


def model(weights=(), nodes=None, inputs=("x",), functions=(), opset=17, ir_version=9, **options):
    """Return a model that adds each of its weights to its first input."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    if nodes is None:
        nodes, value = [], inputs[0]
        for index, tensor in enumerate(weights):
            nodes.append(helper.make_node("Add", [value, tensor.name], [f"v{index}"]))
            value = f"v{index}"
        nodes.append(helper.make_node("Identity", [value], ["y"]))
    graph = helper.make_graph(nodes, "g", infos, [output], list(weights))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions), **options
    )


def write(path, *args, metadata=None, **options):
    """Write a model to `path` and return it."""
    made = model(*args, **options)
    for key, value in (metadata or {}).items():
        made.metadata_props.add(key=key, value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.SerializeToString())
    return path


def constant(tensor):
    return helper.make_node("Constant", [], ["c"], value=tensor)


def branch(tensor):
    """Return a node with a graph in it that holds the tensor."""
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])
    inner = helper.make_graph(
        [helper.make_node("Identity", [tensor.name], ["b"])], "inner", [], [output], [tensor]
    )
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def within_initializers(tensor):
    return model([tensor])


def within_a_node(tensor):
    return model(nodes=[constant(tensor), helper.make_node("Add", ["x", "c"], ["y"])])


def within_a_list_of_tensors(tensor):
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    node.attribute.add(name="all", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    return model(nodes=[node])


def within_a_branch(tensor):
    return model(nodes=[branch(tensor)])


def within_a_branch_of_a_branch(tensor):
    outer = branch(tensor)
    outer.attribute[0].g.node.append(branch(external("deep", "w.data")))
    del outer.attribute[0].g.initializer[:]
    del outer.attribute[1:]
    return model(nodes=[outer])


def within_a_function(tensor):
    body = [constant(tensor), helper.make_node("Add", ["x", "c"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "F", ["x"], ["y"], body, opsets)
    return model(nodes=[helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function])


def within_sparse_values(tensor):
    made = model([inline("other")])
    sparse = made.graph.sparse_initializer.add(dims=[100])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [FLOATS], [1, 2, 3, 4]))
    return made


def within_a_sparse_attribute(tensor):
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    attribute = node.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(inline())
    attribute.sparse_tensor.indices.CopyFrom(tensor)
    return model(nodes=[node])


def within_training(tensor):
    made = model([inline("other")])
    made.training_info.add().algorithm.initializer.append(tensor)
    return made


PLACES = [
    within_initializers,
    within_a_node,
    within_a_list_of_tensors,
    within_a_branch,
    within_a_branch_of_a_branch,
    within_a_function,
    within_sparse_values,
    within_a_sparse_attribute,
    within_training,
]
