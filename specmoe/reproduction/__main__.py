"""``python -m specmoe.reproduction``: rewrite ``docs/reproduction.md`` from the committed results."""

from .document import FILE, document

FILE.write_text(document(), encoding="utf-8")
print(f"wrote {FILE}")
