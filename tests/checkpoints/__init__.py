"""Writers of tiny random checkpoints in the published layouts: same names, axes and files, smaller sizes.

One module per family. The checkpoints are loaded by the same code as real ones, so tests need no download.
"""

from tests.checkpoints.bert import write_bert
from tests.checkpoints.files import SENTENCES, write_checkpoint
from tests.checkpoints.jina_colbert_v2 import write_jina_colbert_v2
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4

__all__ = [
    "SENTENCES",
    "write_bert",
    "write_checkpoint",
    "write_jina_colbert_v2",
    "write_jina_v1",
    "write_jina_v2",
    "write_jina_v3",
    "write_jina_v4",
]
