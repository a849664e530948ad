"""Each fault, met by the real client."""

import hashlib
import os
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from hfflows.testing import Fault

REPO = "local-user/tiny"
FILE = "model.safetensors"
WEIGHTS = r"^GET .*model\.safetensors"


@pytest.fixture
def weights(hub):
    content = os.urandom(300_000)
    hub.publish(REPO, {FILE: content, "config.json": "{}"})
    hub.reset_counts()
    return content


@pytest.fixture
def download(api, tmp_path):
    def run(path=FILE):
        return Path(api.hf_hub_download(REPO, path, cache_dir=tmp_path)).read_bytes()

    return run


@pytest.fixture
def link(api, hub, weights):
    return api.get_hf_file_metadata(url=f"{hub.endpoint}/{REPO}/resolve/main/{FILE}").location


def test_a_body_cut_by_a_close_is_resumed_in_the_same_call(hub, download):
    weights = os.urandom(12 << 20)
    hub.publish(REPO, {FILE: weights})
    hub.inject(Fault(match=WEIGHTS, origin="cdn", cut_after=11 << 20))
    assert download() == weights
    first, second = [record for record in hub.requests if record.origin == "cdn"]
    assert (first.bytes_sent, first.status) == (11 << 20, 200)
    assert (second.bytes_sent, second.status) == (2 << 20, 206)
    assert (first.range, second.range) == (None, "bytes=10485760-")


def test_a_body_cut_by_a_reset_fails_the_call(hub, weights, download):
    hub.inject(Fault(match=WEIGHTS, origin="cdn", cut_after=100_000, how="reset"))
    with pytest.raises(httpx2.ReadError):
        download()
    assert download() == weights


def test_a_stalled_body_comes_late_and_whole(hub, link, weights):
    hub.inject(Fault(match=WEIGHTS, stall_seconds=0.3, stall_after=150_000))
    with get_session().stream("GET", link) as answer:
        pieces = answer.iter_raw()
        content = b""
        while len(content) < 150_000:
            content += next(pieces)
        started = time.monotonic()
        content += b"".join(pieces)
    assert content == weights
    assert time.monotonic() - started > 0.2


def test_a_stall_before_the_headers_times_a_client_out(hub, link):
    hub.inject(Fault(match=WEIGHTS, stall_seconds=30))
    with pytest.raises(httpx2.ReadTimeout):
        get_session().get(link, timeout=0.2)
    started = time.monotonic()
    hub.stop()
    assert time.monotonic() - started < 2


def test_429_with_retry_after_is_waited_for(hub, weights, download):
    hub.inject(Fault(match=WEIGHTS, origin="cdn", status=429, retry_after=0))
    assert download() == weights
    assert [record.status for record in hub.requests if record.origin == "cdn"] == [429, 200]


