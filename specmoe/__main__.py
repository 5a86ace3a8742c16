"""``python -m specmoe``: the same as ``specmoe``."""

from .cli.parser import main

raise SystemExit(main())
