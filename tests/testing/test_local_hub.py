"""The local Hub as the real client sees it: repos, revisions, files, who may see them."""

import hashlib
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from hfflows.testing import HubSettings, LocalHub

REPO = "local-user/tiny"


@pytest.fixture
def small_hub():
    """Return a Hub whose thresholds and pages are small enough to cross."""
    settings = HubSettings(
        page_size=3,
        expanded_page_size=2,
        multipart_threshold_bytes=100_000,
        part_bytes=40_000,
        lfs_threshold_bytes=50_000,
    )
    with LocalHub(settings=settings) as hub:
        yield hub


def fetch(api, path, repo=REPO, tmp_path=None, **options):
    file = api.hf_hub_download(repo, path, cache_dir=tmp_path, **options)
    return Path(file).read_bytes()


def full_hashes(*oids):
    return all(re.fullmatch("[0-9a-f]{40}", oid) for oid in oids)


# Repos ------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_a_repo_of_each_type_is_made_found_and_deleted(api, hub, repo_type):
    options = {"repo_type": repo_type} | ({"space_sdk": "static"} if repo_type == "space" else {})
    assert not api.repo_exists(REPO, repo_type=repo_type)
    url = api.create_repo(REPO, private=True, **options)
    assert (url.repo_id, url.repo_type, url.endpoint) == (REPO, repo_type, hub.endpoint)
    info = api.repo_info(REPO, repo_type=repo_type)
    assert info.private
    assert [file.rfilename for file in info.siblings] == [".gitattributes"]
    assert full_hashes(info.sha)
    api.delete_repo(REPO, repo_type=repo_type)
    assert not api.repo_exists(REPO, repo_type=repo_type)
    api.delete_repo(REPO, repo_type=repo_type, missing_ok=True)


def test_a_repo_without_a_namespace_is_made_under_the_user(api):
    assert api.create_repo("tiny").repo_id == REPO


def test_making_a_repo_twice_is_a_conflict_unless_allowed(api):
    api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO


def test_visibility_and_gate_are_settings(api, anonymous):
    api.create_repo(REPO)
    api.update_repo_settings(REPO, private=True, gated="manual")
    info = api.model_info(REPO)
    assert (info.private, info.gated) == (True, "manual")
    assert not anonymous.repo_exists(REPO)
    api.update_repo_settings(REPO, private=False, gated=False)
    assert anonymous.model_info(REPO).gated is False


def test_a_repo_can_be_moved_and_listed(api, anonymous):
    api.create_repo(REPO)
    api.create_repo("local-user/hidden", private=True)
    api.move_repo(REPO, "local-user/renamed")
    assert [model.id for model in anonymous.list_models(author="local-user")] == [
        "local-user/renamed"
    ]
    assert len(list(api.list_models(author="local-user"))) == 2


def test_info_shows_card_task_library_and_tags(api, hub, files):
    sha = hub.publish(REPO, files)
    info = api.model_info(REPO)
    assert info.sha == sha
    assert info.card_data.license == "mit"
    assert (info.pipeline_tag, info.library_name) == ("fill-mask", "transformers")
    assert {"tiny", "dataset:org/data", "license:mit", "bert", "en"} <= {*info.tags}
    assert info.created_at <= info.last_modified


def test_info_with_files_metadata_has_sizes_and_digests(api, hub, files):
    hub.publish(REPO, files, repo_type="dataset")
    info = api.dataset_info(REPO, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings}
    large = found["model.safetensors"]
    assert large.lfs.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert large.size == large.lfs.size == 200_000
    assert found["config.json"].lfs is None
    content = files["config.json"].encode()
    blob = b"blob %d\0" % len(content) + content
    assert found["config.json"].blob_id == hashlib.sha1(blob).hexdigest()


def test_info_can_be_asked_for_some_properties_only(api, hub, files):
    hub.publish(REPO, files)
    info = api.model_info(REPO, expand=["sha", "gated"])
    assert info.gated is False
    assert info.siblings is None


# Revisions --------------------------------------------------------------------------------


