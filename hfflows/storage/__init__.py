"""Keys to bytes: one small protocol and the engines behind it.

The only package of hfflows that names obstore, fsspec, s3fs or botocore.
"""

from hfflows.storage._conditional import NoConditionalCreateWarning
from hfflows.storage._open import STORE_URL_VARIABLE, Engine, default_store_url, open_store
from hfflows.storage._protocol import (
    Delete,
    Get,
    List,
    ObjectInfo,
    Put,
    Store,
    Upload,
    Uploads,
)

__all__ = [
    "STORE_URL_VARIABLE",
    "Delete",
    "Engine",
    "Get",
    "List",
    "NoConditionalCreateWarning",
    "ObjectInfo",
    "Put",
    "Store",
    "Upload",
    "Uploads",
    "default_store_url",
    "open_store",
]
