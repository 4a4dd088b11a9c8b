"""jina-colbert-v2: the encoder of jina-embeddings-v3 without adapters, and a projection of each token's state."""

from __future__ import annotations

import torch

from actors.encoders.build import Checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.families.jina_colbert_v2_layout import PROJECTION
from actors.encoders.families.jina_v3 import JinaV3


class JinaColbertV2(JinaV3):
    """The encoder and its projection."""
