"""What pyproject.toml cannot say: the notebooks lie beside the package, and a wheel has them inside
it, as ``specmoe/notebooks``, where ``specmoe.shipped`` finds them."""

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


setup(cmdclass={"build_py": WithNotebooks})
