"""What is asked of the server, in the shape of the OpenAI images API, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ddt_accel.errors import DDTAccelError, listed

MOST_SEED = 2**32 - 1
MOST_PREVIEWS = 8
_SHOWN = 60  # characters of what was given that a sentence repeats


class RefusedError(DDTAccelError):
    """A request that is not answered with images: the HTTP `status`, the request's `field` where one is to blame, and
    after how many seconds it may be sent again where that helps."""

    def __init__(self, status: int, sentence: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.field, self.retry_after = status, field, retry_after

    def document(self) -> dict[str, Any]:
        """As the field's servers tell errors."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        field = None if self.field is None else _sendable(self.field)
        return {"error": {"message": _sendable(str(self)), "type": kind, "param": field, "code": None}}


class ImageRequest(BaseModel):
    """The body of `POST /v1/images/generations`. A field's description says what it is to be, in errors, too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str | int, Field(description="the name or the number of a class", examples=["cat", 3])]
    model: Annotated[str | None, Field(description="the name that /v1/models has, or leave it out")] = None
    n: Annotated[int, Field(ge=1, description="how many images, a whole number from 1 on")] = 1
    size: Annotated[
        str, Field(description="auto, or the width and height of the model's pictures", examples=["auto", "32x32"])
    ] = "auto"
    response_format: Annotated[Literal["b64_json", "png"], Field(description="b64_json, or png for one image")] = (
        "b64_json"
    )
    seed: Annotated[
        int | None,
        Field(ge=0, le=MOST_SEED, description="a whole number from 0 to 2^32 - 1; further images count up from there"),
    ] = None
    quality: Annotated[str, Field(description="a name that /v1/schedules has, or draft, standard, high or exact")] = (
        "auto"
    )
    stream: Annotated[bool, Field(description="true for server-sent events, or false")] = False
    partial_images: Annotated[
        int,
        Field(ge=0, le=MOST_PREVIEWS, description=f"previews of a stream, a whole number from 0 to {MOST_PREVIEWS}"),
    ] = 0


EXAMPLE = '{"prompt": "cat", "n": 2, "seed": 0}'


def no_json() -> RefusedError:
    """For a body that is none of a request."""
    return RefusedError(400, f"The body is no JSON object; send one as application/json, such as {EXAMPLE}.")


def refused(errors: Sequence[Mapping[str, Any]]) -> RefusedError:
    """The sentence for what Pydantic found first; where a body stands around the request, its place is left out."""
    first = errors[0]
    place = [one for one in first["loc"] if one != "body"]
    field = str(place[0]) if place and first["type"] != "json_invalid" else None
    if first["type"] == "json_invalid" or field is None:
        return no_json()
    fields = ImageRequest.model_fields
    if first["type"] == "extra_forbidden":
        names = listed(list(fields), most=len(fields))
        return RefusedError(400, f"{shown(field)} is no field of a request; the fields are {names}.", field=field)
    wanted = fields[field].description
    if first["type"] == "missing":
        return RefusedError(400, f"{field} is missing; give {wanted}.", field=field)
    return RefusedError(400, f"{field} is {shown(first['input'])}; give {wanted}.", field=field)


def shown(given: Any) -> str:
    """What was given, as JSON has it, and no more of it than fits into a sentence."""
    try:
        text = given if isinstance(given, str) and given.isidentifier() else json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(given)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _sendable(text: str) -> str:
    """JSON can name half of a character, which no answer can hold: it is named again."""
    return text.encode(errors="backslashreplace").decode()
