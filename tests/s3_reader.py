"""What a reader of runs sees: it asks the S3 server itself, past any proxy, and believes the manifest alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import botocore.config
import botocore.session

from jobs.artifacts import Manifest
from jobs.local_s3 import REGION, LocalS3


class Lost(AssertionError):
    """A manifest stands, and what it lists does not."""


class Reader:
    """Reads runs of one server."""

    def __init__(self, s3: LocalS3) -> None:
        keys = s3.environment()
        self._client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=s3.endpoint,
            region_name=REGION,
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(read_timeout=30, retries={"total_max_attempts": 3}),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def keys(self, run_url: str) -> set[str]:
        """Keys of all objects of a run, relative to it."""
        bucket, prefix = _split(run_url)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return {each["Key"][len(prefix) + 1 :] for page in pages for each in page.get("Contents", [])}

    def manifest(self, run_url: str) -> Manifest | None:
        """Return a run's manifest once all that it lists was read and is right; None where there is no manifest.

        Raises
        ------
        Lost
            When a file is missing, or another than was written.
        """
        content = self._read(f"{run_url}/manifest.json")
        if content is None:
            return None
        json.loads(content, parse_constant=_refuse)
        manifest = Manifest.model_validate_json(content)
        for file in manifest.files:
            data = self._read(file.url)
            if data is None:
                raise Lost(f"{file.url}: in the manifest, and not there")
            if (len(data), hashlib.sha256(data).hexdigest()) != (file.size, file.sha256):
                raise Lost(f"{file.url}: not what was written")
        return manifest

    def _read(self, url: str) -> bytes | None:
        bucket, key = _split(url)
        try:
            with self._client.get_object(Bucket=bucket, Key=key)["Body"] as body:
                return bytes(body.read())
        except self._client.exceptions.NoSuchKey:
            return None


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _refuse(constant: str) -> None:
    raise Lost(f"manifest.json holds {constant}")
