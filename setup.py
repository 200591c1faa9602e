"""What `pyproject.toml` cannot say: the wheel brings the pages, job folders and templates of this version."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "custom"))
from fedseg.files.shipped import FOLDER, SHIPPED


class WithShippedFiles(build_py):
    """Builds the package with a folder of what people read and copy, as far as the sources have it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            source, target = Path(name), Path(self.build_lib) / "fedseg" / FOLDER / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": WithShippedFiles})
