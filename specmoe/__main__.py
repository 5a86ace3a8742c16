"""``python -m specmoe``: the same as ``specmoe``."""

from .cli import main

raise SystemExit(main())
