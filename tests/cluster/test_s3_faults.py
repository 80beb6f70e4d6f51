"""S3 storage behind a proxy that breaks things: reads go on, writes happen once, refusals are final, nothing leaks.

The store is an emulator and the faults are scripted: this says what our calls do, not how a real store behaves.
"""

import hashlib
import os
import random
import re
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cibhash.errors import AlreadyExists, NotFound, StorageError
from cibhash.shards import SourceImage, read_samples, write_shard
from cluster import s3_client, s3_objects, storage
from cluster.retries import retries, retries_since
from cluster.s3_stream import OPERATION
from tests.s3 import BUCKET, own_client, s3_bucket
from tests.s3_faults import FAST, Fault, FaultyStore, faulty_store

__all__ = ["faulty_store", "own_client", "s3_bucket"]

CONTENT = random.Random(1).randbytes(400_000)
BROKEN_READS = {
    "503": Fault("status", times=3),
    "503 that asks to wait": Fault("status", retry_after="1"),
    "500": Fault("status", status=500, code="InternalError", times=4),
    "reset": Fault("reset", times=3),
    "answer lost": Fault("lost"),
    "cut before the first byte": Fault("cut", times=2),
    "cut": Fault("cut", after=25_001, times=3),
}


@pytest.mark.parametrize("case", BROKEN_READS)
def test_every_way_of_reading_survives_a_broken_answer(
    case: str, faulty_store: FaultyStore, s3_bucket: str, tmp_path: Path
) -> None:
    sources = [SourceImage(f"k{n}", "png", CONTENT[n * 9000 : (n + 1) * 9000], (n,)) for n in range(15)]
    shard = write_shard(tmp_path / "a.tar", f"{s3_bucket}/a.tar", sources, 7)
    data, uri = (tmp_path / "a.tar").read_bytes(), shard.uri
    storage.put_file(tmp_path / "a.tar", uri)

    def in_order() -> bool:
        with storage.open_stream(uri) as stream:
            return [sample.image for sample in read_samples(stream, shard)] == [source.image for source in sources]

    def copied() -> bool:
        storage.get_file(uri, tmp_path / "copy")
        return (tmp_path / "copy").read_bytes() == data

    readings: tuple[Callable[[], bool], ...] = (
        in_order,
        copied,
        lambda: storage.read_bytes(uri) == data,
        lambda: storage.read_range(uri, 1234, 90_000) == data[1234:91_234],
        lambda: storage.sha256_of(uri) == (hashlib.sha256(data).hexdigest(), len(data)),
    )
    for reading in readings:
        fault, before = Fault(**{**vars(BROKEN_READS[case]), "match": "^GET"}), retries()
        faulty_store.plan(fault)
        assert reading()
        assert fault.times == 0
        assert len(faulty_store.lines()) == sum(retries_since(before).values()) + 1


@pytest.mark.parametrize("fault", [Fault("stall", after=25_000), Fault("trickle", after=500)], ids=["stall", "crawl"])
def test_a_body_that_stops_or_crawls_is_asked_for_again(
    fault: Fault, faulty_store: FaultyStore, s3_bucket: str
) -> None:
    storage.write_bytes(f"{s3_bucket}/a", CONTENT)
    faulty_store.plan(Fault(**vars(fault)))
    assert storage.read_bytes(f"{s3_bucket}/a") == CONTENT
    first, *others = [seen.range for seen in faulty_store.seen]
    assert first == ""
    assert all(re.fullmatch(r"bytes=[1-9]\d*-399999", wanted) for wanted in others)
    assert others


