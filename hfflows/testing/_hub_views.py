"""Repos, commits and files as the JSON documents of the Hub's API."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies

if TYPE_CHECKING:
    from datetime import datetime

    from hfflows.testing._blobs import BlobStore
    from hfflows.testing._git import Commit, FileEntry
    from hfflows.testing._hub_state import Pull, Repo, User

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)

# What the Hub reads off the class names in config.json when a card has no pipeline_tag.
_PIPELINE_BY_HEAD = {
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
}


def repo_info(
    repo: Repo, commit: Commit, blobs: BlobStore, *, with_blobs: bool, with_security: bool
) -> dict[str, Any]:
    """Return what `model_info`, `dataset_info` and `space_info` read."""
    card = _card_data(commit, blobs)
    config = _config(commit, blobs) if repo.type == "model" else {}
    document: dict[str, Any] = {
        "_id": commit.trees[""][:24],
        "id": repo.id,
        "author": repo.id.partition("/")[0] if "/" in repo.id else None,
        "sha": commit.oid,
        "lastModified": timestamp(commit.created_at),
        "createdAt": timestamp(repo.created_at),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card, config),
        "cardData": card,
        "siblings": [
            _sibling(path, commit.files[path], with_blobs=with_blobs)
            for path in sorted(commit.files)
        ],
        "usedStorage": sum(entry.size for entry in commit.files.values()),
    }
    if repo.type == "model":
        document |= {"modelId": repo.id, "config": config, "spaces": []}
        document |= _model_task(card, config)
    if repo.type == "space":
        document["sdk"] = repo.sdk
    if with_security:
        document["securityRepoStatus"] = {
            "scansDone": True,
            "filesWithIssues": [
                {"path": path, "level": level}
                for path, level in sorted(repo.flagged.items())
                if path in commit.files
            ],
        }
    return document


def tree_entries(commit: Commit, folder: str, *, recursive: bool) -> list[str]:
    """Return the paths below a folder, those of folders ending in a slash."""
    prefix = f"{folder}/" if folder else ""
    found: set[str] = set()
    for path in commit.files:
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        depth = len(parts) - 1 if recursive else min(len(parts) - 1, 1)
        found |= {prefix + "/".join(parts[:level]) + "/" for level in range(1, depth + 1)}
        if recursive or len(parts) == 1:
            found.add(path)
    return sorted(found)


def path_info(repo: Repo, commit: Commit, path: str, *, expand: bool) -> dict[str, Any]:
    """Return a file, or a folder when `path` ends in a slash, as the tree endpoint shows it."""
    document: dict[str, Any]
    if path.endswith("/"):
        oid = commit.trees[path.rstrip("/")]
        document = {"type": "directory", "oid": oid, "size": 0, "path": path.rstrip("/")}
    else:
        entry = commit.files[path]
        document = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
        if entry.is_lfs:
            document["lfs"] = {
                "oid": entry.sha256,
                "size": entry.size,
                "pointerSize": entry.pointer_size,
            }
        if expand:
            document["securityFileStatus"] = _security(repo.flagged.get(path, "safe"))
    if expand:
        last = _last_change(repo, commit, path)
        document["lastCommit"] = {
            "id": last.oid,
            "title": last.title,
            "date": timestamp(last.created_at),
        }
    return document


def refs(repo: Repo, *, with_pulls: bool) -> dict[str, Any]:
    """Return what `list_repo_refs` reads."""

    def listed(kind: str, items: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in items.items()
        ]

    document: dict[str, Any] = {
        "branches": listed("heads", repo.branches),
        "tags": listed("tags", repo.tags),
        "converts": [],
    }
    if with_pulls:
        document["pullRequests"] = [
            {"name": ref, "ref": ref, "targetCommit": pull.head}
            for pull in repo.pulls.values()
            for ref in [f"refs/pr/{pull.num}"]
        ]
    return document


def commit_info(commit: Commit) -> dict[str, Any]:
    """Return what `list_repo_commits` reads of one commit."""
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": timestamp(commit.created_at),
        "formatted": {"title": commit.title, "message": commit.description},
    }


def pull_info(repo: Repo, pull: Pull) -> dict[str, Any]:
    """Return a pull request, with its commits as events."""
    base_line = {commit.oid for commit in repo.history(repo.find(pull.base))}
    own = [
        commit for commit in repo.history(repo.commits[pull.head]) if commit.oid not in base_line
    ]
    common = {"author": {"name": pull.author}, "createdAt": timestamp(pull.created_at)}
    comment = {"edited": False, "hidden": False, "latest": {"raw": pull.description}}
    return {
        **common,
        "num": pull.num,
        "title": pull.title,
        "status": pull.status,
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.type},
        "filesWithConflicts": [],
        "changes": {"base": f"refs/heads/{pull.base}", "mergeCommitId": pull.merge_commit},
        "diff": "",
        "events": [
            {**common, "id": f"pull-{pull.num}", "type": "comment", "data": comment},
            *(
                {
                    **common,
                    "id": commit.oid[:24],
                    "type": "commit",
                    "data": {"subject": commit.title, "oid": commit.oid},
                }
                for commit in reversed(own)
            ),
        ],
    }


def whoami(user: User) -> dict[str, Any]:
    """Return what `whoami` reads."""
    return {
        "type": "user",
        "id": user.name.encode().hex(),
        "name": user.name,
        "fullname": user.name,
        "isPro": False,
        "orgs": [{"type": "org", "name": name, "fullname": name} for name in sorted(user.orgs)],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "local", "role": user.role},
        },
    }


def card_errors(content: str) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) of a README.md's front matter."""
    match = _FRONT_MATTER.match(content)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"invalid yaml: {error}"], []
    return ([], []) if isinstance(data, dict) else (['"metadata" must be of type object'], [])


