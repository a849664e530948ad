import subprocess
import sys

import pytest

HEAVY = [
    "prefect",
    "torch",
    "transformers",
    "onnx",
    "optimum",
    "onnxruntime",
    "s3fs",
    "boto3",
    "sklearn",
    "accelerate",
    "lightning",
]


def loaded_after(statement, *, without=()):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    code = f"import sys\n{blocked}{statement}\nprint(*[m for m in sys.modules if sys.modules[m]])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_hfflows_loads_nothing_heavy():
    assert not loaded_after("import hfflows") & set(HEAVY)


def test_hfflows_works_where_prefect_and_torch_are_not_installed():
    statement = (
        "import hfflows\n"
        "for name in hfflows.__all__: getattr(hfflows, name)\n"
        "hfflows.open_store('memory://x')"
    )

    assert "hfflows" in loaded_after(statement, without=HEAVY)


def test_importing_the_tasks_loads_no_model_library():
    loaded = loaded_after("import hfflows.tasks")

    assert "prefect" in loaded
    assert not loaded & (set(HEAVY) - {"prefect"})


@pytest.mark.parametrize("module", ["hfflows", "hfflows.tasks", "hfflows.testing"])
def test_public_names_are_sorted_and_present(module):
    code = (
        f"import {module} as m\n"
        "assert m.__all__ == sorted(m.__all__, key=lambda name: (name[0].islower(), name))\n"
        "assert all(hasattr(m, name) for name in m.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
