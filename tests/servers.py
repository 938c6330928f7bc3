"""Real uvicorn servers on free ports, as users have them in their tests."""

from __future__ import annotations

from maas_middleware.testing import serving, serving_in_thread

__all__ = ["serving", "serving_in_thread"]
