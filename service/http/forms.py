"""Files out of a multipart form that is in memory as a whole. Blocking: belongs on a worker thread."""

from __future__ import annotations

from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

from service.errors import BadForm
from service.http.body import Upload, too_large
from service.http.faults import MAX_FAULTS, bad_parameter, unknown

FIELD = "file"
"""Name of the form field that holds a picture."""

MAX_OTHER_PARTS = 32
"""Fields that a form may hold beside its pictures."""


class Part(NamedTuple):
    """One part of a form."""

    field: str
    filename: str | None
    data: bytes


def picture_file(upload: Upload, max_bytes: int) -> bytes:
    """The file of a request that holds one picture, its body or the one in its form; raises `TooLarge` as well."""
    data = upload.data if upload.boundary is None else single_file(upload.data, upload.boundary)
    if len(data) > max_bytes:
        raise too_large(max_bytes, f"{len(data):,}")
    return data


def single_file(body: bytes, boundary: bytes) -> bytes:
    """The bytes of the one part named `file`; raises `BadForm`, or `BadParameter` for a field beside it."""
    parts = parse(body, boundary)
    files = [part for part in parts if part.field == FIELD]
    if len(files) == 1:
        _refuse_others(parts)
        return files[0].data
    raise BadForm(
        f"expected exactly one form field named {FIELD!r}, found {len(files)} (fields: {_named(parts)}); "
        f"send it as in: curl -F {FIELD}=@photo.jpg"
    )


def several_files(body: bytes, boundary: bytes, most: int) -> list[Part]:
    """The parts named `file`, 1..`most` of them, in order; raises as `single_file`."""
    fields = _count(body, boundary)
    if fields > most + MAX_OTHER_PARTS:
        raise _too_many(most, f"a form of {fields:,} fields")
    parts = parse(body, boundary, most + MAX_OTHER_PARTS)
    files = [part for part in parts if part.field == FIELD]
    if len(files) > most:
        raise _too_many(most, f"{len(files)}")
    if files:
        _refuse_others(parts)
        return files
    raise BadForm(
        f"expected 1 to {most} form fields named {FIELD!r}, found {len(files)} (fields: {_named(parts)}); "
        f"send them as in: curl -F {FIELD}=@a.jpg -F {FIELD}=@b.jpg"
    )


def _count(body: bytes, boundary: bytes) -> int:
    """The number of fields of a whole form, without parsing it: every part but the first, and the end, begin so."""
    return _without_preamble(body, boundary).count(b"\r\n--" + boundary)


def _too_many(most: int, found: str) -> BadForm:
    return BadForm(
        f"expected 1 to {most} form fields named {FIELD!r}, found {found}; max_batch_files limits the files of one "
        f"request (limits of GET /model): send at most {most} in each"
    )


def parse(body: bytes, boundary: bytes, most: int = 1 + MAX_OTHER_PARTS) -> list[Part]:
    """All parts of a form, in order; raises `BadForm`, also if there are more than `most`."""
    collector = _Collector(most)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(_without_preamble(body, boundary))
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise BadForm(
            f"expected a multipart form, found one that does not parse ({error}); let the client build it"
        ) from error
    if not collector.ended:
        raise BadForm("expected a whole multipart form, found one without its final boundary; send it again")
    return collector.parts


def _without_preamble(body: bytes, boundary: bytes) -> bytes:
    """The form from its first boundary on: what stands before it is no part (RFC 2046); the parser would refuse it."""
    first = b"--" + boundary + b"\r\n"
    if body.startswith(first):
        return body
    start = body.find(b"\n" + first)
    return body if start < 0 else body[start + 1 :]


def _refuse_others(parts: list[Part]) -> None:
    """Raises `BadParameter` for parts that nobody reads, as for a query parameter that nobody reads."""
    others = {part.field: part for part in parts if part.field != FIELD}
    faults = [
        unknown(name, others[name].data[:100].decode("utf-8", "replace"), [FIELD], "form field")
        for name in sorted(others)[:MAX_FAULTS]
    ]
    if faults:
        raise bad_parameter(faults, "a form holds pictures only, parameters belong into the query; see /docs")


def _named(parts: list[Part]) -> str:
    return ", ".join(repr(part.field[:40]) for part in parts[:8]) or "none"


class _Collector:
    """Gathers what the parser calls back."""

    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self._most = most
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._most:
            raise BadForm(f"expected a form of at most {self._most} fields, found more; send fewer in one request")
        self._headers, self._data = {}, []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        field, name = _names(self._headers.get(b"content-disposition", b""))
        self.parts.append(Part(_text(field), None if name is None else _text(name), b"".join(self._data)))

    def _finish(self) -> None:
        self.ended = True


def _names(disposition: bytes) -> tuple[str, str | None]:
    """Name of the field and of the file, if the header has one."""
    if b"*" not in disposition:
        _, options = parse_options_header(disposition)
        name = options.get(b"filename")
        filename = None if name is None else name.decode("utf-8", "replace")
        return options.get(b"name", b"").decode("utf-8", "replace"), filename
    # RFC 7578 forbids `filename*=`, so that parser ignores it; some clients send it all the same. Four times slower
    parsed = Message()
    parsed["content-disposition"] = disposition.decode("utf-8", "replace")
    parameters = parsed.get_params([], header="content-disposition")
    names = sorted((value for key, value in parameters if key == "filename"), key=lambda value: isinstance(value, str))
    field = str(parsed.get_param("name", "", header="content-disposition"))
    return field, collapse_rfc2231_value(names[0]).strip() if names else None  # `filename*=`, where there are both


def _text(name: str) -> str:
    """The name without what cannot be told in JSON: percent-encoding may spell half a character."""
    return name.encode("utf-8", "replace").decode("utf-8")[:255]
