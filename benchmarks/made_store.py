"""A made-up object store on loopback that answers listings alone: one bucket with a folder of any number of pictures.

Keys are `photos/FOLDER/NUMBER.jpg`, 1000 a page and 10,000 a folder, in their order, as S3 lists them; with captions there is a
NUMBER.txt after each.
"""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

BUCKET, FOLDER = "made", "photos"
_PAGE, _PER_FOLDER = 1000, 10_000
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
_ITEM = (
    "<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;%032x&quot;</ETag>"
    "<Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Store(http.server.ThreadingHTTPServer):
    """Serves made-up keys of so many pictures."""

    daemon_threads = True

    def __init__(self, pictures: int, captions: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.extensions = ("jpg", "txt") if captions else ("jpg",)
        self.files = pictures * len(self.extensions)


@contextlib.contextmanager
def serving(pictures: int, captions: bool = False) -> Iterator[dict[str, str]]:
    """The store, answering in a thread; gives the environment variables by which a command finds it."""
    with Store(pictures, captions) as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        try:
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.server_address[1]}",
                "AWS_ACCESS_KEY_ID": "made",
                "AWS_SECRET_ACCESS_KEY": "up",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            store.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: else the second waits for the other side's acknowledgement
    server: Store

    def do_HEAD(self) -> None:
        """The bucket is there, an object is not."""
        self.send_response(200 if urlsplit(self.path).path.strip("/") == BUCKET else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """A page of the listing; of any other prefix an empty one."""
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("continuation-token", ["0"])[0])
        is_whole = f"{FOLDER}/".startswith(query.get("prefix", [""])[0])
        size = min(_PAGE, int(query.get("max-keys", [str(_PAGE)])[0]))
        last = min(first + size, self.server.files) if is_whole else first
        more = is_whole and last < self.server.files
        token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
        items = "".join(map(self._item, range(first, last)))
        body = f"{_HEAD}<Name>{BUCKET}</Name><KeyCount>{last - first}</KeyCount><MaxKeys>{size}</MaxKeys>"
        body += f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        data = f"{body}{items}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _item(self, file: int) -> str:
        number, kind = divmod(file, len(self.server.extensions))
        key = f"{FOLDER}/{number // _PER_FOLDER:06d}/{number:010d}.{self.server.extensions[kind]}"
        return _ITEM % (key, file, 100_000 + file % 7919)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
