"""Folders of images: `data: {type: images.ImageFolder, args: {folder: data/pets}}`. Needs Pillow, the extra `images`.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.parts.classes import renumbered
from src.utils.errors import ConfigError, DataError
from src.utils.packages import not_installed
from src.utils.paths import project_path, shown_path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class ImageFiles(Dataset[Any]):
    """The images of a folder, or one image, as float32 [C, H, W] in 0..1, in the order of their names.

    Files are opened when they are read, in the process that reads them.

    Args:
        path: Folder, searched with all folders below it, or an image file.
        num_channels: 1 reads them as grey, 3 as colour, 4 as colour with transparency.

    Raises:
        ConfigError: Reading images needs a package that is not installed.
        DataError: There is no image.
    """

    is_image = True

    def __init__(self, path: Path, num_channels: int = 3) -> None:
        try:
            from PIL import Image
        except ImportError:
            raise ConfigError(not_installed("reading image files", "PIL")) from None
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        if num_channels not in modes:
            raise ConfigError(f"num_channels: {num_channels}; use 1 for grey, 3 for colour, or 4 with transparency")
        self._open = Image.open
        self._mode = modes[num_channels]
        if not path.exists():
            raise DataError(f"{shown_path(path)}: no such file or folder")
        self.root = path if path.is_dir() else path.parent
        found = path.rglob("*") if path.is_dir() else [path]
        self.files = sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not self.files:
            raise DataError(f"{shown_path(path)}: no image in it; images end in {', '.join(IMAGE_SUFFIXES)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return self.image(row)

    def image(self, row: int) -> Tensor:
        """Return an image, float32 [C, H, W] in 0..1.

        Raises:
            DataError: The file is damaged or gone; names it.
        """
        try:
            with self._open(self.files[row]) as image:
                pixels = np.array(image.convert(self._mode), dtype=np.float32) / 255
        except Exception as error:  # Pillow raises nearly anything on damaged files
            raise DataError(f"{shown_path(self.files[row])}: cannot be read as an image: {error}") from error
        return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)

    def row_id(self, row: int) -> str:
        """Return the file's name within the folder."""
        return self.files[row].relative_to(self.root).as_posix()

    def row_keys(self) -> list[str]:
        """Return the names of the files: what a `stable` split goes by."""
        return [self.row_id(row) for row in range(len(self))]


class ImageFolder(ImageFiles):
    """Images and their classes: one folder for each class, or a CSV file that says what each file shows.

    A sample is `(image, target)`: float32 [C, H, W] in 0..1; int64 [] for a class, float32 [1] for a number. Images of
    different sizes need the transform `Resize` or a crop before they make a batch.

    Args:
        folder: Relative to the project. Without `labels` it holds a folder of images for each class.
        labels: CSV file with a header, relative to the project; other columns are there for `split` to go by.
        file_column: Its column of file names, relative to `folder`.
        label_column: Its column of classes, or of numbers.
        num_channels: 1 reads images as grey, 3 as colour, 4 as colour with transparency.
        classify: Whether labels are classes; false for numbers to predict.

    Raises:
        ConfigError: Reading images needs a package that is not installed.
        DataError: A file or column is missing.
    """

    def __init__(
        self,
        folder: str,
        labels: str | None = None,
        file_column: str = "file",
        label_column: str = "label",
        num_channels: int = 3,
        classify: bool = True,
    ) -> None:
        super().__init__(project_path(folder), num_channels)
        self._table: Any = None
        names = self._listed(project_path(labels), file_column, label_column) if labels else self._folders()
        self.class_names: list[str] | None = None
        if classify:
            self.class_names = sorted(set(map(str, names)))
            self.num_classes = len(self.class_names)
            codes = {name: code for code, name in enumerate(self.class_names)}
            self.targets = torch.tensor([codes[str(name)] for name in names])
        else:
            self.targets = torch.tensor(self._numbers(names, label_column)).unsqueeze(1)

    def _folders(self) -> Sequence[str]:
        """Return the folder that each file is in."""
        loose = next((file for file in self.files if file.parent == self.root), None)
        if loose is not None:
            raise DataError(
                f"{shown_path(loose)}: is in no folder of a class; make one for each class, or give `labels`"
            )
        with_images = {file.relative_to(self.root).parts[0] for file in self.files}
        for each in sorted(self.root.iterdir()):
            if each.is_dir() and not each.name.startswith(".") and each.name not in with_images:
                raise DataError(f"{shown_path(each)}: no image in it; images end in {', '.join(IMAGE_SUFFIXES)}")
        return [file.relative_to(self.root).parts[0] for file in self.files]

    def _listed(self, path: Path, file_column: str, label_column: str) -> Sequence[Any]:
        """Take the files that a CSV file lists, in its order, and return their labels."""
        from src.data.tables.cells import column_in
        from src.data.tables.csv_file import read_csv

        self._table, self._where = read_csv(path, ","), shown_path(path)
        files = column_in(self._table, file_column, self._where)
        labels = column_in(self._table, label_column, self._where)
        known = {file.relative_to(self.root).as_posix(): file for file in self.files}
        for row, (name, label) in enumerate(zip(files, labels, strict=True), start=1):
            if str(name) not in known:
                raise DataError(
                    f"{self._where} row {row} column {file_column}: no image {name} in {shown_path(self.root)}"
                )
            if label != label:
                raise DataError(f"{self._where} row {row} column {label_column}: empty")
        self.files = [known[str(name)] for name in files]
        return list(labels)

    def _numbers(self, labels: Sequence[Any], label_column: str) -> list[float]:
        try:
            return [float(label) for label in labels]
        except ValueError as error:
            where = self._where if self._table is not None else shown_path(self.root)
            raise DataError(f"{where} column {label_column}: {error}; classify: true makes classes of text") from error

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.image(row), self.targets[row]

    def column(self, name: str) -> Any:
        """Return a column of the CSV file, to split by.

        Raises:
            DataError: There is none of this name.
        """
        from src.data.tables.cells import column_in

        if self._table is None:
            raise DataError(f"{shown_path(self.root)}: no column {name!r}; columns are those of a file of `labels`")
        return column_in(self._table, name, self._where).to_numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return the classes, for parts with folders of their own."""
        return {"class_names": self.class_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Number the classes as the training data do.

        Raises:
            DataError: A class is none of theirs.
        """
        names = state["class_names"]
        if self.class_names is None or names is None:
            return
        self.targets = renumbered(self.targets, self.class_names, names, lambda row: shown_path(self.files[row]))
        self.class_names, self.num_classes = list(names), len(names)

    def fit(self, rows: Tensor) -> None:
        """Learn nothing: the classes are those of the whole folder."""
