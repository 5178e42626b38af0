"""Indexes of folders and of vectors: what is in them, after updates, errors and kills."""

import concurrent.futures
import csv
import fcntl
import gc
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import killed
import numpy as np
import pytest
from conftest import write_pictures
from faults import index_content as content
from PIL import Image

from air_jax.data import decode_pool, decoding
from air_jax.index import build, index_writer, vector_files
from air_jax.index.image_index import ImageIndex
from air_jax.index.index_writer import Options
from air_jax.models import encode
from air_jax.run import trained_net
from air_jax.runtime import checksums

ROOT = Path(__file__).parents[2]


def make(folder, model, out, **options):
    return build.index_images(folder, model, out, Options(workers=1, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 40)
    return folder


@pytest.fixture(scope="module")
def made(folder, trained_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("indexes") / "index"
    make(folder, trained_run, out)
    return out


@pytest.fixture
def copied(folder, made, tmp_path) -> tuple[Path, Path]:
    """A folder and its index, to change. The index still knows the folder under its old name."""
    shutil.copytree(made, tmp_path / "index")
    pictures = tmp_path / "pictures"
    shutil.copytree(folder, pictures)
    database = build.Catalogue(tmp_path / "index")
    database.set_meta(made_from=database.meta["made_from"] | {"folder": str(pictures.resolve())})
    database.close()
    return pictures, tmp_path / "index"


def test_codes_are_those_of_the_net_and_details_those_of_the_files(folder, made, trained_run, mesh):
    index = ImageIndex(made)
    net = trained_net.of_run(trained_run, mesh).net
    images = index.images(index.ids.tolist())
    shape = tuple(index.about["model"]["image_shape"])
    assert shape == (32, 32, 3)
    pixels = []
    for image in images:
        with Image.open(folder / image.path) as picture:
            pixels.append(decoding.fit(picture.convert("RGB"), shape))
            assert (image.width, image.height) == picture.size
        assert image.bytes == (folder / image.path).stat().st_size
        with Image.open(io.BytesIO(index.thumbnail(image.id))) as small:
            assert small.size == (40, 30)
    expected = encode.encode(net, np.stack(pixels), mesh, 8, label=None)
    np.testing.assert_allclose(index.codes.exact, expected, rtol=1e-4, atol=1e-4)
    uploaded = index.encode(Image.open(folder / images[3].path).convert("RGB"))
    np.testing.assert_allclose(uploaded, index.codes.exact[3], rtol=1e-4, atol=1e-4)


def test_a_contact_sheet_shows_some_of_the_images_in_their_order(folder, made):
    index = ImageIndex(made)
    with Image.open(made / "contact_sheet.png") as sheet:
        sheet = sheet.convert("RGB")
    step = index_writer.SHEET_CELL + index_writer.SHEET_GAP
    assert sheet.size == (10 * step + 4, 4 * step + 4)  # 40 images
    for place in (0, 13, 39):
        content = index.thumbnail(int(index.ids[place]))
        with Image.open(io.BytesIO(content)) as small:
            left, top = place % 10 * step + 4, place // 10 * step + 4
            left, top = left + (72 - small.width) // 2, top + (72 - small.height) // 2
            shown = sheet.crop((left, top, left + small.width, top + small.height))
            # The sheet has 256 colours.
            apart = np.abs(np.asarray(shown, int) - np.asarray(small.convert("RGB"), int))
            other = np.abs(np.asarray(shown, int)[::-1] - np.asarray(small.convert("RGB"), int))
            assert apart.mean() < other.mean() / 2


def test_images_are_found_by_id_path_and_part_of_it(folder, made):
    index = ImageIndex(made)
    image = index.images([7])[0]
    assert index.find("7", 5)[0] == image
    assert index.find("#7", 1) == [image]
    assert index.find(image.path, 5)[0] == image
    assert image in index.find(image.path[2:].upper(), 5)
    assert index.find("{}", 5) == []
    assert index.find("nothing like it", 5) == []
    assert len(index.find("png", 6)) == 6
    assert index.file(7) == (folder / image.path).resolve()
    assert index.position(10**9) is None
    with pytest.raises(ValueError, match="no image 1000000000"):
        index.images([10**9])


def test_an_unchanged_folder_keeps_its_generation(copied, trained_run):
    pictures, out = copied
    before = content(out)
    found = make(pictures, trained_run, out)
    found = make(pictures, trained_run, out)
    assert (found["added"], found["unchanged"]) == (0, 40)
    again = make(pictures, trained_run, out)
    assert again["generation"] == found["generation"]
    assert {k: v[3:] for k, v in content(out).items()} == {k: v[3:] for k, v in before.items()}


def test_only_what_changed_is_done_and_what_is_gone_is_dropped(copied, trained_run, tmp_path):
    pictures, out = copied
    make(pictures, trained_run, out)
    ids = {image.path: image.id for image in ImageIndex(out).images(ImageIndex(out).ids.tolist())}
    (pictures / "0/000.png").unlink()
    (pictures / "1/001.png").rename(pictures / "1/moved.png")
    Image.new("RGB", (50, 50), "red").save(pictures / "2/002.png")
    os.utime(pictures / "0/003.png", ns=(1, 1))  # touched, content as before
    found = make(pictures, trained_run, out)
    assert (found["added"], found["unchanged"]) == (1, 37)
    make(pictures, trained_run, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")
    index = ImageIndex(out)
    after = {image.path: image.id for image in index.images(index.ids.tolist())}
    assert (found["moved"], found["dropped"]) == (1, 1)
    assert after["0/003.png"] == ids["0/003.png"]
    assert after["1/moved.png"] == ids["1/001.png"]
    assert after["2/002.png"] not in ids.values()
    assert len(list(out.glob("codes-*"))) == 1


def ids_of(out):
    index = ImageIndex(out)
    return {image.path: image.id for image in index.images(index.ids.tolist())}


def test_a_folder_that_is_away_for_one_indexing_keeps_its_images(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    before, held = ids_of(out), content(out)
    (pictures / "1").rename(pictures.parent / "away")
    with pytest.raises(ValueError, match="13 of the 40 images .* dropped: 13 not there now"):
        make(pictures, trained_run, out)
    assert (ids_of(out), content(out)) == (before, held)
    found = make(pictures, trained_run, out, drop_missing=True)
    assert (found["size"], found["dropped"]) == (27, 13)
    assert json.loads((out / "index.json").read_text())["dropped"] == 13
    (pictures.parent / "away").rename(pictures / "1")
    found = make(pictures, trained_run, out)
    assert (found["added"], found["dropped"]) == (13, 0)
    assert (ids_of(out), content(out)) == (before, held)


def test_a_renamed_folder_keeps_its_images_and_nothing_is_decoded(copied, trained_run, monkeypatch):
    pictures, out = copied
    make(pictures, trained_run, out)
    before = ids_of(out)
    (pictures / "1").rename(pictures / "ones")
    (pictures / "1").mkdir()
    monkeypatch.setattr(build.decode_pool, "decode", None)
    found = make(pictures, trained_run, out)
    assert (found["added"], found["moved"], found["dropped"]) == (0, 13, 0)
    assert ids_of(out) == {path.replace("1/", "ones/"): image for path, image in before.items()}
    index = ImageIndex(out)
    assert all(index.file(image) and index.thumbnail(image) for image in index.ids.tolist())


def test_files_that_change_places_take_their_images_with_them(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    before = ids_of(out)
    one, other = pictures / "0/000.png", pictures / "1/001.png"
    one.rename(pictures / "x")
    other.rename(one)
    (pictures / "x").rename(other)
    make(pictures, trained_run, out, rehash=True)
    swapped = {"0/000.png": before["1/001.png"], "1/001.png": before["0/000.png"]}
    assert ids_of(out) == before | swapped


def test_equal_files_keep_their_own_images_by_path_then_by_name(copied, trained_run):
    pictures, out = copied
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(pictures / "0/000.png", pictures / name)
    make(pictures, trained_run, out)
    before = ids_of(out)
    for name in ("a.png", "b.png", "c.png"):
        (pictures / name).rename(pictures.parent / name)
    make(pictures, trained_run, out)
    (pictures / "sub").mkdir()
    (pictures.parent / "b.png").rename(pictures / "b.png")
    (pictures.parent / "c.png").rename(pictures / "sub/c.png")
    (pictures.parent / "a.png").rename(pictures / "0.png")
    make(pictures, trained_run, out)
    after = ids_of(out)
    assert [after[name] for name in ("0.png", "b.png", "sub/c.png")] == [
        before[name] for name in ("a.png", "b.png", "c.png")
    ]


def test_an_image_that_is_changed_and_put_back_gets_its_id_back(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    before, path = ids_of(out), pictures / "0/000.png"
    kept = path.read_bytes()
    for other in (b"no picture", (pictures / "0/003.png").read_bytes()):
        path.write_bytes(other)
        found = make(pictures, trained_run, out)
        assert ids_of(out).get("0/000.png") != before["0/000.png"]
        assert found["dropped"] == (other == b"no picture")
        path.write_bytes(kept)
        make(pictures, trained_run, out)
        assert ids_of(out) == before


def test_a_folder_that_was_moved_keeps_its_images(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    before = ids_of(out)
    moved = pictures.rename(pictures.parent / "moved")
    assert make(moved, trained_run, out)["unchanged"] == 40
    assert ids_of(out) == before
    assert ImageIndex(out).file(1).is_relative_to(moved)
    pictures.mkdir()
    with pytest.raises(ValueError, match="folder="):
        make(pictures, trained_run, out)


def test_what_cannot_be_looked_at_stays_in_the_index(copied, trained_run, unprivileged):
    pictures, out = copied
    make(pictures, trained_run, out)
    before, held = ids_of(out), content(out)
    closed = [pictures / "1", pictures / "0/000.png"]
    for path in closed:
        path.chmod(0)
    command = [*unprivileged, sys.executable, "-m", "air_jax.index", f"--images={pictures}"]
    command += [f"--model={trained_run}", f"--out={out}", "--workers=1", "--rehash"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "14 kept though they cannot be looked at" in done.stdout
    assert (ids_of(out), content(out)) == (before, held)
    for path in closed:
        path.chmod(0o700)
    assert make(pictures, trained_run, out)["unseen"] == 0
    assert (ids_of(out), content(out)) == (before, held)


def test_excluding_a_large_part_has_to_be_asked_for(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    with pytest.raises(ValueError, match="13 left out by --exclude"):
        make(pictures, trained_run, out, exclude=("1",))
    assert make(pictures, trained_run, out, exclude=("1",), drop_missing=True)["size"] == 27


def test_what_is_left_out_is_counted_and_named(trained_run, tmp_path, capsys):
    folder = tmp_path / "pictures"
    write_pictures(folder, 3)
    (folder / "IMG_1.heic").write_bytes(b"x")
    (folder / "@eaDir").mkdir()
    (folder / "album").symlink_to(tmp_path)
    make(folder, trained_run, folder / "an index")
    found = make(folder, trained_run, tmp_path / "index")
    assert (found["size"], found["unread_formats"]) == (3, {".heic": 1})
    named = {key: found[key] for key in ("unread_files", "links", "excluded", "indexes")}
    assert list(named.values()) == [["IMG_1.heic"], ["album"], ["@eaDir"], ["an index"]]
    said = capsys.readouterr().out
    for text in ("1 links to folders", "'album'", "1 .heic files", "'@eaDir'", "'an index'"):
        assert text in said


def test_rehash_finds_a_change_that_size_and_time_do_not_tell(copied, trained_run):
    pictures, out = copied
    make(pictures, trained_run, out)
    path = pictures / "0/000.png"
    status, before = path.stat(), path.read_bytes()
    other = (pictures / "0/003.png").read_bytes()
    path.write_bytes((other + bytes(len(before)))[: len(before)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert make(pictures, trained_run, out)["added"] == 0
    assert make(pictures, trained_run, out, rehash=True)["added"] == 1


def test_everything_good_of_a_hostile_folder_is_indexed_and_everything_bad_listed(
    trained_run, tmp_path
):
    folder = tmp_path / "hostile"
    good = set(write_pictures(folder, 4))
    plain = (folder / "0/000.png").read_bytes()
    for name in (b"<script>alert(1)<.png", b'it\'s "x"\n.png', b"\xff\xfe.png"):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(plain)
        good.add(os.fsdecode(name))
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    good.add("moving.gif")
    bad = {
        "cut.png": plain[:-500],
        "text.jpg": b"no picture at all",
        "empty.png": b"",
        "huge.png": plain[:16] + b"\0\0\x75\x30" * 2 + plain[24:],
        "tail.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    found = make(folder, trained_run, tmp_path / "index")
    assert set(content(tmp_path / "index")) == good
    listed = {one["path"]: one["reason"] for one in found["broken"]}
    assert set(listed) == {*bad, "loop.png", "pipe.png"}
    assert all(listed.values())
    assert json.loads((tmp_path / "index/index.json").read_text()) == found
    # They are not tried again, and still listed.
    again = make(folder, trained_run, tmp_path / "index")
    assert again["broken"] == found["broken"]
    (folder / "cut.png").write_bytes(plain)
    assert make(folder, trained_run, tmp_path / "index")["added"] == 1


def test_what_may_not_be_read_is_listed_and_taken_in_once_it_may(
    trained_run, tmp_path, unprivileged
):
    folder, out = tmp_path / "pictures", tmp_path / "index"
    write_pictures(folder, 9)
    closed = [folder / "1", folder / "0/000.png"]
    for path in closed:
        path.chmod(0)
    command = [*unprivileged, sys.executable, "-m", "air_jax.index", f"--images={folder}"]
    command += [f"--model={trained_run}", f"--out={out}", "--workers=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "index.json").read_text())["broken"] == [
        {"path": "0/000.png", "reason": "Permission denied"},
        {"path": "1", "reason": "the folder cannot be read: Permission denied"},
    ]
    assert len(content(out)) == 5
    for path in closed:
        path.chmod(0o700)  # which leaves its size and time
    assert make(folder, trained_run, out)["broken"] == []
    assert len(content(out)) == 9


def test_a_file_that_kills_the_decoder_is_listed_and_the_others_are_decoded(tmp_path, monkeypatch):
    write_pictures(tmp_path, 40)
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os\nfrom air_jax.data import decoding\n"
        "def decode_file(folder, path, *others):\n"
        f"    if path == {paths[5]!r}: os._exit(9)\n"
        "    return decoding.decode_file(folder, path, *others)\n"
    )
    script = (
        "import killer\nfrom air_jax.data import decode_pool\n"
        "decode_pool.decode_file = killer.decode_file\n"
        "from air_jax.data.decoding import Limits\n"
        "if __name__ == '__main__':\n"
        f"    task = decode_pool.Task({str(tmp_path)!r}, None, 'crop', Limits())\n"
        f"    for one in decode_pool.decode({paths!r}, task, 2): print(one.path, one.error)\n"
    )
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(said) == set(paths)
    assert [path for path in paths if said[path] != "None"] == [paths[5]]
    assert said[paths[5]] == "the decoder crashed on it"


def test_another_net_folder_or_fit_is_refused_before_anything_is_done(
    folder, made, trained_run, tmp_path
):
    before = content(made)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="folder="):
        make(tmp_path / "other", trained_run, made)
    with pytest.raises(ValueError, match="fit='crop', asked for is 'stretch'"):
        make(folder, trained_run, made, fit="stretch")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        make(tmp_path / "nothing", trained_run, made)
    with pytest.raises(FileNotFoundError, match="work directory"):
        make(folder, tmp_path, made)
    catalogue = build.Catalogue(made)
    kept = catalogue.meta["made_from"]
    catalogue.set_meta(made_from=kept | {"codes": "model:another"})
    with pytest.raises(ValueError, match="codes='model:another', asked for is 'model:"):
        make(folder, trained_run, made)
    catalogue.set_meta(made_from=kept)
    catalogue.close()
    assert content(made) == before


def test_two_indexers_at_once_are_refused(folder, made, trained_run):
    with (made / index_writer.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is indexing"):
            make(folder, trained_run, made)


def test_a_folder_without_a_readable_image_is_an_error(trained_run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="no image can be read in it; 1 files are broken"):
        make(tmp_path, trained_run, tmp_path / "index")


@pytest.mark.parametrize("damage", ["catalogue.sqlite", "net.npz", "codes"])
def test_a_damaged_index_is_an_error_that_names_the_file(copied, damage):
    _, out = copied
    path = next(out.glob("codes-*/codes.npy")) if damage == "codes" else out / damage
    path.write_bytes(path.read_bytes()[:-200] if damage == "codes" else b"nothing" * 100)
    with pytest.raises(ValueError, match=path.name):
        ImageIndex(out).encode(Image.new("RGB", (32, 32)))


@pytest.mark.parametrize("damage", ["net.npz", "codes", "checksums.json"])
def test_what_the_indexer_can_make_again_it_mends(copied, trained_run, damage):
    pictures, out = copied
    before = content(out)
    path = next(out.glob("codes-*/codes.npy")) if damage == "codes" else out / damage
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    make(pictures, trained_run, out)
    assert content(out) == before
    ImageIndex(out).encode(Image.new("RGB", (32, 32)))


def test_a_flipped_byte_of_the_codes_is_found_when_the_index_is_opened(copied):
    _, out = copied
    path = next(out.glob("codes-*/codes.npy"))
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"index is damaged: codes-1/codes.npy is damaged"):
        ImageIndex(out)


def test_an_index_with_checksums_of_an_earlier_version_is_opened_and_brought_up_to_date(
    copied, trained_run
):
    """Earlier versions kept a checksum of the catalogue and of the net too."""
    pictures, out = copied
    generation = make(pictures, trained_run, out)["generation"]
    held = json.loads((out / "checksums.json").read_text())
    others = {"catalogue.sqlite": "0" * 64, "net.npz": "0" * 64}
    (out / "checksums.json").write_text(json.dumps(held | others))
    before = content(out)
    assert make(pictures, trained_run, out)["generation"] == generation
    assert content(out) == before


def test_no_live_database_is_opened_but_by_sqlite(copied, trained_run):
    """Closing a database's file anywhere in a process drops the locks that SQLite has on it."""
    pictures, out = copied
    opened, watching = [], True

    def watch(event, arguments):
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)  # for good
    make(pictures, trained_run, out)
    ImageIndex(out)
    watching = False
    assert any("index.json" in path for path in opened)
    assert not [path for path in opened if ".sqlite" in path]


def test_an_indexer_that_ends_while_an_index_is_opened_is_no_damage(
    copied, trained_run, monkeypatch
):
    pictures, out = copied
    make(pictures, trained_run, out)
    damage, times = checksums.damage, []

    def slow(*arguments, **named):
        times.append(1)
        if len(times) == 1:
            monkeypatch.setattr(checksums, "damage", damage)
            Image.new("RGB", (50, 50), "red").save(pictures / "new.png")
            make(pictures, trained_run, out)
            monkeypatch.setattr(checksums, "damage", slow)
        return damage(*arguments, **named)

    monkeypatch.setattr(checksums, "damage", slow)
    index = ImageIndex(out)
    assert len(index.ids) == len(index.codes) == 41
    assert len(times) == 2


def test_an_index_that_is_no_longer_used_leaves_no_file_open(made):
    def opened() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(str(made)) for link in links)

    before = opened()
    gc.disable()
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                index = ImageIndex(made)
                together = threading.Barrier(4)

                def look(image, index=index, together=together):
                    together.wait()
                    return index.thumbnail(image), index.find("png", 3)

                assert all(list(pool.map(look, range(1, 5))))
                assert opened() > before
                del index, look
        assert opened() == before
    finally:
        gc.enable()


def test_a_read_only_folder_is_not_called_damaged(copied, trained_run, unprivileged):
    pictures, out = copied
    program = (
        "import sys, pathlib; from air_jax.index.image_index import ImageIndex; "
        "ImageIndex(pathlib.Path(sys.argv[1]))"
    )
    opening = [*unprivileged, sys.executable, "-c", program, str(out)]
    indexing = [*unprivileged, sys.executable, "-m", "air_jax.index", f"--images={pictures}"]
    indexing += [f"--model={trained_run}", f"--out={out}", "--workers=1"]
    files = [path for path in out.iterdir() if path.is_file()]
    for path in (*files, out):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        for command in (opening, indexing):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode != 0
            assert "damaged" not in done.stderr
            assert "catalogue.sqlite cannot be used" in done.stderr or "/lock'" in done.stderr
    finally:
        for path in (out, *files):
            path.chmod(0o700)


def test_what_is_no_index_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is no index"):
        ImageIndex(tmp_path)
    build.Catalogue(tmp_path).close()
    with pytest.raises(FileNotFoundError, match="it continues"):
        ImageIndex(tmp_path)


@pytest.fixture(scope="module")
def unpublished(trained_run, tmp_path_factory) -> tuple[Path, Path, dict, dict]:
    """A changed folder; its index, all encoded but not published; what that held, and will hold."""
    root = tmp_path_factory.mktemp("unpublished")
    folder, out = root / "pictures", root / "index"
    write_pictures(folder, 12)
    make(folder, trained_run, out)
    before = content(out)
    (folder / "0/000.png").unlink()
    (folder / "1/001.png").rename(folder / "1/moved.png")
    Image.new("RGB", (50, 50), "red").save(folder / "2/002.png")

    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_writer, "is_published", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(folder, trained_run, out)
    assert content(out) == before
    make(folder, trained_run, root / "undisturbed")
    return folder, out, before, content(root / "undisturbed")


@pytest.mark.parametrize("step", killed.STEPS)
def test_killed_at_any_step_of_publishing_the_next_run_ends_with_the_same_index(
    unpublished, trained_run, tmp_path, step
):
    folder, template, before, after = unpublished
    out = tmp_path / "index"
    shutil.copytree(template, out)
    forking = multiprocessing.get_context("forkserver")  # that imports once for all steps
    forking.set_forkserver_preload(["killed"])
    child = forking.Process(target=killed.index_until, args=(step, folder, trained_run, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert content(out) in (before, after)  # whole at every moment, whichever of the two
    make(folder, trained_run, out)
    assert content(out) == after
    assert [path.name for path in out.glob("*codes*")] == ["codes-2"]
    assert json.loads((out / "index.json").read_text())["size"] == 11


@pytest.fixture
def vectors(tmp_path) -> tuple[Path, np.ndarray]:
    codes = np.random.default_rng(0).normal(size=(9, 5))
    np.save(tmp_path / "codes.npy", codes)
    return tmp_path / "codes.npy", codes.astype(np.float32)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_vectors_keep_their_rows_with_metadata_and_thumbnails(vectors, folder, tmp_path):
    path, codes = vectors
    names = [f"{n % 3}/{n:03d}.png" for n in range(7)] + ["../secret.png", "nothing.png"]
    rows = [{"path": name, "title": f"=no {n}\nß"} for n, name in enumerate(names)]
    table = write_csv(tmp_path / "rows.csv", rows)
    out = tmp_path / "index"
    found = vector_files.index_vectors(path, table, folder, out, Options())
    index = ImageIndex(out)
    np.testing.assert_allclose(index.codes.get(np.arange(9)), codes, rtol=1e-6, atol=1e-6)
    assert index.ids.tolist() == list(range(1, 10))
    images = index.images([4, 8])
    assert (images[0].path, images[0].metadata) == (names[3], {"title": "=no 3\nß"})
    assert (images[0].width, images[1].width) == (40, None)
    assert index.thumbnail(4) is not None
    assert index.thumbnail(8) is None
    assert {one["path"] for one in found["broken"]} == {"../secret.png", "nothing.png"}
    assert [image.id for image in index.find("no 3", 5)] == [4]
    again = vector_files.index_vectors(path, table, folder, out, Options())
    assert again["generation"] == found["generation"]
    np.save(path, codes[:, ::-1])
    changed = vector_files.index_vectors(path, table, folder, out, Options())
    assert changed["generation"] == found["generation"] + 1
    found = ImageIndex(out).codes.get(np.arange(9))
    np.testing.assert_allclose(found, codes[:, ::-1], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="no net"):
        index.encode(Image.new("RGB", (8, 8)))


def test_pictures_of_vectors_are_looked_for_again_and_replaced_with_their_files(vectors, tmp_path):
    path, _ = vectors
    pictures, out = tmp_path / "pictures", tmp_path / "index"
    write_pictures(pictures, 9)
    names = [f"{n % 3}/{n:03d}.png" for n in range(9)]
    table = write_csv(tmp_path / "rows.csv", [{"path": name} for name in names])
    for name in names[:2]:
        (pictures / name).rename(tmp_path / Path(name).name)

    def made(**options):
        found = vector_files.index_vectors(path, table, pictures, out, Options(**options))
        index = ImageIndex(out)
        thumbnails = [index.thumbnail(image) for image in range(1, 10)]
        return {one["path"] for one in found["broken"]}, thumbnails

    broken, before = made()
    assert (broken, before[:2]) == (set(names[:2]), [None, None])
    (tmp_path / "000.png").rename(pictures / names[0])
    broken, now = made()
    assert broken == {names[1]}
    assert now[0] is not None
    assert now[1:] == before[1:]
    # Replaced: the time tells, or with --rehash the content.
    Image.new("RGB", (50, 50), "red").save(pictures / names[2])
    other = made()[1]
    assert other[2] not in (None, now[2])
    assert [*other[:2], *other[3:]] == [*now[:2], *now[3:]]
    status = (pictures / names[3]).stat()
    Image.new("RGB", (50, 50), "red").save(pictures / names[3])
    with (pictures / names[3]).open("r+b") as file:
        file.truncate(status.st_size)
    os.utime(pictures / names[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert made()[1] == other
    assert made(rehash=True)[1][3] == other[2]
    # Spoilt: a thumbnail of what is not there any more would be wrong. Away: it would not.
    (pictures / names[4]).write_bytes(b"no picture")
    (pictures / names[5]).unlink()
    broken, last = made()
    assert broken == {names[1], names[4], names[5]}
    assert last[4] is None
    assert last[5] == other[5]
    assert made() == (broken, last)


def test_vectors_none_of_whose_pictures_is_there_are_refused(vectors, tmp_path):
    table = write_csv(tmp_path / "rows.csv", [{"path": "nothing.png"}] * 9)
    with pytest.raises(ValueError, match="1 are named, the first of them 'nothing.png'"):
        vector_files.index_vectors(vectors[0], table, tmp_path, tmp_path / "index", Options())
    assert not (tmp_path / "index").exists()


def test_vectors_without_metadata_are_known_by_their_rows(vectors, tmp_path):
    vector_files.index_vectors(vectors[0], None, None, tmp_path / "index", Options(storage="int8"))
    index = ImageIndex(tmp_path / "index")
    assert index.images([3])[0].label == "row 2"
    assert index.codes.storage == "int8"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("caption", []),  # the name of a column
        ('": "', []),
        ("STRASSE", [1]),
        ("straße", [1]),
        ("CAFE\u0301", [2]),
        ("caf\u00e9", [2]),
        ("ÀÉ", [3]),
        ("two\nlines", [4]),
        ('a "b', [4]),
        ("3", [3]),
    ],
)
def test_texts_are_found_in_values_only_without_case_and_however_accents_are_written(
    vectors, tmp_path, text, rows
):
    captions = ["Straße", "Cafe\u0301", "A\u0300\u00c9", 'two\nlines: a "b"', *"....."]
    table = write_csv(tmp_path / "rows.csv", [{"caption": caption} for caption in captions])
    vector_files.index_vectors(vectors[0], table, None, tmp_path / "index", Options())
    assert [image.id for image in ImageIndex(tmp_path / "index").find(text, 20)] == rows


def test_vectors_that_cannot_be_meant_are_refused(vectors, tmp_path):
    path, _ = vectors
    out = tmp_path / "index"
    table = write_csv(tmp_path / "rows.csv", [{"a": "1"}] * 8)
    with pytest.raises(ValueError, match="8 rows for 9 vectors"):
        vector_files.index_vectors(path, table, None, out, Options())
    table.write_text("a\n" + "1,2\n" * 9)
    with pytest.raises(ValueError, match="row 1 has more cells"):
        vector_files.index_vectors(path, table, None, out, Options())
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="codes.npy cannot be read"):
        vector_files.index_vectors(path, None, None, out, Options())
    for bad in (np.zeros((3, 2), int), np.zeros(3), np.zeros((0, 2))):
        np.save(path, bad)
        with pytest.raises(ValueError, match="expected"):
            vector_files.index_vectors(path, None, None, out, Options())
    with pytest.raises(FileNotFoundError, match="no such file"):
        vector_files.index_vectors(tmp_path / "x.npy", None, None, out, Options())
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images=x"], "expected --model=WORKDIR with --images=FOLDER, or --vectors"),
        (["--model=x"], "--images=FOLDER is missing"),
        (["--model=x", "--images=y", "--metadata=z"], "--metadata is of vectors"),
        (["--vectors=x", "--images=y"], "needs --metadata"),
        (["--vectors=nothing.npy"], "--vectors=nothing.npy: there is no such file"),
    ],
)
def test_flags_that_do_not_fit_are_one_clear_error(tmp_path, flags, message):
    command = [sys.executable, "-m", "air_jax.index", f"--out={tmp_path / 'index'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_decoding_keeps_the_order_of_files(tmp_path):
    write_pictures(tmp_path, 90)
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    task = decode_pool.Task(str(tmp_path), None, "crop", decoding.Limits())
    assert [one.path for one in decode_pool.decode(paths, task, 2)] == paths


def test_of_another_net_the_runs_and_what_differs_are_named(copied, trained_run, tmp_path):
    pictures, out = copied
    other = tmp_path / "other"
    shutil.copytree(trained_run, other)
    for name, section, key, value in (
        ("config.json", "config", "seed", 7),
        ("model.json", "mean", 0, 0.25),
    ):
        changed = json.loads((other / name).read_text())
        changed[section][key] = value
        del changed["checksum"]
        (other / name).write_text(json.dumps(changed))
    message = "of another net, of the run tiny; --model is the run other .seed was 0, now 7"
    with pytest.raises(ValueError, match=message):
        make(pictures, other, out)
