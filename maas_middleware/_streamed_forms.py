"""Multipart forms that are forwarded while they come."""

from __future__ import annotations

from python_multipart.multipart import MultipartParser, parse_options_header

from ._asgi import new_id
from ._form_parts import (
    MAXIMUM_FIELDS,
    MAXIMUM_FILES,
    JudgedFields,
    field_head,
    file_head,
    form_options,
    unreadable,
)

_MAXIMUM_TEXT_BYTES = 1 << 20
_REPLACED = ("model", "request_id")


class StreamedForm:
    """Judges a form piece by piece, and encodes it again part by part: what was judged is what is forwarded.

    A field is held until it is whole, because it may be refused; files pass. In front of all of them stands `model`.

    Args:
        model: the name that the server knows it by.

    Attributes:
        boundary: of the form that is forwarded; nobody else knows it.
        fields: what decides about the form, as far as it was read.
        text_bytes, file_bytes: how much of it there was for the model to read.
        has_file: whether a file has begun.

    Raises:
        InvalidRequest: it is no form.
    """

    def __init__(self, content_type: bytes, model: str) -> None:
        self.boundary = new_id().encode()
        self.fields = JudgedFields()
        self.text_bytes = 0
        self.file_bytes = 0
        self.has_file = False
        self._parser = self._parser_of(form_options(content_type).get(b"boundary"))
        self._is_whole = False
        self._room = {True: MAXIMUM_FILES, False: MAXIMUM_FIELDS}
        self._headers: dict[bytes, bytes] = {}
        self._header = bytearray()
        self._header_value = bytearray()
        self._name = ""
        self._text: bytearray | None = None
        self._output: list[bytes] = []
        self._write_field("model", model)

    def feed(self, piece: bytes) -> bytes:
        """Read a piece; returns what may be forwarded.

        Raises:
            InvalidRequest: the form cannot be read, or is refused; nothing more of it may be forwarded.
        """
        try:
            self._parser.write(piece)
        except ValueError:
            raise unreadable() from None
        output, self._output = self._output, []
        return b"".join(output)

    def end(self) -> bytes:
        """What ends the form, once all was read.

        Raises:
            InvalidRequest: it does not end there.
        """
        if not self._is_whole:
            raise unreadable()
        return b"--" + self.boundary + b"--\r\n"

    def _parser_of(self, boundary: bytes | None) -> MultipartParser:
        if not boundary:
            raise unreadable()
        try:
            return MultipartParser(
                boundary,
                {
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except ValueError:
            raise unreadable() from None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        headers, self._headers = self._headers, {}
        _, options = parse_options_header(headers.get(b"content-disposition"))
        if b"name" not in options:
            raise unreadable()
        self._name = _decoded(options[b"name"])
        filename = options.get(b"filename")
        self._take_room(is_file=filename is not None)
        if filename is None:
            self._text = bytearray()
            return
        self.fields.take(self._name, None)
        self.has_file = True
        self._text = None
        media_type = headers.get(b"content-type", b"").decode("latin-1")
        self._output.append(file_head(self.boundary, self._name, _decoded(filename), media_type))

    def _take_room(self, *, is_file: bool) -> None:
        if not self._room[is_file]:
            raise unreadable()
        self._room[is_file] -= 1

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self.file_bytes += end - start
            self._output.append(data[start:end])
        elif len(self._text) + end - start > _MAXIMUM_TEXT_BYTES:
            raise unreadable()
        else:
            self._text += data[start:end]

    def _on_part_end(self) -> None:
        if self._text is None:
            self._output.append(b"\r\n")
            return
        text = _decoded(self._text)
        self.fields.take(self._name, text)
        if self._name not in _REPLACED:
            self._write_field(self._name, text)

    def _write_field(self, name: str, text: str) -> None:
        encoded = text.encode()
        self.text_bytes += len(encoded)
        self._output += (field_head(self.boundary, name), encoded, b"\r\n")

    def _on_end(self) -> None:
        self._is_whole = True


def _decoded(text: bytes | bytearray) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