def test_every_kind_of_revision_leads_to_its_commit(api, hub, files):
    first = hub.publish(REPO, files)
    api.create_tag(REPO, tag="v1.0")
    second = hub.publish(REPO, files | {"new.txt": "new"})
    api.create_branch(REPO, branch="feature/x", revision=first)
    assert full_hashes(first, second)
    for revision, expected in {
        None: second,
        "main": second,
        "v1.0": first,
        "refs/tags/v1.0": first,
        "feature/x": first,
        first: first,
        first[:7]: first,
        second[:12]: second,
    }.items():
        assert api.model_info(REPO, revision=revision).sha == expected
        assert api.resolve_revision(REPO, revision=revision).resolved == (
            expected if revision != first else first
        )
    for missing in ("v2", "0" * 40, first[:6], "refs/pr/1"):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=missing)


def test_branches_and_tags_are_made_once_and_deleted(api, hub, files):
    sha = hub.publish(REPO, files)
    api.create_branch(REPO, branch="dev")
    api.create_tag(REPO, tag="v1", tag_message="first")
    for again in (
        lambda **o: api.create_branch(REPO, branch="dev", **o),
        lambda **o: api.create_tag(REPO, tag="v1", **o),
    ):
        with pytest.raises(HfHubHTTPError, match="409"):
            again()
        again(exist_ok=True)
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": sha, "dev": sha}
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("v1", "refs/tags/v1")]
    api.delete_branch(REPO, branch="dev")
    api.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch(REPO, branch="main")


def test_commits_are_listed_newest_first_over_pages(small_hub):
    api = HfApi(endpoint=small_hub.endpoint, token=small_hub.token)
    made = [small_hub.publish(REPO, {"n": str(n)}, message=f"step {n}") for n in range(4)]
    commits = api.list_repo_commits(REPO)
    assert [commit.commit_id for commit in commits[:4]] == made[::-1]
    assert [commit.title for commit in commits] == [
        *("step 3", "step 2", "step 1", "step 0"),
        "initial commit",
    ]
    assert commits[0].authors == ["local-user"]
    assert small_hub.count("/commits/") == 3


def test_history_can_be_squashed(api, hub):
    for n in range(3):
        hub.publish(REPO, {"n": str(n)})
    api.super_squash_history(REPO)
    assert len(api.list_repo_commits(REPO)) == 1
    assert api.file_exists(REPO, "n")


# Listings ---------------------------------------------------------------------------------


def test_the_tree_is_listed_over_pages(small_hub):
    api = HfApi(endpoint=small_hub.endpoint, token=small_hub.token)
    names = [f"data/{n}.txt" for n in range(7)]
    small_hub.publish(REPO, dict.fromkeys(names, "x"))
    small_hub.reset_counts()
    found = list(api.list_repo_tree(REPO, recursive=True))
    assert [entry.path for entry in found] == [".gitattributes", "data", *names]
    assert small_hub.count("/tree/") == 3
    assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "data"]
    assert len(list(api.list_repo_tree(REPO, "data", expand=True))) == 7
    assert api.list_repo_files(REPO) == [".gitattributes", *names]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "missing"))


def test_expanded_entries_know_their_last_commit_and_scan(api, hub, files):
    first = hub.publish(REPO, files)
    second = hub.publish(REPO, files | {"config.json": "{}"})
    hub.flag(REPO, "model.safetensors")
    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, expand=True, recursive=True)}
    assert tree["config.json"].last_commit.oid == second
    assert tree["onnx"].last_commit.oid == first
    assert tree["config.json"].security.safe
    assert not tree["model.safetensors"].security.safe
    [info] = api.get_paths_info(REPO, "model.safetensors", expand=True)
    assert info.security.status == "unsafe"
    hub.flag(REPO, "config.json", level="suspicious")
    hub.flag(REPO, "not/there.bin")
    status = api.model_info(REPO, securityStatus=True).security_repo_status
    assert status["filesWithIssues"] == [
        {"path": "config.json", "level": "suspicious"},
        {"path": "model.safetensors", "level": "unsafe"},
    ]
    [info] = api.get_paths_info(REPO, "config.json", expand=True)
    assert (info.security.status, info.security.safe) == ("suspicious", False)


def test_paths_info_ignores_what_is_not_there(api, hub, files):
    hub.publish(REPO, files)
    found = api.get_paths_info(REPO, ["config.json", "onnx", "missing"])
    assert [entry.path for entry in found] == ["config.json", "onnx"]
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "missing")


