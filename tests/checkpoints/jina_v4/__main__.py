"""Writes a tiny random checkpoint of jina-embeddings-v4: `python -m tests.checkpoints.jina_v4 FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.checkpoints.jina_v4 import write_jina_v4

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
write_jina_v4(parser.parse_args().folder, dtype=torch.bfloat16)
