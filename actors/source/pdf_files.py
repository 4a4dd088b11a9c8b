"""Local files of the PDFs of a source, for the processes that decode their pages.

PDFium reads a file here and there, and the units of a PDF follow each other. So a PDF of a store is fetched once into a
file on the disk of each process that reads it. The files are removed when others need the space, and with the process.
The trade-off: each process of a machine has its own.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from functools import lru_cache
from pathlib import Path
from threading import Lock

from actors import storage
from actors.images.workers import PdfFile
from actors.schema import Shard
from actors.storage.content_tags import parts
from actors.storage.temp_dirs import SharedTempDir, disk_errors

LIMIT_BYTES = 1 << 30  # of files on disk that no page is being read from; the last one may be larger
_RANGE_BYTES = 32 << 20


class _FetchedPdfs:
    """PDFs of stores on the disk of this process, the least recently used first."""

    def __init__(self) -> None:
        self._folder = SharedTempDir(f"pdfs-{os.getpid()}")
        self._files: dict[Shard, PdfFile] = {}
        self._bytes = 0
        self._lock = Lock()

    def get(self, shard: Shard) -> PdfFile:
        """Return a PDF of a store; fetch it if it is not there, or if it has no tag and may have changed unseen."""
        if not shard.etag:
            return self._fetched(shard)
        with self._lock:
            if (known := self._files.pop(shard, None)) is not None:
                self._files[shard] = known
                return known
        pdf = self._fetched(shard)
        with self._lock:
            self._bytes += 0 if shard in self._files else shard.size_bytes
            self._files[shard] = pdf
            while len(self._files) > 1 and self._bytes > LIMIT_BYTES:
                oldest = next(iter(self._files))
                del self._files[oldest]  # removed from disk after its last page
                self._bytes -= oldest.size_bytes
        return pdf

    def _fetched(self, shard: Shard) -> PdfFile:
        with disk_errors(self._folder.path):
            number, path = tempfile.mkstemp(dir=self._folder.path)
        pdf = PdfFile(path, shard if shard.etag else None)
        weakref.finalize(pdf, Path(path).unlink, missing_ok=True)
        with open(number, "wb") as file:
            for data in parts(shard, _RANGE_BYTES):
                with disk_errors(self._folder.path):
                    file.write(data)
                    file.flush()
        return pdf


@lru_cache(maxsize=1)
def _fetched_pdfs() -> _FetchedPdfs:
    return _FetchedPdfs()


def pdf_file(shard: Shard) -> PdfFile:
    """Return a PDF of a source as a local file."""
    if storage.is_local(shard.path):
        return PdfFile(str(storage.local_path(shard.path)), shard)
    return _fetched_pdfs().get(shard)