# Downloads --------------------------------------------------------------------------------


def test_a_snapshot_is_downloaded_whole_and_without_a_token_on_the_cdn(api, hub, files, tmp_path):
    sha = hub.publish(REPO, files, private=True)
    folder = api.snapshot_download(REPO, cache_dir=tmp_path)
    assert folder.endswith(sha)
    for path, content in files.items():
        expected = content.encode() if isinstance(content, str) else content
        assert Path(folder, path).read_bytes() == expected
    assert hub.count(origin="cdn", method="GET", status=200) == 2
    assert hub.leaked_tokens == []
    assert all(record.has_token for record in hub.requests if record.origin == "hub")
    assert hub.bytes_sent > 205_000


def test_small_public_files_come_through_the_resolve_cache(api, hub, files, tmp_path):
    sha = hub.publish(REPO, files)
    assert fetch(api, "config.json", tmp_path=tmp_path) == files["config.json"].encode()
    assert hub.count("/resolve/", method="HEAD", status=307) == 1
    assert hub.count(f"^/api/resolve-cache/models/{REPO}/{sha}/config.json", method="GET") == 1
    hub.reset_counts()
    fetch(api, "config.json", tmp_path=tmp_path, revision=sha)
    assert hub.requests == []


def test_metadata_of_a_large_file_names_commit_digest_size_and_another_origin(api, hub, files):
    sha = hub.publish(REPO, files)
    api.create_branch(REPO, branch="feature/x")
    url = f"{hub.endpoint}/{REPO}/resolve/feature%2Fx/model.safetensors"
    metadata = api.get_hf_file_metadata(url=url)
    assert metadata.commit_hash == sha
    assert metadata.etag == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert metadata.size == 200_000
    assert metadata.location.startswith(hub.cdn_endpoint)
    assert metadata.xet_file_data is None


def test_ranges_are_served_from_both_origins(api, hub):
    content = os.urandom(1000)
    hub.publish(REPO, {"model.bin": content, "notes.txt": content.hex()}, private=True)
    auth = {"Authorization": f"Bearer {hub.token}"}
    cdn = api.get_hf_file_metadata(url=f"{hub.endpoint}/{REPO}/resolve/main/model.bin").location
    hub_url = f"{hub.endpoint}/{REPO}/resolve/main/notes.txt"
    for url, whole in ((cdn, content), (hub_url, content.hex().encode())):
        headers = auth if url == hub_url else {}
        for wanted, part in {
            "bytes=0-9": whole[:10],
            "bytes=990-": whole[990:],
            "bytes=-5": whole[-5:],
            "bytes=990-99999": whole[990:],
        }.items():
            answer = get_session().get(url, headers=headers | {"Range": wanted})
            assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["Content-Range"] == f"bytes 990-{len(whole) - 1}/{len(whole)}"
        past = get_session().get(url, headers=headers | {"Range": "bytes=5000-"})
        assert past.status_code == 416
        assert past.headers["Content-Range"] == f"bytes */{len(whole)}"
    assert {record.range for record in hub.requests} > {"bytes=-5", "bytes=990-"}


