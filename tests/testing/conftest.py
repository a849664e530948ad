import os

import pytest

# Read when huggingface_hub is imported: this Hub does not speak Xet, and bars clutter the log.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from huggingface_hub import HfApi, constants

# The root conftest may already have imported it through a plugin.
constants.HF_HUB_DISABLE_XET = True


@pytest.fixture
def hub(local_hub):
    return local_hub


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def anonymous(hub):
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def outsider(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.add_token("outsider", role="write"))


@pytest.fixture
def files():
    """Return a small model: two files for git, one for large file storage."""
    card = "---\nlicense: mit\ntags: [tiny]\ndatasets: [org/data]\nlanguage: en\n---\n# Tiny\n"
    return {
        "README.md": card,
        "config.json": '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}',
        "model.safetensors": os.urandom(200_000),
        "onnx/model.onnx": os.urandom(5_000),
    }
