"""Every engine keeps the contract of `hfflows.storage.Store`."""

import os
import threading

import pytest
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from hfflows.storage import open_store
from hfflows.storage._fsspec import FsspecStore
from hfflows.storage._fsspec_files import DirectoryStore
from hfflows.testing import StoreTests


class TestMemory(StoreTests):
    @pytest.fixture
    def store(self):
        return open_store(f"memory://{os.urandom(6).hex()}")


class TestDirectory(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "store")

    @pytest.fixture
    def raw(self, tmp_path):
        return open_store(tmp_path / "store", engine="fsspec")


class TestS3(StoreTests):
    @pytest.fixture
    def store(self, s3_url, local_s3):
        return open_store(s3_url, **local_s3.options())

    @pytest.fixture
    def raw(self, s3_url, local_s3):
        return open_store(s3_url, engine="fsspec", **local_s3.options())


class TestS3fs(StoreTests):
    @pytest.fixture
    def store(self, s3_url, local_s3):
        return open_store(s3_url, engine="fsspec", **local_s3.options())

    @pytest.fixture
    def raw(self, s3_url, local_s3):
        return open_store(s3_url, **local_s3.options())


class TestFsspecMemory(StoreTests):
    @pytest.fixture
    def store(self):
        return open_store(f"memory://{os.urandom(6).hex()}", engine="fsspec")


class TestFsspecDirectory(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "store", engine="fsspec")

    @pytest.fixture
    def raw(self, tmp_path):
        return open_store(tmp_path / "store")


@pytest.mark.filterwarnings("ignore::hfflows.storage.NoConditionalCreateWarning")
class TestAnyFileSystemWithDirectories(StoreTests):
    """What sftp, smb and hdfs get, on a file system that is here."""

    @pytest.fixture
    def store(self, tmp_path):
        root = str(tmp_path / "store")
        url = f"dirs://{os.urandom(6).hex()}"
        return DirectoryStore(url, lambda: (LocalFileSystem(), root), turns=threading.RLock())


@pytest.mark.filterwarnings("ignore::hfflows.storage.NoConditionalCreateWarning")
class TestAnyObjectStore(StoreTests):
    """What gcsfs and adlfs get: only fsspec's own methods, here with s3fs behind them."""

    @pytest.fixture
    def store(self, s3_url, local_s3):
        files = S3FileSystem(
            key=local_s3.access_key,
            secret=local_s3.secret_key,
            endpoint_url=local_s3.endpoint,
            skip_instance_cache=True,
        )
        return FsspecStore(s3_url, lambda: (files, s3_url.removeprefix("s3://")))

    @pytest.fixture
    def raw(self, s3_url, local_s3):
        return open_store(s3_url, **local_s3.options())
