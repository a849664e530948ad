"""Real servers on loopback for tests."""

from hfflows.testing._s3 import LocalS3

__all__ = ["LocalS3"]
