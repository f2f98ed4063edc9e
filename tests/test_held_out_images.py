"""Which images are held out stays what it was; layouts whose test images would be trained on."""

import hashlib
import zipfile

import numpy as np
import pytest
from faults import NETWORK
from test_folder import fill, opened, picture, put

import train
from data import DataError, Loading, report
from data.datasets import holds_images
from utils import checkpoint

FLAGS = [*NETWORK, "--dataset", "folder", "--image-size", "14", "--max-steps", "2"]


def recorded(train_set, test_set) -> Loading:
    """As a checkpoint of a run on these sets has it."""
    known = {"digests": train_set.digests, "held_out": test_set.digests}
    return Loading(fingerprint=train_set.fingerprint, **known)


@pytest.mark.parametrize("layout", [("cat", "dog"), ("train/cat", "train/dog", "test/cat")])
def test_new_images_are_left_out_and_gone_ones_are_missed(tmp_path, layout):
    root = fill(tmp_path, *layout, each=12)
    before = opened(root)
    loading = recorded(*before)
    held_out = {bytes(row) for row in before[1].digests.tolist()}
    put(root / layout[-1] / "new.png", 999)
    sets = opened(root, loading)
    assert sets[1].digests.equal(before[1].digests)
    assert "1 images are new since the start of the run: left out" in report(*sets)
    assert len(opened(root)[1]) + len(opened(root)[0]) == 12 * len(layout) + 1  # control
    (root / layout[-1] / "new.png").unlink()
    assert opened(root, loading)[1].digests.equal(before[1].digests)

    for path in sorted(root.rglob("*.png")):
        if hashlib.sha256(path.read_bytes()).digest() in held_out:
            put(path, 777)  # another image in the place of one that is held out
            break
    with pytest.raises(DataError, match="held-out images are gone or changed since the start"):
        opened(root, loading)
    lines = report(*opened(root, loading, skip_damaged=True))
    assert any("held-out images are gone or changed" in line for line in lines)


def test_a_checkpoint_knows_the_held_out_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = fill(tmp_path / "pets", "cat", "dog", each=12)
    assert train.main([*FLAGS, "--data-root", str(root)]) == 0
    content = checkpoint.load(checkpoint.find("latest", tmp_path / "Logs_Checkpoints"))
    assert len(content["data"]["held_out"]) == 24 - len(content["data"]["digests"])
    put(root / "dog" / "new.png", 999)
    assert train.main(["--resume", "latest", "--device", "cpu", "--max-steps", "3"]) == 0
    assert "1 images are new since the start of the run" in capsys.readouterr().out


def test_domains_of_images_are_refused_and_parts_in_class_folders_are_sets(tmp_path):
    domains = fill(tmp_path / "gan", "trainA", "trainB", "testA", "testB", each=3)
    with pytest.raises(DataError, match="arrange them as train/A"):
        opened(domains)
    inside = fill(tmp_path / "in", "cat/train", "cat/test", "dog/train", "dog/val", each=5)
    train_set, test_set = opened(inside)
    assert (len(train_set), len(test_set)) == (10, 10)
    assert train_set.class_names == ("cat", "dog")
    plain = fill(tmp_path / "plain", "cat/a", "cat/b", "dog/a", "dog/b", each=5)  # control
    assert len(opened(plain)[0]) > 10


def test_a_link_to_a_folder_around_the_root_is_not_followed(tmp_path):
    root = fill(tmp_path / "root", "", each=3)
    fill(tmp_path / "other", "", each=1)
    (root / "up").symlink_to("..")
    assert len(opened(root)[0]) == 3


def test_copies_in_a_test_folder_are_told(tmp_path):
    root = fill(tmp_path, "train", "test", each=4)
    (root / "test" / "000.png").write_bytes((root / "train" / "001.png").read_bytes())
    lines = report(*opened(root))
    assert any(line.startswith("1 held-out images are trained on, too") for line in lines)


def test_class_folders_that_are_printed_alike_are_refused(tmp_path):
    root = fill(tmp_path, "caf\u00e9", "cafe\u0301", "other", each=2)
    with pytest.raises(DataError, match="several class folders are called"):
        opened(root)


def test_arrays_under_other_names_are_held_out_or_told(tmp_path):
    images = np.stack([picture(n) for n in range(30)])
    np.savez(tmp_path / "a.npz", x_train=images[:20], y_train=np.arange(20) % 2,
             X_val=images[20:], y_val=np.arange(10) % 2, names=np.arange(3))  # fmt: skip
    train_set, test_set = opened(tmp_path / "a.npz")
    assert (len(train_set), len(test_set)) == (20, 10)
    assert any("array of another name (names)" in line for line in report(train_set, test_set))


def test_members_of_a_zip_are_normalized_and_links_are_no_images(tmp_path):
    fill(tmp_path / "in", "cat", "dog", each=2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for folder, prefix in (("cat", "./"), ("dog", "")):
            for path in (tmp_path / "in" / folder).iterdir():
                archive.write(path, f"{prefix}{folder}/{path.name}")
        link = zipfile.ZipInfo("dog/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "000.png")
        archive.write(path, "../outside.png")
    train_set, test_set = opened(tmp_path / "a.zip")
    assert train_set.class_names == ("cat", "dog")
    assert len(train_set) + len(test_set) == 4
    line = next(line for line in report(train_set, test_set) if line.startswith("left out"))
    assert "1 not regular files" in line
    assert "1 outside the archive" in line


def test_images_are_seen_whatever_they_are_called(tmp_path):
    single = put(tmp_path / "one" / "a.png", 1)
    assert holds_images(str(single))
    bare = tmp_path / "bare" / "picture"
    bare.parent.mkdir()
    bare.write_bytes(single.read_bytes())
    assert holds_images(str(bare.parent))
    boxed = tmp_path / "boxed"
    boxed.mkdir()
    np.savez(boxed / "a.npz", images=np.zeros((1, 2, 2), np.uint8))
    assert holds_images(str(boxed))
    with pytest.raises(DataError, match=r"for those in a\.npz make it the --data-root"):
        opened(boxed)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes").write_text("nothing")
    assert not holds_images(str(tmp_path / "texts"))  # control


def test_a_background_must_be_opaque(tmp_path):
    with pytest.raises(DataError, match="must be opaque"):
        opened(fill(tmp_path, "", each=1), background="#ff000000")
