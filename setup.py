"""What pyproject.toml cannot say: the notebooks lie beside the package, and a wheel has them inside
it, as ``specmoe/notebooks``, where ``specmoe.shipped`` finds them; and the README's links, which go
from file to file here, lead to the repository from a package index."""

import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithNotebooks(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "specmoe", "notebooks")
        self.mkpath(str(target))
        for notebook in sorted(Path("notebooks").glob("*.ipynb")):
            self.copy_file(str(notebook), str(target / notebook.name))


def absolute(readme: str, repository: str) -> str:
    """``readme`` with links and pictures that work wherever it is shown; ``repository`` is
    ``owner/name`` on GitHub."""
    home = f"https://github.com/{repository}"
    for mark, place in ((r"!", f"{home}/raw/main/"), (r"(?<!!)", f"{home}/blob/main/")):
        readme = re.sub(rf"({mark}\[[^\]]*\]\()(?!\w+:|#)", rf"\g<1>{place}", readme)
    return readme


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": WithNotebooks},
        long_description=absolute(
            Path("README.md").read_text(encoding="utf-8"),
            # a workflow of GitHub knows its own; elsewhere nobody does
            os.environ.get("GITHUB_REPOSITORY", "OWNER/specmoe"),
        ),
        long_description_content_type="text/markdown",
    )
