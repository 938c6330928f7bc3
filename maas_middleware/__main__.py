"""`python -m maas_middleware`, the same as `maas-gateway`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