def test_a_broken_body_goes_on_from_the_byte_reached(faulty_store: FaultyStore, s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/a", CONTENT)
    before = retries()
    faulty_store.plan(Fault("cut", after=100_000), Fault("cut", after=50_000))
    assert storage.read_bytes(f"{s3_bucket}/a") == CONTENT
    assert [seen.range for seen in faulty_store.seen] == ["", "bytes=100000-399999", "bytes=150000-399999"]
    faulty_store.plan(Fault("cut", after=100))
    assert storage.read_range(f"{s3_bucket}/a", 1000, 300) == CONTENT[1000:1300]
    assert [seen.range for seen in faulty_store.seen] == ["bytes=1000-1299", "bytes=1100-1299"]
    assert retries_since(before) == {OPERATION: 3}


def test_breaks_are_endured_as_long_as_there_is_progress(faulty_store: FaultyStore, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a"
    storage.write_bytes(uri, CONTENT * 2)
    faulty_store.plan(Fault("cut", after=70_000, times=99))
    assert storage.read_bytes(uri) == CONTENT * 2
    assert len(faulty_store.seen) == 12 > FAST.attempts
    faulty_store.plan(Fault("cut", after=10, times=99))
    with pytest.raises(StorageError, match=rf"{uri}: the body broke off at byte 50 of 800000: .* 5 times") as caught:
        storage.read_bytes(uri)
    assert caught.value.exit_code == 4
    assert len(faulty_store.seen) == FAST.attempts


def test_an_object_replaced_while_it_is_read_is_named_with_both_etags(
    faulty_store: FaultyStore, s3_bucket: str
) -> None:
    uri, other = f"{s3_bucket}/a", CONTENT[::-1]
    storage.write_bytes(uri, CONTENT)
    etags = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in (CONTENT, other)]
    faulty_store.plan(Fault("cut", match="^GET", after=1000))
    with storage.open_stream(uri) as stream:
        assert stream.read(500) == CONTENT[:500]
        storage.write_bytes(uri, other)
        with pytest.raises(StorageError, match=rf"{uri}: replaced .*{etags[0]}.*{etags[1]}") as caught:
            stream.read()
    assert not isinstance(caught.value, AlreadyExists)
    storage.remove(uri)
    storage.write_bytes(uri, CONTENT)
    faulty_store.plan(Fault("cut", match="^GET", after=1000))
    with storage.open_stream(uri) as stream:
        storage.remove(uri)
        with pytest.raises(NotFound, match=uri):
            stream.read()


def test_a_stream_reads_like_a_file(faulty_store: FaultyStore, s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/a", CONTENT)
    storage.write_bytes(f"{s3_bucket}/empty", b"")
    with storage.open_stream(f"{s3_bucket}/a") as stream:
        assert stream.readable()
        assert [stream.read(0), stream.read(3), stream.read(70_000)] == [b"", CONTENT[:3], CONTENT[3:70_003]]
        buffer = bytearray(10)
        assert stream.readinto(buffer) == 10  # type: ignore[attr-defined]
        assert buffer == CONTENT[70_003:70_013]
        assert stream.read(10**9) == CONTENT[70_013:]
        assert (stream.read(5), stream.read()) == (b"", b"")
    assert storage.read_bytes(f"{s3_bucket}/empty") == b""
    assert storage.read_range(f"{s3_bucket}/a", 5, 0) == b""
    with pytest.raises(StorageError, match=r"/empty: 0 of 3 bytes at offset 0"):
        storage.read_range(f"{s3_bucket}/empty", 0, 3)


def test_reads_share_one_connection_and_address_buckets_by_path(faulty_store: FaultyStore, s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/a", CONTENT)
    faulty_store.plan()
    for offset in range(5):
        storage.read_range(f"{s3_bucket}/a", offset * 1000, 1000)
    storage.read_bytes(f"{s3_bucket}/a")
    assert {line.partition("?")[0] for line in faulty_store.lines()} == {f"GET /{BUCKET}/a"}
    assert len({seen.connection for seen in faulty_store.seen}) == 1


def test_a_forked_child_uses_connections_of_its_own(faulty_store: FaultyStore, s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/a", CONTENT)
    faulty_store.plan()
    child = os.fork()
    if child == 0:
        os._exit(0 if storage.read_bytes(f"{s3_bucket}/a") == CONTENT else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read_bytes(f"{s3_bucket}/a") == CONTENT
    assert len({seen.connection for seen in faulty_store.seen}) == 2


# --- what is not tried again, and how often the rest is


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", r"access denied, s3:{permission} is needed \(AccessDenied\)"),
        (404, "NoSuchBucket", "no such bucket"),
        (404, "NoSuchKey", "no such object"),
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is too far from the store's"),
        (403, "InvalidAccessKeyId", "the store does not know these credentials"),
        (403, "SignatureDoesNotMatch", "the credentials are wrong"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region"),
        (400, "InvalidRequest", "S3 answered 400 InvalidRequest$"),
    ],
)
def test_refusals_are_final_and_explained(
    status: int, code: str, said: str, faulty_store: FaultyStore, s3_bucket: str, tmp_path: Path
) -> None:
    uri = f"{s3_bucket}/a"
    (tmp_path / "small").write_bytes(b"x")
    actions: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: storage.read_bytes(uri), "GetObject"),
        (lambda: storage.read_range(uri, 0, 1), "GetObject"),
        (lambda: storage.create_bytes(uri, b"x"), "PutObject"),
        (lambda: storage.put_file(tmp_path / "small", uri), "PutObject"),
        (lambda: storage.remove(uri), "DeleteObject"),
    )
    for action, permission in actions:
        faulty_store.plan(Fault("status", status=status, code=code, times=99))
        with pytest.raises(StorageError, match=rf"^{uri}: .*{said.replace('{permission}', permission)}") as caught:
            action()
        assert caught.value.exit_code == 4
        assert len([line for line in faulty_store.lines() if line.startswith(("GET", "PUT", "DELETE"))]) == 1


@pytest.mark.parametrize("kind", ["status", "reset", "lost"])
def test_what_never_gets_better_is_given_up_with_the_uri(
    kind: str, faulty_store: FaultyStore, s3_bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"{s3_bucket}/a"
    for action, operation in (
        (lambda: storage.read_bytes(uri), "GetObject"),
        (lambda: storage.write_bytes(uri, b"x"), "PutObject"),
        (lambda: storage.exists(uri), "HeadObject"),
        (lambda: storage.remove(uri), "DeleteObject"),
    ):
        before = retries()
        faulty_store.plan(Fault(kind, times=99))  # type: ignore[arg-type]
        with pytest.raises(StorageError, match=uri) as caught:
            action()
        assert (caught.value.exit_code, isinstance(caught.value, NotFound)) == (4, False)
        assert "\n" not in str(caught.value)
        assert len(faulty_store.seen) == FAST.attempts
        assert retries_since(before) == {operation: FAST.attempts - 1}
        lines = capfd.readouterr().err.splitlines()
        assert len([line for line in lines if f"operation={operation} at=127.0.0.1:" in line]) == FAST.attempts - 1
    if kind == "status":
        with pytest.raises(StorageError, match=r"S3 answered 503 SlowDown after 5 attempts"):
            storage.read_bytes(uri)


def test_the_store_may_ask_for_a_longer_wait(
    faulty_store: FaultyStore, s3_bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    storage.write_bytes(f"{s3_bucket}/a", b"x")
    faulty_store.plan(Fault("status", retry_after="3600"), Fault("status", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"))
    capfd.readouterr()
    assert storage.read_bytes(f"{s3_bucket}/a") == b"x"
    asked, unclear = capfd.readouterr().err.splitlines()
    assert f"reason=503 SlowDown wait_s={FAST.longest_wait_s:.2f}" in asked
    assert "wait_s=0.00" in unclear


# --- writes


def test_a_write_whose_answer_was_lost_is_a_success(faulty_store: FaultyStore, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/CURRENT"
    for kind in ("lost", "cut", "reset", "status"):
        storage.remove(uri)
        for action, content in (
            (lambda: storage.create_bytes(uri, b"v1"), b"v1"),
            (lambda: storage.swap_bytes(uri, b"v1", b"v2"), b"v2"),
            (lambda: storage.write_bytes(uri, b"v3"), b"v3"),
            (lambda: storage.swap_bytes(uri, b"v3", b"v3"), b"v3"),
        ):
            faulty_store.plan(Fault(kind, match="^PUT"))  # type: ignore[arg-type]
            action()
            assert storage.read_bytes(uri) == content
    faulty_store.plan(Fault("lost", match="^DELETE", times=2))
    storage.remove(uri)
    assert not storage.exists(uri)


def test_a_race_lost_in_the_meantime_is_lost(faulty_store: FaultyStore, s3_bucket: str) -> None:
    """The repeated request of one who did not win reads the winner's content back."""
    uri = f"{s3_bucket}/CURRENT"
    storage.create_bytes(uri, b"theirs")
    faulty_store.plan(Fault("status", match="^PUT"))
    with pytest.raises(AlreadyExists, match=uri):
        storage.create_bytes(uri, b"ours")
    assert len(faulty_store.lines("^PUT")) == 2
    assert storage.read_bytes(uri) == b"theirs"
    faulty_store.plan(Fault("status", match="^PUT"))
    storage.create_bytes(uri, b"theirs")  # the very same bytes: who wrote them cannot be told, and makes no difference
    faulty_store.plan()
    with pytest.raises(AlreadyExists, match=uri):
        storage.create_bytes(uri, b"theirs")  # sent once: certainly not ours
    assert len(faulty_store.seen) == 1


def test_a_conflict_is_tried_again(faulty_store: FaultyStore, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/CURRENT"
    conflict = {"match": "^PUT", "status": 409, "code": "ConditionalRequestConflict"}
    faulty_store.plan(Fault("status", times=3, **conflict))  # type: ignore[arg-type]
    storage.create_bytes(uri, b"v1")
    faulty_store.plan(Fault("status", times=3, **conflict))  # type: ignore[arg-type]
    storage.swap_bytes(uri, b"v1", b"v2")
    assert storage.read_bytes(uri) == b"v2"
    faulty_store.plan(Fault("status", times=99, **conflict))  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=rf"{uri}: in conflict with another writer after 5 attempts") as caught:
        storage.swap_bytes(uri, b"v2", b"v3")
    assert not isinstance(caught.value, AlreadyExists)


# --- uploads in parts


def _unfinished() -> list[str]:
    found = s3_client.client().list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in found.get("Uploads", ())]


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts."""
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(CONTENT * 25)
    return path


@pytest.mark.parametrize(
    "faults",
    [
        (Fault("status", match="^POST .*uploads"), Fault("status", match="partNumber=2", times=3)),
        (Fault("reset", match="partNumber=1", times=2), Fault("lost", match="partNumber=2")),
        (Fault("status", match="^POST .*uploadId", status=500, code="InternalError"),),
        (Fault("lost", match="^POST .*uploadId"),),
    ],
    ids=["503", "broken connections", "500 at the end", "answer lost at the end"],
)
def test_a_large_file_arrives_whole(
    faults: tuple[Fault, ...], faulty_store: FaultyStore, s3_bucket: str, large_file: Path
) -> None:
    faulty_store.plan(*(Fault(**vars(fault)) for fault in faults))
    storage.put_file(large_file, f"{s3_bucket}/large")
    assert sum(faulty_store.met().values()) == sum(fault.times for fault in faults)
    assert _unfinished() == []
    assert storage.sha256_of(f"{s3_bucket}/large")[0] == hashlib.sha256(large_file.read_bytes()).hexdigest()


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (503, "SlowDown")])
def test_an_upload_that_fails_leaves_nothing(
    status: int, code: str, faulty_store: FaultyStore, s3_bucket: str, large_file: Path
) -> None:
    uri = f"{s3_bucket}/large"
    for match in ("partNumber=2", "^POST .*uploadId"):
        faulty_store.plan(Fault("status", match=match, status=status, code=code, times=99))
        with pytest.raises(StorageError, match=rf"{uri}: .*{code}"):
            storage.put_file(large_file, uri)
        assert len(faulty_store.lines("^POST .*uploads")) == 1
        assert _unfinished() == []
        assert not storage.exists(uri)
    with pytest.raises(NotFound, match="nowhere"):
        storage.put_file(Path("nowhere"), uri)


def test_uploads_of_killed_processes_can_be_aborted(s3_bucket: str) -> None:
    client = s3_client.client()
    for key in ("runs/a", "runs/b", "other"):
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    assert s3_objects.abort_uploads(f"{s3_bucket}/runs/", timedelta(days=365 * 100)) == ()
    assert s3_objects.abort_uploads(f"{s3_bucket}/runs/", timedelta()) == (f"{s3_bucket}/runs/a", f"{s3_bucket}/runs/b")
    assert _unfinished() == ["other"]
    assert s3_objects.abort_uploads(s3_bucket, timedelta()) == (f"{s3_bucket}/other",)
    with pytest.raises(NotFound, match="s3://no-such-bucket"):
        s3_objects.abort_uploads("s3://no-such-bucket", timedelta())


# --- secrets


def test_no_error_and_no_log_line_holds_credentials(
    faulty_store: FaultyStore,
    s3_bucket: str,
    own_client: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    large_file: Path,
) -> None:
    key, secret, token = "AKIA" + "Q" * 16, "wJalr/UtnFEMI+K7MDENGbPxRfiCYzzz", "FwoGZXIvYXdzEBYaDHqa0A"
    for name, value in (("ACCESS_KEY_ID", key), ("SECRET_ACCESS_KEY", secret), ("SESSION_TOKEN", token)):
        monkeypatch.setenv(f"AWS_{name}", value)
    s3_client.forget_client()
    uri, said = f"{s3_bucket}/a", ""
    storage.write_bytes(uri, CONTENT)
    asked: list[str] = []

    def provoke(*faults: Fault) -> None:
        nonlocal said
        faulty_store.plan(*faults)
        for action in (
            lambda: storage.read_bytes(uri),
            lambda: storage.create_bytes(uri, b"x"),
            lambda: storage.put_file(large_file, uri),
        ):
            with pytest.raises(StorageError) as caught:
                action()
            said += "".join(traceback.format_exception(caught.value))
        asked.extend(faulty_store.lines())

    for status, code in ((403, "AccessDenied"), (403, "InvalidAccessKeyId"), (503, "SlowDown"), (400, "ExpiredToken")):
        provoke(Fault("status", status=status, code=code, times=99))
    provoke(Fault("reset", times=99))
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{token}\n")  # as read from a file; the HTTP client quotes it
    s3_client.forget_client()
    provoke()
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:{token}x@127.0.0.1:9")
    s3_client.forget_client()
    provoke()
    said += capfd.readouterr().err
    assert len(re.findall("tried again", said)) > 10
    assert uri in said
    assert "do the credentials hold a line break?" in said
    for hidden in (key, secret, token):
        assert hidden not in said
    assert asked
    assert not [line for line in asked if "X-Amz-Signature" in line or "AWSAccessKeyId" in line]


def test_locations_with_credentials_are_refused_and_not_repeated() -> None:
    for uri in (
        "s3://AKIAX:se/cret@bucket/a",
        "s3://AKIAX:secret@bucket/a",
        "s3://secret@bucket/a",
        "http://u:secret@h/a",
    ):
        with pytest.raises(Exception) as caught:
            storage.is_s3(uri)
        assert caught.value.exit_code == 2  # type: ignore[attr-defined]
        assert "secret" not in str(caught.value)
        assert "cret@" not in str(caught.value)
