"""The proxy of the fault tests does to requests what its rules say, and nothing to the others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session
import pytest

from jobs.local_s3 import REGION, LocalS3
from tests.s3_proxy import Rule, S3Proxy


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3: str) -> str:
    return s3.removeprefix("s3://")


@pytest.fixture
def client(proxy: S3Proxy) -> Iterator[Any]:
    """A plain client that tries nothing twice."""
    config = botocore.config.Config(read_timeout=0.7, retries={"total_max_attempts": 1})
    client = botocore.session.Session().create_client("s3", region_name=REGION, config=config)
    yield client
    client.close()


def code_of(client: Any, method: str, **arguments: Any) -> str | int | None:
    try:
        getattr(client, method)(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return None


def content(client: Any, bucket: str, key: str) -> bytes:
    answer = client.get_object(Bucket=bucket, Key=key)
    with answer["Body"] as body:
        return body.read()


def test_without_rules_everything_passes(proxy: S3Proxy, client: Any, bucket: str) -> None:
    data = os.urandom(3_000_001)
    for key in ("a", "b c/ü&=+", "empty"):
        client.put_object(Bucket=bucket, Key=key, Body=b"" if key == "empty" else data)
    assert hashlib.sha256(content(client, bucket, "b c/ü&=+")).digest() == hashlib.sha256(data).digest()
    assert content(client, bucket, "empty") == b""
    assert client.head_object(Bucket=bucket, Key="a")["ContentLength"] == len(data)
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a", "b c/ü&=+", "empty"]
    assert code_of(client, "put_object", Bucket=bucket, Key="a", Body=b"", IfNoneMatch="*") == "PreconditionFailed"
    assert proxy.seen()[0].method == "PUT"


def test_a_rule_takes_what_it_names_as_often_as_it_says(proxy: S3Proxy, client: Any, bucket: str) -> None:
    put = {"Bucket": bucket, "Key": "a", "Body": b"1"}
    second = proxy.add(Rule("denied", method="PUT", key="/a", first=2, last=2))
    assert [code_of(client, "put_object", **put) for _ in range(3)] == [None, "AccessDenied", None]
    assert proxy.n_struck(second) == 1
    proxy.add(Rule("refused", method="GET", after=second, within_s=0.0))
    assert content(client, bucket, "a") == b"1"
    later = proxy.add(Rule("refused", method="GET", after=second))
    assert code_of(client, "get_object", Bucket=bucket, Key="a") == "SlowDown"
    proxy.remove(later)
    assert content(client, bucket, "a") == b"1"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("moved", "PermanentRedirect"), ("conflict", "ConditionalRequestConflict"), ("unimplemented", "NotImplemented")],
)
def test_refusals_have_the_codes_of_s3(proxy: S3Proxy, client: Any, bucket: str, kind: Any, code: str) -> None:
    proxy.add(Rule(kind, header="If-None-Match"))
    assert code_of(client, "put_object", Bucket=bucket, Key="a", Body=b"1") is None
    with pytest.raises(botocore.exceptions.ClientError) as raised:
        client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    assert raised.value.response["Error"]["Code"] == code
    assert kind != "moved" or raised.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"]


def test_a_head_is_refused_without_a_body(proxy: S3Proxy, client: Any, bucket: str) -> None:
    proxy.add(Rule("denied", code="SignatureDoesNotMatch"))
    assert code_of(client, "head_object", Bucket=bucket, Key="a") == "403"
    assert code_of(client, "get_object", Bucket=bucket, Key="a") == "SignatureDoesNotMatch"


@pytest.mark.parametrize("kind", ["lost", "silent", "cut", "trickling", "late", "held"])
def test_what_breaks_a_request_leaves_it_applied_or_not(proxy: S3Proxy, client: Any, bucket: str, kind: Any) -> None:
    part: Any = "request" if kind in ("cut", "trickling") else "answer"
    rule = proxy.add(Rule(kind, method="PUT", part=part))
    with pytest.raises(botocore.exceptions.HTTPClientError):
        client.put_object(Bucket=bucket, Key="a", Body=b"12")
    is_applied = kind in ("lost", "late")
    assert (code_of(client, "head_object", Bucket=bucket, Key="a") is None) == is_applied
    if kind == "held":  # it lands later, though its client has left
        proxy.release(rule)
        deadline = time.monotonic() + 10
        while code_of(client, "head_object", Bucket=bucket, Key="a") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert content(client, bucket, "a") == b"12"


@pytest.mark.parametrize("kind", ["cut", "trickling", "flipped"])
def test_what_breaks_an_answer_is_seen_in_its_body(proxy: S3Proxy, client: Any, bucket: str, kind: Any) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"0" * 64)
    proxy.add(Rule(kind, method="GET", drop="x-amz-checksum", pace_s=0.3))
    answer = client.get_object(Bucket=bucket, Key="a")["Body"]
    begin = time.monotonic()
    if kind == "flipped":
        assert answer.read() == b"0" * 32 + b"1" + b"0" * 31
    elif kind == "cut":
        with pytest.raises(botocore.exceptions.HTTPClientError):
            answer.read()
    else:
        assert answer.read(2) == b"00"
        assert time.monotonic() - begin > 0.2
    answer.close()


def test_a_condition_that_is_ignored_lets_a_second_create_pass(proxy: S3Proxy, client: Any, bucket: str) -> None:
    rule = proxy.add(Rule("ignored", header="If-None-Match"))
    for data in (b"first", b"second"):
        client.put_object(Bucket=bucket, Key="a b", Body=data, IfNoneMatch="*")
    assert content(client, bucket, "a b") == b"second"
    assert proxy.n_struck(rule) == 2


def test_a_stale_listing_is_that_of_before(proxy: S3Proxy, client: Any, bucket: str) -> None:
    for key in ("f/gone", "f/stays", "f/g/deep"):
        client.put_object(Bucket=bucket, Key=key, Body=b"1")
    proxy.add(Rule("stale"))
    client.delete_object(Bucket=bucket, Key="f/gone")
    client.put_object(Bucket=bucket, Key="f/new", Body=b"1")
    answer = client.list_objects_v2(Bucket=bucket, Prefix="f/", Delimiter="/")
    assert [each["Key"] for each in answer["Contents"]] == ["f/gone", "f/stays"]
    assert [each["Prefix"] for each in answer["CommonPrefixes"]] == ["f/g/"]
    assert client.list_objects_v2(Bucket=bucket, Prefix="f/g/")["KeyCount"] == 1
    proxy.clear()
    assert client.list_objects_v2(Bucket=bucket, Prefix="f/")["KeyCount"] == 3


def test_child_processes_are_led_to_it_and_it_can_be_down(proxy: S3Proxy, bucket: str) -> None:
    code = f"import s3fs; s3fs.S3FileSystem().pipe_file('{bucket}/child', b'1')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert any(seen.target.endswith("/child") for seen in proxy.seen())
    client = botocore.session.Session().create_client(
        "s3", region_name=REGION, config=botocore.config.Config(retries={"total_max_attempts": 1})
    )
    with proxy.down(), pytest.raises(botocore.exceptions.EndpointConnectionError):
        client.list_buckets()
    assert client.list_buckets()["Buckets"]
    client.close()


def test_it_leaves_no_thread_and_the_former_endpoint(s3_server: LocalS3) -> None:
    before = set(threading.enumerate())
    with S3Proxy(s3_server) as proxy:
        proxy.add(Rule("silent"))
        client = botocore.session.Session().create_client(
            "s3",
            region_name=REGION,
            config=botocore.config.Config(read_timeout=0.2, retries={"total_max_attempts": 1}),
        )
        with pytest.raises(botocore.exceptions.ReadTimeoutError):
            client.list_buckets()
        client.close()
    assert set(threading.enumerate()) <= before
    assert os.environ["AWS_ENDPOINT_URL_S3"] == s3_server.endpoint
