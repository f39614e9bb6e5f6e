"""Class folders: a text file is a row, and its folder's name the label."""

from __future__ import annotations

from peftcli.data.formats.classification import labelled
from peftcli.data.recognition.row_format import Column, RowFormat

FORMAT = RowFormat(
    name="folders",
    columns=(Column("text"), Column("label", target=True)),
    expected="a directory with a folder for each class, and .txt files in it",
    makes={"labelled": labelled},
    template_column="text",
    has_columns=False,
    about="A directory with a folder for each class and `.txt` files in it; the folder's name is the label.",
)
