import os

import pytest
from hypothesis import HealthCheck, settings

from hfflows.storage import open_store

pytest_plugins = ["hfflows.testing.pytest_plugin", "tests.prefect_fixtures"]

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile(
    "nightly", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What this machine is configured with must not leak into a test, nor a test out of it.
for variable in [name for name in os.environ if name.startswith(("AWS_", "HF_", "HFFLOWS_"))]:
    if variable == "HFFLOWS_KILLS":  # how long the tests that kill training runs go on
        continue
    del os.environ[variable]
# Servers run beside the tests: torch's threads wait by spinning, and are slow when pushed out.
os.environ["OMP_NUM_THREADS"] = "1"


LONGEST = ["test_demo.py", "test_dcp.py", "test_export.py", "test_preemption.py", "test_runners.py"]


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes, so that two processes end together."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(params=["memory", "file", "s3"])
def store(request, tmp_path):
    """Return an empty store of each kind."""
    if request.param == "memory":
        return request.getfixturevalue("memory_store")
    if request.param == "file":
        return open_store(tmp_path / "store")
    s3 = request.getfixturevalue("local_s3")
    return open_store(s3.url(os.urandom(6).hex()), **s3.options())


@pytest.fixture
def memory_store():
    """Return an empty store; memory stores live as long as the process, so it is emptied."""
    store = open_store(f"memory://{os.urandom(8).hex()}")
    yield store
    store.delete([info.key for info in store.list("")])


@pytest.fixture(scope="session", autouse=True)
def kept_configs(tmp_path_factory):
    """Keep models' small files apart from those of whoever runs the tests."""
    directory = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfflows.export._config._loader.default_root", lambda: directory)
        yield
