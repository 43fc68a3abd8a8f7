"""A page of an object store's listing, read in the quick way and as any XML: one and the same."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from realcustom.storage import _read_plain, _read_xml

SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
HEAD = "<Name>b</Name><Prefix>p/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>"
NEXT = "<NextContinuationToken>p/b.jpg</NextContinuationToken>"


def item(key: str, size: int = 7, tag: str = "&quot;0a1b&quot;", more: str = "") -> str:
    etag = f"<ETag>{tag}</ETag>" if tag else ""
    return (
        f"<Contents><Key>{key}</Key>{more}<LastModified>2026-01-01</LastModified>{etag}<Size>{size}</Size></Contents>"
    )


def page(*items: str, head: str = HEAD, space: str = SPACE) -> bytes:
    return f'<?xml version="1.0"?>\n<ListBucketResult {space}>{head}{"".join(items)}{NEXT}</ListBucketResult>'.encode()


@pytest.mark.parametrize(
    "body",
    [
        page(item("p/a.jpg"), item("p/b.jpg", 0, '"9c-2"')),
        page(item("p/a.jpg"), space=""),
        page(item("p/q &amp; a &lt;1&gt;.jpg"), item("p/é+%20.jpg", tag='"1"', more="<Owner><ID>x</ID></Owner>")),
        page(item("p/&quot;a&quot; &amp;quot;.jpg"), item("p/&apos;b&apos;.jpg")),
        page(item("p/a%20b+c%25.jpg"), item("p/&amp;.jpg"), head=HEAD + "<EncodingType>url</EncodingType>"),
    ],
    ids=["plain", "without a namespace", "signs", "quotes", "encoded"],
)  # fmt: skip
def test_the_quick_way_reads_what_any_way_reads(body: bytes) -> None:
    quick, slow = _read_plain(body), _read_xml(body)
    assert quick is not None and slow is not None and quick[0] == slow[0] and quick[0]
    rest = [[(child.tag, child.text) for child in ElementTree.fromstring(left)] for left in (quick[1], slow[1])]
    assert rest[0] == rest[1] and not any(tag.endswith("Contents") for tag, _ in rest[0])


@pytest.mark.parametrize(
    "body",
    [
        page(),
        page(item("p/a.jpg", tag="")),
        page(item("p/a&#13;.jpg")),
        page(item("<![CDATA[p/a.jpg]]>")),
        page(item("p/a.jpg"), "<CommonPrefixes><Prefix>p/in/</Prefix></CommonPrefixes>"),
        page(item("p/a.jpg"), space="").replace(b"<", b"<s:").replace(b"<s:/", b"</s:").replace(b"<s:?", b"<?"),
        page(item("p/a.jpg"), item("p/b.jpg"))[:300],
    ],
    ids=["empty", "no ETag", "a character's number", "CDATA", "prefixes", "another prefix of names", "cut"],
)  # fmt: skip
def test_what_is_written_otherwise_is_left_to_the_other_way(body: bytes) -> None:
    assert _read_plain(body) is None
