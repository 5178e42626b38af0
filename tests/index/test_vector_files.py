"""Files of vectors and tables of their images, as programs of all kinds write them."""

import numpy as np
import pytest

from air_jax.index.vector_files import read_metadata, read_vectors

ROWS = [("a.png", "x"), ("b.png", "y, z")]
EXPECTED = [("a.png", {"label": "x"}), ("b.png", {"label": "y, z"})]


def read(path, text, with_images=True, count=2, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return read_metadata(path, count, with_images=with_images)


@pytest.mark.parametrize(
    "text",
    [
        'path,label\na.png,x\nb.png,"y, z"\n',
        'path,label\r\na.png,x\r\n\r\nb.png,"y, z"',
        "path;label\na.png;x\nb.png;y, z\n",
        "sep=;\r\npath;label\r\na.png;x\r\nb.png;y, z\r\n",
        "path\tlabel\na.png\tx\nb.png\ty, z\n",
        "path|label\na.png|x\nb.png|y, z\n",
        'label, path\nx, a.png\n"y, z", b.png\n',
        ',path,label\n0,a.png,x\n1,b.png,"y, z"\n',  # pandas
        'path,label,\na.png,x,\nb.png,"y, z",\n',
        'path,label\na.png,x,\nb.png,"y, z",\n',
        'Path,label\na.png,x\nb.png,"y, z"\n',
        'FileName,label\na.png,x\nb.png,"y, z"\n',
        'file,label\na.png,x\nb.png,"y, z"\n',
        'file path,label\na.png,x\nb.png,"y, z"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_read_as_they_are_meant(tmp_path, text, encoding):
    assert read(tmp_path / "m.csv", text, encoding=encoding) == EXPECTED


def test_columns_keep_names_of_their_own(tmp_path):
    found = read(tmp_path / "m.csv", "path,a,a,a 2,,A\n1,2,3,4,5,6\n7,8,9,10,11,12\n")
    assert found[0].metadata == {"a": "2", "a 3": "3", "a 2": "4", "column 5": "5", "A": "6"}


def test_a_column_called_path_goes_before_others_that_may_be_meant(tmp_path):
    found = read(tmp_path / "m.csv", "file,path,Path\n1,2,3\n4,5,6\n")
    assert found[0] == ("2", {"file": "1", "Path": "3"})


def test_images_without_a_column_for_them_are_an_error_that_names_the_columns(tmp_path):
    path = tmp_path / "m.csv"
    with pytest.raises(ValueError, match="m.csv.*found 'picture', 'label'; expected a column 'pa"):
        read(path, "picture,label\na,b\nc,d\n")
    with pytest.raises(ValueError, match="2 columns may name .* 'file', 'filename'; expected one"):
        read(path, "file,filename\na,b\nc,d\n")
    assert read(path, "picture\na\nb\n", with_images=False)[0] == ("", {"picture": "a"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a.png,x\nb.png,y\n", "1 rows for 2 vectors; its first line, 'a.png, x', names"),
        (b"", "0 rows for 2"),
        (b"path,label\na,b,c\nd,e\n", "row 1 has more cells"),
        (b'path\n"a\nb\n', "cannot be read as CSV"),
        (b"path\na\n\xff\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path, content, reason):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_metadata(tmp_path / "m.csv", 2, with_images=False)


def test_what_is_no_npy_file_is_told_what_it_is(tmp_path):
    np.savez(tmp_path / "v.npz", codes=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"v.npz holds several arrays \(codes\): it is an .npz"):
        read_vectors(tmp_path / "v.npz")
    with pytest.raises(ValueError, match="cannot be read as an .npy file: Is a directory"):
        read_vectors(tmp_path)
