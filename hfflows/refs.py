"""`ArtifactRef`: the small frozen JSON document that names an artifact.

It is what tasks return, what Prefect persists as a result and what the store holds at
`key`. Prefect's JSON names this class by its path, so the path is frozen; every reader of
hfflows also takes the plain dict, with or without Prefect's `__class__` wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from hfflows.identity import RunIdentity

FORMAT_VERSION = 1

StorageFormat = Literal["packed", "files", "tar"]


class Producer(BaseModel):
    """Who wrote an artifact; empty parts when it was saved outside a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    namespace: str = ""
    flow: str = ""
    task: str = ""
    item: str = ""
    run: str = ""
    attempt: str = ""

    @classmethod
    def of(cls, identity: RunIdentity | None) -> Producer:
        """Return the producer that an identity stands for; empty for `None`."""
        return cls() if identity is None else cls.model_validate(asdict(identity))


class ParentRef(BaseModel):
    """An artifact that another one was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    digest: str
    kind: str
    store_url: str = ""


class ArtifactRef(BaseModel):
    """Names one artifact: immutable, a few hundred bytes, valid in every process.

    `ref["key"]` works as `ref.key` does. `digest` is the sha256 over the sorted list of
    paths, sizes and file digests: equal digests mean equal files, whatever the layout or
    the store. `size_bytes` counts file contents, not what the store keeps for them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = FORMAT_VERSION
    kind: str
    key: str
    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    file_count: int = Field(ge=0)
    storage_format: StorageFormat
    created_at: AwareDatetime
    producer: Producer = Producer()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    parents: tuple[ParentRef, ...] = ()
    store_url: str = ""

    def __getitem__(self, field: str) -> Any:
        """Return a field by its name, as a dict would."""
        if field not in type(self).model_fields:
            raise KeyError(field)
        return getattr(self, field)

    def as_parent(self) -> ParentRef:
        """Return what another artifact records of this one."""
        return ParentRef(key=self.key, digest=self.digest, kind=self.kind, store_url=self.store_url)


def parse_ref(document: ArtifactRef | Mapping[str, Any]) -> ArtifactRef:
    """Return the reference that a document holds.

    Args:
        document: A reference, its plain dict, or that dict as Prefect's JSON wraps it.

    Raises:
        SettingsError: The document is not a reference, or a newer hfflows wrote it.
    """
    if isinstance(document, ArtifactRef):
        return document
    body: Any = document
    if isinstance(body, Mapping) and {"__class__", "data"} <= body.keys():
        body = body["data"]
    if not isinstance(body, Mapping):
        msg = f"A reference is an ArtifactRef or its dict, got {type(document).__name__}."
        raise SettingsError(msg)
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = (
            f"This reference has format version {version}; this hfflows reads up to "
            f"{FORMAT_VERSION}. Upgrade hfflows."
        )
        raise SettingsError(msg)
    try:
        return ArtifactRef.model_validate(body)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, item["loc"])) or "document" for item in error.errors())
        msg = f"This is not a reference to an artifact; wrong or missing: {wrong}."
        raise SettingsError(msg) from error
