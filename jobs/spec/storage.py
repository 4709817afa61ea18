"""How a job deals with its storage."""

from __future__ import annotations

from pydantic import Field

from jobs.spec.base import StrictModel


class Storage(StrictModel):
    """What has no bearing on the result: how long to wait for storage."""

    stall_seconds: float = Field(
        300.0,
        ge=1,
        le=86_400,
        description="An operation on storage ends, and the job with exit code 75, when less than 64 KiB moved within "
        "so many seconds, over all tries.",
    )
