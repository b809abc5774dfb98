"""What the body of a response is: HTML, plain text or neither, and which characters its bytes stand for."""

from __future__ import annotations

import codecs
import email.message
import re
from typing import Literal

Kind = Literal["html", "text", "other"]

_HTML = ("text/html", "application/xhtml+xml")
_TEXTS = ("application/json", "application/xml", "application/javascript", "application/x-javascript", "application/yaml")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_STATED = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_ENCODINGS = re.compile(  # those of the web, as Python names them; others would cost more than reading, or are none of text
    r"utf-8|utf-16(-[lb]e)?|ascii|iso8859-\d+|cp(125\d|866|874|932|949)|koi8-[ru]|mac-(roman|cyrillic)|gbk|gb2312|gb18030|"
    r"big5(hkscs)?|euc_jp|euc_kr|iso2022_jp|shift_jis"
)
_LOOKED_AT = 2_048  # bytes in which a document may state its encoding, or show that it is HTML
_LIKE_HTML = re.compile(rb"\s*(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html|head|body|title|p|div|h1)\b", re.I | re.S)


def kind_of(headers: dict[str, str], start: bytes | None = None) -> Kind:
    """What a body is.

    Args:
        headers: By name in lower case.
        start: Its beginning, for those that do not say what they are; None before it is known: then it may be text.
    """
    if headers.get("content-disposition", "").strip().lower().startswith("attachment"):
        return "other"
    stated = headers.get("content-type", "").partition(";")[0].strip().lower()
    if stated in _HTML:
        return "html"
    if stated.startswith("text/") or stated in _TEXTS or stated.endswith(("+json", "+xml")):
        return "text"
    if stated:
        return "other"
    if start is not None and _LIKE_HTML.match(start[:_LOOKED_AT]):
        return "html"
    return "other" if start is not None and b"\0" in start[:_LOOKED_AT] else "text"


def characters(body: bytes, headers: dict[str, str], kind: Kind) -> str:
    """The body as text: by its first bytes, by what the server states, by what the document states, else UTF-8.

    What is no UTF-8 although nothing else was stated is taken for Windows-1252, as browsers do.
    """
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    message = email.message.Message()
    message["Content-Type"] = headers.get("content-type", "")
    stated = message.get_content_charset() or ""
    if not stated and kind == "html" and (match := _STATED.search(body[:_LOOKED_AT])):
        stated = match[1].decode("ascii", "replace")
        stated = "utf-8" if stated.lower().startswith("utf-16") else stated  # it was read as ASCII, so it is not
    if stated:
        try:
            encoding = codecs.lookup(stated).name
        except (LookupError, ValueError):
            encoding = ""
        if _ENCODINGS.fullmatch(encoding):
            western = encoding in ("iso8859-1", "ascii")  # the web means Windows-1252 by these names
            return body.decode("cp1252" if western else encoding, "replace")
    try:
        return body.decode()
    except UnicodeDecodeError as problem:
        at_the_end = problem.reason == "unexpected end of data" and problem.start > len(body) - 4  # cut in a character
        return body.decode("utf-8" if at_the_end else "cp1252", "replace")
