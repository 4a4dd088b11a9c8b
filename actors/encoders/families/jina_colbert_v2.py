"""jina-colbert-v2: the encoder of jina-embeddings-v3 without adapters, and a projection of each token's state."""

from __future__ import annotations

import torch

from actors.encoders.build import Checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import Linear
from actors.encoders.families.jina_colbert_v2_layout import PROJECTION
from actors.encoders.families.jina_v3 import JinaV3
from actors.encoders.packed import PackedBatch


class JinaColbertV2(JinaV3):
    """The encoder and the projection, which computes in float32."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        super().__init__(checkpoint, compute)
        weight = checkpoint.weights.under("").get(PROJECTION)[: checkpoint.spec.dim]
        self.projection = Linear(weight, None, compute=Compute(compute.device, torch.float32))

    def forward_multi(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `actors.encoders.build.LateFamily`."""
        hidden = self.forward(batch)
        return hidden, self.projection(hidden.float())


def build(checkpoint: Checkpoint, compute: Compute) -> JinaColbertV2:
    """Loads a checkpoint."""
    return JinaColbertV2(checkpoint, compute)
