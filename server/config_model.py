"""What all parts of the configuration file are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

# Nothing in a part of the file is unknown, and nothing changes.
STRICT = ConfigDict(extra="forbid", frozen=True)

Port = Annotated[int, Field(ge=0, le=65535)]
