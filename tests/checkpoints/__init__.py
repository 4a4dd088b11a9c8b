"""Tiny random checkpoints in the layouts that are published: the same names, shapes and files, but small.

One module per family. They are written to a folder and loaded by the same code as the real ones, so that a test
needs no download.
"""

from tests.checkpoints.bert import write_bert
from tests.checkpoints.files import SENTENCES, write_checkpoint
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4

__all__ = [
    "SENTENCES",
    "write_bert",
    "write_checkpoint",
    "write_jina_v1",
    "write_jina_v2",
    "write_jina_v3",
    "write_jina_v4",
]
