"""Where a rank stands among the ranks that share a model.

mesh.py   the mesh of one: every axis has size 1, every collective is the identity
"""

from __future__ import annotations

from xllm.engine.parallel.mesh import Mesh

__all__ = ["Mesh"]