def test_429_carries_the_rate_limit_headers(hub, api, weights):
    policy = {"RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.inject(Fault(match="/api/", status=429, rate_limit='"api";r=0;t=55', headers=policy))
    with pytest.raises(HfHubHTTPError, match=r"Retry after 55 seconds \(0/500"):
        api.model_info(REPO)
    assert api.model_info(REPO).id == REPO


def test_a_server_error_on_a_file_is_raised_and_gone_the_next_time(hub, weights, download):
    hub.inject(Fault(match=WEIGHTS, origin="cdn", status=503))
    with pytest.raises(HfHubHTTPError, match="503"):
        download()
    assert download() == weights


def test_faults_happen_in_order_as_often_as_said_and_after_those_skipped(hub, api, weights):
    hub.inject(
        Fault(match="/api/models", skip=1, times=2, status=500),
        Fault(match="/api/models", skip=1, status=418),
    )
    seen = [get_session().get(f"{hub.endpoint}/api/models/{REPO}").status_code for _ in range(6)]
    assert seen == [200, 500, 500, 418, 200, 200]
    hub.inject(Fault(match="/api/models", times=None, status=500))
    for _ in range(3):
        with pytest.raises(HfHubHTTPError, match="500"):
            api.model_info(REPO)
    hub.clear_faults()
    assert api.model_info(REPO).id == REPO


def test_a_flipped_byte_is_not_noticed_by_the_client(hub, weights, download):
    hub.inject(Fault(match=WEIGHTS, origin="cdn", flip_at=123_456))
    content = download()
    changed = [at for at in range(len(weights)) if content[at] != weights[at]]
    assert changed == [123_456]


def test_a_flipped_byte_is_at_its_offset_in_every_range(hub, link, weights):
    hub.inject(Fault(match=WEIGHTS, flip_at=1005, times=2))
    part = get_session().get(link, headers={"Range": "bytes=1000-1009"}).content
    assert [at for at in range(10) if part[at] != weights[1000 + at]] == [5]
    part = get_session().get(link, headers={"Range": "bytes=2000-2009"}).content
    assert part == weights[2000:2010]


def test_a_wrong_etag_is_sent_where_the_right_one_was(hub, api, weights):
    hub.inject(Fault(match="^HEAD .*resolve", etag="0" * 64))
    url = f"{hub.endpoint}/{REPO}/resolve/main/{FILE}"
    assert api.get_hf_file_metadata(url=url).etag == "0" * 64
    assert api.get_hf_file_metadata(url=url).etag == hashlib.sha256(weights).hexdigest()


def test_a_listing_announces_what_it_is_told_to_and_files_stay(hub, api, weights, download):
    right, wrong = hashlib.sha256(weights).hexdigest(), "0" * 64
    hub.inject(
        Fault(match="/tree/", replace=(right, wrong)),
        Fault(match="config.json", replace=("{}", "[]"), times=None),
    )

    def announced():
        return [file.lfs.sha256 for file in api.list_repo_tree(REPO) if file.path == FILE]

    assert (announced(), announced()) == ([wrong], [right])
    assert download("config.json") == b"{}"


def test_a_lost_reply_leaves_the_commit_made(hub, api, weights):
    hub.inject(Fault(match="^POST .*/commit/", hang_up=True, applied=True))
    operations = [CommitOperationAdd("new.txt", b"new")]
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_commit(REPO, operations, commit_message="Made", num_threads=1)
    assert api.list_repo_commits(REPO)[0].title == "Made"


def test_a_connection_that_ends_at_once_leaves_nothing_done(hub, api, weights):
    hub.inject(Fault(match="^POST .*/tag/", hang_up=True, how="reset"))
    with pytest.raises(httpx2.TransportError):
        api.create_tag(REPO, tag="v1")
    assert api.list_repo_refs(REPO).tags == []
    assert hub.requests[0].status == 0


def test_an_upload_that_is_cut_leaves_nothing_behind(hub, api, weights):
    hub.inject(Fault(match="^PUT /upload/", cut_upload_after=50_000, how="reset"))
    content = os.urandom(200_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="new.bin", repo_id=REPO)
    cut, whole = [record for record in hub.requests if record.method == "PUT"]
    assert (cut.status, cut.bytes_received) == (0, 50_000)
    assert (whole.status, whole.bytes_received) == (200, 200_000)
    assert not any((hub.root / "incoming").iterdir())


def test_a_hub_that_is_down_refuses_connections_and_comes_back(hub, api, weights, download):
    endpoint = hub.endpoint
    api.model_info(REPO)  # opens a connection that must not survive
    hub.down()
    hub.down()
    with pytest.raises(httpx2.ConnectError):
        get_session().get(f"{endpoint}/api/models/{REPO}")
    hub.up()
    assert hub.endpoint == endpoint
    assert download() == weights
    hub.down()
    assert download() == weights  # from the client's cache


def test_going_down_ends_a_transfer_that_is_under_way(hub, link):
    hub.inject(Fault(match=WEIGHTS, stall_seconds=30, stall_after=1000))
    with get_session().stream("GET", link) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        hub.down()
        with pytest.raises(httpx2.TransportError):
            list(pieces)


def test_counts_are_complete_under_many_threads(hub, link, weights):
    hub.reset_counts()
    received = []

    def fetch():
        received.extend(len(httpx2.get(link).content) for _ in range(5))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.count(origin="cdn", method="GET") == len(received) == 40
    assert hub.bytes_sent == sum(received) == 40 * len(weights)
    hub.reset_counts()
    assert (hub.requests, hub.bytes_sent, hub.bytes_received) == ([], 0, 0)


def test_a_token_on_the_cdn_is_recorded(hub, link):
    get_session().get(link)
    assert hub.leaked_tokens == []
    get_session().get(link, headers={"Authorization": f"Bearer {hub.token}"})
    [leak] = hub.leaked_tokens
    assert leak.origin == "cdn"
