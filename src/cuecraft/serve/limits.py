"""What one request may hold."""

from __future__ import annotations

from pydantic import Field

from cuecraft.options import Options


class Limits(Options):
    """What one request may hold."""

    body_bytes: int = Field(1_000_000, ge=1, description="bytes of a request's body")
    upload_bytes: int = Field(64_000_000, ge=1, description="bytes of an uploaded prompt, packed and unpacked")
    inputs: int = Field(256, ge=1, description="texts of one request")
    prompts: int = Field(32, ge=1, description="prompts of one request")
    characters: int = Field(20_000, ge=1, description="characters of one text, all its fields together")
    timeout_ms: int = Field(30_000, ge=1, description="how long a request may take, at most")
