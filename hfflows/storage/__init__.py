"""Keys to bytes: one small protocol and the engines behind it.

The only package of hfflows that names obstore, fsspec or s3fs.
"""

from hfflows.storage._open import STORE_URL_VARIABLE, default_store_url, open_store
from hfflows.storage._protocol import Delete, Get, List, ObjectInfo, Put, Store

__all__ = [
    "STORE_URL_VARIABLE",
    "Delete",
    "Get",
    "List",
    "ObjectInfo",
    "Put",
    "Store",
    "default_store_url",
    "open_store",
]
