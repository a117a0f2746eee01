"""`runtimes.base.Blobs` on a directory: what a runtime sees of the store, without a worker."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing
from flowmesh.spec.action import Artifact
from flowmesh.spec.table import columns_of, decode_rows, encode_rows
from flowmesh.stores.trees import put_tree


class DirBlobs:
    def __init__(self, root: Path) -> None:
        self._blobs, self._trees, self._scratch = root / "blobs", root / "trees", root / "scratch"
        for directory in (self._blobs, self._trees, self._scratch):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        return self._existing(self._blobs / digest.hash, digest)

    def tree(self, digest: Digest) -> Path:
        return self._existing(self._trees / digest.hash, digest)

    def put(self, content: bytes | Path) -> Digest:
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = Digest.of(data)
        (self._blobs / digest.hash).write_bytes(data)
        return digest

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def lay_out(self, digest: Digest, source: Path) -> None:
        """Have `tree(digest)` find a copy of the directory `source`."""
        shutil.copytree(source, self._trees / digest.hash)

    def put_tree(self, folder: Path) -> Digest:
        digest = put_tree(self, folder)
        if not (self._trees / digest.hash).exists():
            self.lay_out(digest, folder)
        return digest

    def put_file(self, text: str) -> Artifact:
        return Artifact("file", str(self.put(text.encode())))

    def put_table(self, rows: Iterable[Mapping[str, Any]]) -> Artifact:
        rows = list(rows)
        return Artifact("table", str(self.put(encode_rows(rows))), len(rows), columns_of(rows))

    def rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        return decode_rows(self.path(artifact.address).read_bytes())

    def _existing(self, path: Path, digest: Digest) -> Path:
        if not path.exists():
            raise BlobMissing(digest, "the test's store")
        return path