def test_what_is_missing_is_told_apart(api, hub, files, tmp_path):
    hub.publish(REPO, files)
    with pytest.raises(EntryNotFoundError):
        fetch(api, "missing.txt", tmp_path=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        fetch(api, "config.json", tmp_path=tmp_path, revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        fetch(api, "config.json", tmp_path=tmp_path, repo="local-user/missing")
    [marker] = (tmp_path / "models--local-user--tiny" / ".no_exist").rglob("missing.txt")
    assert full_hashes(marker.parent.name)


def test_a_repo_without_a_namespace_can_be_published_and_read(api, hub, files, tmp_path):
    sha = hub.publish("gpt2", files)
    assert api.model_info("gpt2", revision="main").sha == sha
    assert (
        fetch(api, "model.safetensors", repo="gpt2", tmp_path=tmp_path)
        == (files["model.safetensors"])
    )


def test_signed_urls_expire_and_cannot_be_made_up(files):
    with LocalHub(settings=HubSettings(signed_url_seconds=-10)) as hub:
        hub.publish(REPO, files)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
        location = api.get_hf_file_metadata(url=url).location
        assert get_session().get(location).status_code == 403
        forged = location.replace("Expires=", "Expires=9")
        assert get_session().get(forged).status_code == 403


def test_a_gigabyte_is_served_in_bounded_memory(hub, tmp_path):
    import resource

    size = 1 << 30
    folder = tmp_path / "model"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    hub.publish(REPO, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
    location = api.get_hf_file_metadata(url=url).location
    with get_session().stream("GET", location) as answer:
        assert sum(len(chunk) for chunk in answer.iter_raw(1 << 22)) == size
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10
    assert hub.bytes_sent >= size


# Commits ----------------------------------------------------------------------------------


def test_a_file_is_uploaded_to_git_and_another_to_large_file_storage(api, hub, tmp_path):
    api.create_repo(REPO)
    small = api.upload_file(path_or_fileobj=b"hello", path_in_repo="a/b.txt", repo_id=REPO)
    assert full_hashes(small.oid)
    content = os.urandom(30_000)
    large = api.upload_file(path_or_fileobj=content, path_in_repo="m.bin", repo_id=REPO)
    assert large.commit_url == f"{hub.endpoint}/{REPO}/commit/{large.oid}"
    assert hub.count("^/upload/", origin="cdn", method="PUT") == 1
    assert hub.count("/verify$", method="POST", status=200) == 1
    assert fetch(api, "a/b.txt", tmp_path=tmp_path) == b"hello"
    assert fetch(api, "m.bin", tmp_path=tmp_path) == content
    assert hub.leaked_tokens == []
    assert hub.bytes_received > 30_000


def test_a_folder_is_uploaded_with_patterns_and_old_files_deleted(api, hub, tmp_path):
    hub.publish(REPO, {"old.txt": "old", "keep.md": "keep"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new.txt").write_text("new")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "skip.log").write_text("skip")
    api.upload_folder(
        folder_path=tmp_path,
        repo_id=REPO,
        ignore_patterns="*.log",
        delete_patterns="*.txt",
        commit_message="Upload",
    )
    assert sorted(api.list_repo_files(REPO)) == [
        *(".gitattributes", "empty.bin", "keep.md"),
        "sub/new.txt",
    ]


def test_a_large_upload_goes_in_parts(small_hub, tmp_path):
    api = HfApi(endpoint=small_hub.endpoint, token=small_hub.token)
    api.create_repo(REPO)
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(150_000))
    api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=REPO)
    assert small_hub.count("^/upload/.+/[1-4]$", method="PUT") == 4
    assert small_hub.count("/api/complete-multipart/") == 1
    assert fetch(api, file.name, tmp_path=tmp_path / "cache") == file.read_bytes()


def test_large_and_binary_files_go_to_large_file_storage_whatever_their_name(small_hub):
    api = HfApi(endpoint=small_hub.endpoint, token=small_hub.token)
    api.create_repo(REPO)
    contents = {"big.txt": b"x" * 60_000, "image.png": b"\x89PNG\0", "text.txt": b"x"}
    operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
    api.create_commit(REPO, operations, commit_message="Add")
    small_hub.publish("local-user/other", contents)
    for repo in (REPO, "local-user/other"):
        found = {entry.path: entry for entry in api.list_repo_tree(repo)}
        assert [path for path in contents if found[path].lfs] == ["big.txt", "image.png"]


def test_what_the_repo_has_is_not_sent_again(api, hub):
    content = os.urandom(20_000)
    sha = hub.publish(REPO, {"a.bin": content})
    again = api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=REPO)
    assert again.oid == sha
    assert hub.count("/commit/") == 0
    api.upload_file(path_or_fileobj=content, path_in_repo="b.bin", repo_id=REPO)
    assert hub.count(method="PUT") == 0
    assert len(api.list_repo_commits(REPO)) == 3


def test_operations_are_applied_together(api, hub, tmp_path):
    hub.publish(REPO, {"a.txt": "a", "m.bin": os.urandom(2000), "old/x": "x", "old/y": "y"})
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("old/"),
        CommitOperationCopy("m.bin", "copy/m.bin"),
        CommitOperationCopy("a.txt", "copy/a.txt"),
    ]
    api.create_commit(REPO, operations, commit_message="All", commit_description="of it")
    assert sorted(api.list_repo_files(REPO)) == sorted(
        [".gitattributes", "a.txt", "copy/a.txt", "copy/m.bin", "m.bin", "new.txt"]
    )
    assert api.list_repo_commits(REPO)[0].message == "of it"
    with pytest.raises(EntryNotFoundError, match="differentiate file and folder"):
        api.delete_file("missing.txt", REPO)


def test_a_commit_on_a_stale_parent_is_refused(api, hub):
    first = hub.publish(REPO, {"a.txt": "1"})
    second = hub.publish(REPO, {"a.txt": "2"})
    operations = [CommitOperationAdd("b.txt", b"b")]
    with pytest.raises(HfHubHTTPError, match="412") as caught:
        api.create_commit(REPO, operations, commit_message="Late", parent_commit=first)
    assert "A commit has happened since" in str(caught.value)
    operations = [CommitOperationAdd("b.txt", b"b")]
    api.create_commit(REPO, operations, commit_message="In time", parent_commit=second[:8])


def test_a_commit_may_open_a_pull_request(api, hub, outsider):
    sha = hub.publish(REPO, {"a.txt": "1"})
    with pytest.raises(HfHubHTTPError, match="403"):
        outsider.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=REPO)
    made = outsider.upload_file(
        path_or_fileobj=os.urandom(2000), path_in_repo="b.bin", repo_id=REPO, create_pr=True
    )
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert api.model_info(REPO).sha == sha
    assert api.model_info(REPO, revision="refs/pr/1").sha == made.oid
    [ref] = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert (ref.ref, ref.target_commit) == ("refs/pr/1", made.oid)
    api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=REPO, revision="refs/pr/1")
    [listed] = api.get_repo_discussions(REPO)
    assert (listed.num, listed.author, listed.status) == (1, "outsider", "open")
    details = api.get_discussion_details(REPO, 1)
    assert details.target_branch == "refs/heads/main"
    assert [event.type for event in details.events] == ["comment", "commit", "commit"]
    api.merge_pull_request(REPO, 1)
    assert api.get_discussion_details(REPO, 1).status == "merged"
    assert {"a.txt", "b.bin", "c.txt"} < {*api.list_repo_files(REPO)}