def timestamp(moment: datetime) -> str:
    """Return a time as the Hub writes it, in milliseconds and with a Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _card_data(commit: Commit, blobs: BlobStore) -> dict[str, Any] | None:
    text = _text(commit, blobs, "README.md")
    match = _FRONT_MATTER.match(text)
    if match is None:
        return None
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return None
    # Through JSON, as the Hub does: YAML has dates, its API has not.
    return json.loads(json.dumps(data, default=str)) if isinstance(data, dict) else None


def _config(commit: Commit, blobs: BlobStore) -> dict[str, Any]:
    try:
        config = json.loads(_text(commit, blobs, "config.json") or "{}")
    except ValueError:
        return {}
    kept = ("architectures", "model_type")
    return {key: config[key] for key in kept if key in config} if isinstance(config, dict) else {}


def _text(commit: Commit, blobs: BlobStore, path: str) -> str:
    entry = commit.files.get(path)
    if entry is None or entry.is_lfs:
        return ""
    return blobs.read(entry.sha256).decode("utf-8", errors="replace")


def _model_task(card: dict[str, Any] | None, config: dict[str, Any]) -> dict[str, Any]:
    library = (card or {}).get("library_name") or ("transformers" if config else None)
    task = (card or {}).get("pipeline_tag") or next(
        (
            tag
            for name in config.get("architectures") or []
            for head, tag in _PIPELINE_BY_HEAD.items()
            if name.endswith(head)
        ),
        None,
    )
    found = {"library_name": library, "pipeline_tag": task}
    return {key: value for key, value in found.items() if value}


def _tags(card: dict[str, Any] | None, config: dict[str, Any]) -> list[str]:
    card = card or {}
    task = _model_task(card, config)
    tags = [*task.values(), *_strings(card.get("tags"))]
    tags += [config["model_type"]] if "model_type" in config else []
    for key, prefix in (("language", ""), ("datasets", "dataset:"), ("license", "license:")):
        tags += [prefix + value for value in _strings(card.get(key))]
    tags += [f"base_model:{value}" for value in _strings(card.get("base_model"))]
    return list(dict.fromkeys([*tags, "region:us"]))


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def _sibling(path: str, entry: FileEntry, *, with_blobs: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        document |= {"size": entry.size, "blobId": entry.oid}
        if entry.is_lfs:
            document["lfs"] = {
                "sha256": entry.sha256,
                "size": entry.size,
                "pointerSize": entry.pointer_size,
            }
    return document


def _security(status: str) -> dict[str, Any]:
    flagged = status == "unsafe"
    scan = {"status": status, "message": None, "virusFound": flagged, "version": "local"}
    return {
        "status": status,
        "avScan": {**scan, "virusNames": ["Local.Test.Flag"] if flagged else None},
        "pickleImportScan": {"status": status, "pickleImports": [], "message": None},
    }


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    def state(of: Commit) -> object:
        return of.trees.get(path.rstrip("/")) if path.endswith("/") else of.files.get(path)

    last = commit
    for earlier in repo.history(commit)[1:]:
        if state(earlier) != state(commit):
            break
        last = earlier
    return last
