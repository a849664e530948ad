"""Every error hfflows raises, grouped by what a handler does about it.

    HfflowsError                     transient = False
    ├─ SettingsError                 (ValueError)         fix the call
    │  └─ UnsafePathError                                 a path that would leave its tree
    ├─ MissingDependencyError        (ImportError)        install the extra
    ├─ StorageError
    │  ├─ ObjectNotFoundError        (FileNotFoundError)
    │  ├─ ObjectExistsError          (FileExistsError)    lost a conditional create
    │  ├─ AccessDeniedError          (PermissionError)
    │  └─ StorageUnavailableError    transient            retry
    ├─ ArtifactNotFoundError         (FileNotFoundError)  never saved, or deleted
    │  └─ CheckpointNotFoundError
    ├─ SaveRevokedError              transient            a collection gave the save up; repeat it
    ├─ ArtifactInUseError                                 an alias points to it
    ├─ CollectionBusyError           transient            saves are under way; apply later
    ├─ IntegrityError                (ValueError)         bytes are not what was saved
    ├─ TargetError                   (OSError)            the local directory to fill
    │  └─ DiskSpaceError
    ├─ LeaseUnavailableError         transient            somebody else holds it: wait
    ├─ LeaseLostError                transient            somebody else may hold it now
    ├─ HubError
    │  ├─ RepoNotFoundError          (FileNotFoundError)
    │  ├─ RevisionNotFoundError      (FileNotFoundError)
    │  ├─ EntryNotFoundError         (FileNotFoundError)
    │  ├─ GatedRepoError             (PermissionError)
    │  ├─ HubAccessError             (PermissionError)    token missing, wrong or too weak
    │  └─ HubUnavailableError        transient            retry
    └─ ExportError
       ├─ UnsupportedModelError      (ValueError)
       ├─ ParityError                (ValueError)         the exported graph answers differently
       └─ MetadataError              (ValueError)         not an ONNX file, or metadata not ours

The message comes first and positionally, facts as keyword-only attributes: errors cross
process boundaries, and `__reduce__` carries the attributes through pickle.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HfflowsError(Exception):
    """Base of every error raised by hfflows.

    Args:
        message: What failed, on what, and what to do next.
        **facts: Values a handler may want, readable as attributes (`error.key`).
    """

    transient: ClassVar[bool] = False

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            msg = f"{type(self).__name__} has no attribute {name!r}"
            raise AttributeError(msg) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), str(self), self.facts))


def _rebuild(cls: type[HfflowsError], message: str, facts: dict[str, Any]) -> HfflowsError:
    return cls(message, **facts)


class SettingsError(HfflowsError, ValueError):
    """An argument, variable or setting is wrong: fix the call, retrying cannot help."""


class UnsafePathError(SettingsError):
    """A file path would be written outside its directory or clash with another one."""


class MissingDependencyError(HfflowsError, ImportError):
    """A feature needs a package that is not installed; the message names the extra."""


class StorageError(HfflowsError):
    """The object store answered in a way that no narrower error describes."""


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """No object at this key."""


class ObjectExistsError(StorageError, FileExistsError):
    """A conditional create lost: somebody else's object is at this key."""


class AccessDeniedError(StorageError, PermissionError):
    """The store refused the credentials, or they do not allow this operation."""


class StorageUnavailableError(StorageError):
    """The store could not be reached or answered with a passing fault."""

    transient = True


class ArtifactNotFoundError(HfflowsError, FileNotFoundError):
    """No artifact under this key: it was never saved, or it was deleted."""


class CheckpointNotFoundError(ArtifactNotFoundError):
    """No checkpoint fits what was asked for."""


class SaveRevokedError(HfflowsError):
    """A collection gave up a save that took too long; nothing is visible, repeat it."""

    transient = True


class ArtifactInUseError(HfflowsError):
    """An alias points to the artifact, so it was not deleted."""


class CollectionBusyError(HfflowsError):
    """Saves that began before the plan are still under way; nothing was deleted."""

    transient = True


class IntegrityError(HfflowsError, ValueError):
    """Stored bytes differ from what was saved, or are missing."""


class TargetError(HfflowsError, OSError):
    """The local directory to fill is not usable."""


class DiskSpaceError(TargetError):
    """The file system has not enough free space for what is to be written."""


class LeaseUnavailableError(HfflowsError):
    """Somebody else held the lease until the timeout passed."""

    transient = True


class LeaseLostError(HfflowsError):
    """The lease was not renewed in time: somebody else may be doing the same work."""

    transient = True


class HubError(HfflowsError):
    """The Hub answered in a way that no narrower error describes."""


class RepoNotFoundError(HubError, FileNotFoundError):
    """No such repo, or a private one that this token may not see."""


class RevisionNotFoundError(HubError, FileNotFoundError):
    """The repo exists, this branch, tag or commit does not."""


class EntryNotFoundError(HubError, FileNotFoundError):
    """The repo has no such file at this commit."""


class GatedRepoError(HubError, PermissionError):
    """The repo asks for its terms to be accepted before it hands out files."""


class HubAccessError(HubError, PermissionError):
    """The Hub refused the token, or it does not allow this operation."""


class HubUnavailableError(HubError):
    """The Hub could not be reached, limits the rate, or answered with a passing fault."""

    transient = True


class ExportError(HfflowsError):
    """The export process failed; the message carries its last words."""


class UnsupportedModelError(ExportError, ValueError):
    """This architecture or pipeline tag has no exporter here."""


class ParityError(ExportError, ValueError):
    """The exported graph's answers differ from the model's by more than the tolerance."""


class MetadataError(ExportError, ValueError):
    """Not a readable ONNX file, or its Hub metadata is missing or damaged."""