def test_a_pull_request_may_be_opened_first(api, hub):
    hub.publish(REPO, {"a.txt": "1"})
    pull = api.create_pull_request(REPO, "Later")
    assert (pull.num, pull.status, pull.is_pull_request) == (1, "draft", True)


def test_a_commit_to_a_missing_branch_is_refused(api, hub):
    hub.publish(REPO, {"a.txt": "1"})
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(
            path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=REPO, revision="missing"
        )


def test_a_card_is_validated(api, hub):
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=REPO)


def test_bytes_that_were_not_announced_are_refused(api, hub):
    api.create_repo(REPO)
    auth = {"Authorization": f"Bearer {hub.token}"}
    announced = {"oid": hashlib.sha256(b"right").hexdigest(), "size": 5}
    batch = f"{hub.endpoint}/{REPO}.git/info/lfs/objects/batch"
    body = {"operation": "upload", "objects": [announced]}
    [answer] = get_session().post(batch, headers=auth, json=body).json()["objects"]
    actions = answer["actions"]
    put = get_session().put(actions["upload"]["href"], content=b"wrong")
    assert put.status_code == 400
    verify = get_session().post(actions["verify"]["href"], headers=auth, json=announced)
    assert verify.status_code == 404
    line = b'{"key": "lfsFile", "value": {"path": "m.bin", "algo": "sha256", "oid": "%s"}}'
    commit = get_session().post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        headers=auth,
        content=line % announced["oid"].encode(),
    )
    assert commit.status_code == 400
    assert "does not exist" in commit.headers["X-Error-Message"]


# Who may ----------------------------------------------------------------------------------


def test_whoami_knows_user_and_role(api, hub):
    assert api.whoami()["name"] == "local-user"
    assert hub.token.startswith("hf_local")
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_token("reader"))
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").whoami()


