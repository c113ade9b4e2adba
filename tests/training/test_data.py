"""Every data set's contract; CIFAR-10's layout and download (faults 42, 43); what is wrong with folders (fault 49)."""

import dataclasses
import hashlib
import http.server
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.data
from catalog import ROOT, KilnError
from training.data import Source, cifar10, folder
from training.data._download import Archive, fetch


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    from training.data import digits

    bunch, source = load_digits(), digits.read()
    assert sorted([*source.y_train, *source.y_test]) == sorted(bunch.target)
    theirs = {image.tobytes() for image in digits.enlarge(bunch.images * (255 / 16))}
    assert {image.tobytes() for image in [*source.x_train, *source.x_test]} == theirs


def test_digits_is_embedded_stratified_and_always_the_same():
    data = training.data.load("digits", validation=0.1)
    assert data.x_train.shape[1:] == (32, 32, 3) and data.x_train.dtype == np.uint8
    assert len(data.x_train) + len(data.x_val) + len(data.x_test) == 1797
    assert {int(n) for n in np.bincount(data.y_test)} <= {35, 36, 37}
    assert data.sha256 == "0ff10be3bd0c168c0a8e3a14ed2376f442908b811ec944c4f9bf5be5f9762da9"
    assert not data.x_train.flags.writeable


def test_the_validation_split_is_seeded_stratified_disjoint_and_does_not_move_the_hash():
    first, again, none = (training.data.load("digits", validation=share) for share in (0.2, 0.2, 0.0))
    assert np.array_equal(first.x_val, again.x_val) and len(none.x_val) == 0
    assert first.sha256 == none.sha256
    assert np.bincount(first.y_val).min() >= 27
    together = np.concatenate([first.x_train, first.x_val])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in none.x_train)


def test_a_plugin_that_breaks_its_contract_is_caught(monkeypatch):
    from training.data import digits

    good = digits.read()
    monkeypatch.setattr(digits, "read", lambda root: good._replace(y_train=good.y_train + 1))
    with pytest.raises(ValueError, match="labels are int64"):
        training.data.load("digits")


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def fake_batches() -> dict[str, bytes]:
    """Seven files like the official ones; every image's red plane holds its label, the green its file's number."""
    files = {"batches.meta.txt": b"airplane\n"}
    for number, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        records = np.zeros((10_000, 3073), np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        records[:, 1:1025] = records[:, :1]
        records[:, 1025:2049] = number
        files[name] = records.tobytes()
    return files


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("cifar")
    for name, content in fake_batches().items():
        (place / name).write_bytes(content)
    return place


def test_planes_become_pixels(batches, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", str(batches))
    source = cifar10.read()
    assert source.x_train.shape == (50_000, 32, 32, 3) and source.x_test.shape == (10_000, 32, 32, 3)
    assert (source.x_train[:, 5, 7, 0] == source.y_train).all()
    assert (source.x_train[[0, 10_000, 49_999], 0, 0, 1] == [0, 1, 4]).all() and (source.x_test[..., 1] == 5).all()
    assert (source.x_train[..., 2] == 0).all()


def test_a_wrong_folder_names_every_bad_file(batches, tmp_path, monkeypatch):
    for file in batches.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "data_batch_3.bin").write_bytes(b"short")
    (tmp_path / "test_batch.bin").write_bytes(b"\xff" * 30_730_000)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path))
    with pytest.raises(KilnError) as raised:
        training.data.load("cifar10")
    for said in ("data_batch_2.bin is missing", "data_batch_3.bin has 5 bytes", "test_batch.bin holds the label 255"):
        assert said in str(raised.value)


@pytest.mark.cifar10
@pytest.mark.skipif(not os.environ.get("CIFAR10_DIR"), reason="CIFAR10_DIR is not set")
def test_the_real_thing_has_the_published_means_and_counts():
    data = training.data.load("cifar10", validation=0.1)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (45_000, 5_000, 10_000)
    everything = np.concatenate([data.x_train, data.x_val]).mean(axis=(0, 1, 2)) / 255
    assert np.allclose(everything, [0.4914, 0.4822, 0.4465], atol=1e-4)
    assert (np.bincount(data.y_test) == 1000).all() and (np.bincount(data.y_val) == 500).all()


def pack(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


SMALL = [(entry("set/a.bin"), os.urandom(200_000)), (entry("set/b.bin"), b"b" * 100)]


class Server(http.server.ThreadingHTTPServer):
    """Serves one file with ranges; `breaks` connections end after `cut` bytes, `wrong` answers are altered."""

    content, breaks, cut, wrong = b"", 0, 50_000, 0
    ranges: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.server.content[begin:]
        if self.server.wrong > 0:
            self.server.wrong -= 1
            body = bytes(len(body))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks > 0:
            self.server.breaks -= 1
            body = body[: self.server.cut]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as made:
        made.content, made.ranges = pack(SMALL), []
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def archive(server: Server, **changes: object) -> Archive:
    made = Archive(
        url=f"http://127.0.0.1:{server.server_port}/set.tar.gz",
        size_bytes=len(server.content),
        sha256=hashlib.sha256(server.content).hexdigest(),
        folder="set",
        members=("a.bin", "b.bin"),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def visible(folder: Path) -> list[str]:
    """Names of what lies there, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.breaks = 2
    got = fetch(archive(server), tmp_path)
    assert (got / "a.bin").read_bytes() == SMALL[0][1]
    assert server.ranges == ["", "bytes=50000-", "bytes=100000-"]
    assert visible(tmp_path) == ["set", "set.tar.gz"]


def test_a_download_that_keeps_breaking_is_an_error_and_the_next_run_goes_on(server, tmp_path):
    server.breaks = 3
    with pytest.raises(KilnError, match=r"could not be downloaded .* what came is kept"):
        fetch(archive(server), tmp_path)
    assert (tmp_path / "set.tar.gz.part").stat().st_size == 150_000
    fetch(archive(server), tmp_path)
    assert server.ranges[-1] == "bytes=150000-"


def test_a_corrupt_download_is_started_over_once(server, tmp_path):
    server.wrong = 1
    assert (fetch(archive(server), tmp_path) / "b.bin").read_bytes() == b"b" * 100
    assert server.ranges == ["", ""]


def test_a_download_that_breaks_and_comes_corrupt_is_an_error_and_the_next_run_begins_anew(server, tmp_path):
    server.breaks, server.wrong = 1, 9
    with pytest.raises(KilnError, match=r"what came is not the file with sha256 .* put set\.tar\.gz"):
        fetch(archive(server), tmp_path)
    assert server.ranges == ["", "bytes=50000-", ""] and visible(tmp_path) == []
    server.wrong = 0
    assert fetch(archive(server), tmp_path).is_dir()


def test_two_processes_share_one_download(server, tmp_path):
    wanted = archive(server)
    script = (
        "import pathlib, sys\nfrom training.data._download import Archive, fetch\n"
        f"print(fetch({wanted!r}, pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=100)[0].strip() for one in both] == [str(tmp_path / "set")] * 2
    assert server.ranges == [""] and visible(tmp_path) == ["set", "set.tar.gz"]


def test_offline_says_what_to_put_where(server, tmp_path):
    gone = archive(server, url="http://127.0.0.1:9/set.tar.gz")
    with pytest.raises(KilnError) as raised:
        fetch(gone, tmp_path)
    assert f"put set.tar.gz (http://127.0.0.1:9/set.tar.gz, {gone.size_bytes:,} bytes) into {tmp_path}" in str(
        raised.value
    )


def test_an_archive_put_there_by_hand_is_taken_and_checked(server, tmp_path):
    (tmp_path / "set.tar.gz").write_bytes(server.content)
    assert (fetch(archive(server), tmp_path) / "a.bin").read_bytes() == SMALL[0][1]
    assert server.ranges == []
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "set.tar.gz").write_bytes(server.content[:-1])
    with pytest.raises(KilnError, match="remove it"):
        fetch(archive(server), tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        (entry("../evil.bin"), b"x"),
        (entry("/etc/evil.bin"), b"x"),
        (entry("set/../../evil.bin"), b"x"),
        (entry("set/c.bin"), b"x"),
        (entry("set/b.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (entry("set/b.bin", type=tarfile.LNKTYPE, linkname="set/a.bin"), b""),
    ],
    ids=lambda member: member[0].name,
)
def test_a_member_that_does_not_belong_stops_the_unpacking(server, tmp_path, member):
    server.content = pack([SMALL[0], member])
    with pytest.raises(KilnError, match="does not belong; nothing was unpacked"):
        fetch(archive(server), tmp_path / "cache")
    assert visible(tmp_path / "cache") == ["set.tar.gz"]
    assert not list(tmp_path.rglob("evil*"))


def test_an_archive_that_lacks_a_member_is_refused(server, tmp_path):
    server.content = pack(SMALL[:1])
    with pytest.raises(KilnError, match=r"lacks b\.bin"):
        fetch(archive(server), tmp_path)


def test_the_pinned_archive_is_the_official_one():
    assert cifar10.ARCHIVE.size_bytes == 170_052_171
    assert cifar10.ARCHIVE.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert set(cifar10.ARCHIVE.members) >= {*cifar10.TRAIN_FILES, cifar10.TEST_FILE}


# --- folder ----------------------------------------------------------------------------------------------------------


def paint(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB", colour: object = (10, 200, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path) -> Path:
    for split, count in (("train", 10), ("test", 3)):
        for number in range(count):
            paint(tmp_path / split / "cat" / f"{number}.png")
            paint(tmp_path / split / "dog" / f"{number}.webp", colour=(200, 0, 0))
    return tmp_path


def test_a_good_folder(pictures):
    data = training.data.load("folder", root=pictures, validation=0.2)
    assert data.classes == ["cat", "dog"] and data.info.root == str(pictures)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (16, 4, 6)
    assert data.x_train.shape[1:] == (10, 12, 3)
    assert (data.x_train[data.y_train == 0] == (10, 200, 30)).all()


def test_everything_wrong_is_said_at_once(pictures):
    paint(pictures / "train" / "cat" / "large.png", size=(50, 40))
    (pictures / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (pictures / "train" / "dog" / "notes.txt").write_text("x")
    (pictures / "train" / "bird").mkdir()
    (pictures / "test" / "dog").rename(pictures / "test" / "dgo")
    (pictures / "test" / "stray.png").write_bytes(b"")
    with pytest.raises(KilnError) as raised:
        training.data.load("folder", root=pictures)
    for said in (
        "sizes; 26 of 27 are 12x10",
        "train/cat/large.png is 50x40",
        "train/cat/broken.png is unreadable",
        "train/dog holds 1 other files (notes.txt)",
        "train/bird holds no image",
        "'dgo' is in test/ but not in train/; is it 'dog'?",
        "test/stray.png lies beside the class folders",
    ):
        assert said in str(raised.value)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def enormous(file: Path) -> None:
    """A PNG whose header says 60,000 x 60,000."""
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(("break_it", "said"), [
    (lambda root: (root / "test").rename(root / "tset"), "there is no folder test/"),
    (lambda root: [p.rename(root / p.name) for p in [root / "train" / "dog"]], "one class only (cat)"),
    (lambda root: list(map(emptied, [root / "train", root / "test"])), "train/ holds no class folder"),
    (lambda root: emptied(root / "test"), "test/ holds no class folder"),
    (lambda root: enormous(root / "train" / "cat" / "0.png"), "train/cat/0.png is unreadable: Image size (3600000000"),
])  # fmt: skip
def test_what_cannot_be_a_data_set(pictures, break_it, said):
    break_it(pictures)
    with pytest.raises(KilnError, match=said.replace("(", r"\(").replace(")", r"\)")):
        training.data.load("folder", root=pictures)


def test_without_a_root_it_says_how_to_give_one():
    with pytest.raises(KilnError, match="needs --root"):
        training.data.load("folder")


def test_every_mode_becomes_rgb_by_the_one_rule(tmp_path):
    grey16 = Image.fromarray(np.full((4, 4), 0x8040, np.uint16))
    grey16.save(tmp_path / "grey16.png")
    assert (folder.decode(tmp_path / "grey16.png") == 0x80).all()
    paint(tmp_path / "clear.png", mode="RGBA", colour=(0, 0, 0, 0))
    assert (folder.decode(tmp_path / "clear.png") == 255).all()
    paint(tmp_path / "grey.png", mode="L", colour=70)
    assert (folder.decode(tmp_path / "grey.png") == 70).all()
    turned = Image.new("RGB", (6, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert folder.decode(tmp_path / "turned.jpg").shape == (6, 4, 3)


def test_sources_are_named_tuples_in_published_order():
    assert Source._fields == ("x_train", "y_train", "x_test", "y_test", "classes")