def test_a_private_repo_looks_missing_to_outsiders(api, anonymous, outsider, hub, tmp_path):
    hub.publish("org/secret", {"config.json": "{}"}, private=True)
    api.auth_check("org/secret", write=True)
    member = HfApi(endpoint=hub.endpoint, token=hub.add_token("m", orgs=["org"]))
    member.auth_check("org/secret")
    for other, status in ((anonymous, 401), (outsider, 404)):
        for call in (
            lambda other=other: other.model_info("org/secret"),
            lambda other=other: list(other.list_repo_tree("org/secret")),
            lambda other=other: other.auth_check("org/secret"),
            lambda other=other: fetch(other, "config.json", "org/secret", tmp_path),
        ):
            with pytest.raises(RepositoryNotFoundError) as caught:
                call()
            assert caught.value.response.status_code == status


def test_a_gated_repo_shows_its_info_and_keeps_its_files(api, anonymous, outsider, hub, tmp_path):
    hub.publish("org/gated", {"config.json": "{}", "model.safetensors": b"x"})
    hub.gate("org/gated", "manual")
    guest = HfApi(endpoint=hub.endpoint, token=hub.add_token("guest", gated_access={"org/gated"}))
    for other, status in ((anonymous, 401), (outsider, 403)):
        assert other.model_info("org/gated").gated == "manual"
        assert "config.json" in other.list_repo_files("org/gated")
        for path in ("config.json", "model.safetensors"):
            with pytest.raises(GatedRepoError) as caught:
                fetch(other, path, "org/gated", tmp_path)
            assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            other.auth_check("org/gated")
    for friend in (api, guest):
        friend.auth_check("org/gated")
        assert fetch(friend, "config.json", "org/gated", tmp_path / str(id(friend)))


def test_a_disabled_repo_says_so(api, hub, files):
    hub.publish(REPO, files)
    hub.disable(REPO)
    with pytest.raises(DisabledRepoError):
        api.model_info(REPO)


def test_a_read_token_and_an_outsider_may_not_write(hub, outsider):
    hub.publish("reader/own", {"a": "1"})
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_token("reader", role="read"))
    for who in (reader, outsider):
        for call in (
            lambda who=who: who.create_tag("reader/own", tag="v1"),
            lambda who=who: who.create_branch("reader/own", branch="b"),
            lambda who=who: who.delete_repo("reader/own"),
            lambda who=who: who.update_repo_settings("reader/own", private=True),
            lambda who=who: who.create_repo("reader/new"),
            lambda who=who: who.auth_check("reader/own", write=True),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                call()
            assert caught.value.response.status_code == 403


def test_what_is_not_emulated_says_so(hub):
    answer = get_session().get(f"{hub.endpoint}/api/collections")
    assert answer.status_code == 501
    assert "does not emulate GET /api/collections" in answer.json()["error"]


# The server itself ------------------------------------------------------------------------


def test_publishing_the_same_files_makes_no_commit(hub, files, tmp_path):
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / path).write_bytes(data)
    first = hub.publish(REPO, tmp_path)
    assert hub.publish(REPO, files) == first
    other = hub.publish(REPO, {"only.txt": "x"}, revision="next")
    assert full_hashes(first, other)
    assert other != first
    assert hub.requests == []


def test_a_temporary_root_is_removed_and_a_given_one_kept(tmp_path):
    with LocalHub() as hub:
        hub.publish(REPO, {"a": "1"})
        assert any(hub.root.rglob("*"))
    assert not hub.root.exists()
    with LocalHub(tmp_path / "kept") as hub:
        hub.publish(REPO, {"a": "1"})
    assert any((tmp_path / "kept").rglob("*"))


def test_the_environment_leads_another_process_here(hub, files, tmp_path):
    import subprocess
    import sys

    sha = hub.publish(REPO, files, private=True)
    code = f"from huggingface_hub import snapshot_download as s; print(s({REPO!r}))"
    environ = {**os.environ, **hub.environ()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith(sha)
    assert done.stdout.startswith(str(hub.root))


def test_connections_are_kept_open(hub, files):
    import http.client

    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    hub.publish(REPO, files)
    for _ in range(3):
        connection.request("GET", f"/api/models/{REPO}")
        first = connection.sock
        assert connection.getresponse().read()
        assert connection.sock is first
    connection.close()
