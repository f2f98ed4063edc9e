"""Which images are held out stays what it was; layouts whose test images would be trained on."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
from faults import NETWORK
from test_folder import fill, opened, picture, put

import train
from data import DataError, DataOptions, Loading, load_splits, report
from data.datasets import holds_images
from training import setup
from utils import checkpoint

FLAGS = [*NETWORK, "--dataset", "folder", "--image-size", "14", "--max-steps", "2"]


def stored(train_set, test_set) -> Loading:
    """As a checkpoint of a run on these sets has it."""
    known = setup.data_entry(train_set, test_set)
    return Loading.of(known, fingerprint=train_set.fingerprint)


def resumed(root, loading: Loading, **options):
    """The sets as a run that is resumed opens them."""
    return load_splits(DataOptions("folder", str(root), **options), loading.fingerprint, loading)


@pytest.mark.parametrize("layout", [("cat", "dog"), ("train/cat", "train/dog", "test/cat")])
def test_new_images_are_left_out_and_gone_ones_are_missed(tmp_path, layout):
    root = fill(tmp_path, *layout, each=12)
    before = opened(root)
    loading = stored(*before)
    held_out = {bytes(row) for row in before[1].digests.tolist()}
    put(root / layout[-1] / "new.png", 999)
    sets = opened(root, loading)
    assert sets[1].digests.equal(before[1].digests)
    assert "1 image is new since the start of the run: left out" in report(*sets)
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


@pytest.mark.parametrize("to", ["cat/000 (1).png", "dog/a copy.png"])
def test_copies_that_are_new_are_left_out_too(tmp_path, to):
    """In the class before that of the image, or in its own; of those trained on and held out."""
    root = fill(tmp_path, "cat", "dog", each=12)
    before = opened(root)
    loading = stored(*before)
    for n, part in enumerate(before):
        digests = {bytes(row) for row in part.digests.tolist()}
        dogs = sorted((root / "dog").glob("*.png"))
        path = next(p for p in dogs if hashlib.sha256(p.read_bytes()).digest() in digests)
        shutil.copy(path, (root / to).with_stem(f"{n}"))
    sets = opened(root, loading)
    assert sets[0].fingerprint == before[0].fingerprint
    assert sets[1].digests.sort(0).values.equal(before[1].digests.sort(0).values)
    assert "2 images are new since the start of the run: left out" in report(*sets)
    assert sum(map(len, opened(root))) > 24  # control


def test_a_new_class_is_refused_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = fill(tmp_path / "pets", "cat", "dog", each=12)
    assert train.main([*FLAGS, "--data-root", str(root)]) == 0
    fill(tmp_path / "pets", "zebra", each=2)
    assert train.main(["--resume", "latest", "--device", "cpu", "--max-steps", "3"]) == 2
    line = capsys.readouterr().err
    assert "are cat, dog, zebra, but this run was trained on cat, dog" in line


def test_a_checkpoint_knows_the_held_out_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = fill(tmp_path / "pets", "cat", "dog", each=12)
    assert train.main([*FLAGS, "--data-root", str(root)]) == 0
    content = checkpoint.load(checkpoint.find("latest", tmp_path / "Logs_Checkpoints"))
    assert len(content["data"]["held_out"]) == 24 - len(content["data"]["digests"])
    put(root / "dog" / "new.png", 999)
    assert train.main(["--resume", "latest", "--device", "cpu", "--max-steps", "3"]) == 0
    assert "1 image is new since the start of the run" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    "names",
    [
        ("traina", "trainb", "testa", "testb"),
        ("train_A", "train_B", "test_A", "test_B"),
        ("train-a", "train-b", "val-a", "val-b"),
        ("A_train", "B_train", "A_test", "B_test"),
        ("TRAIN B", "Train A"),
        ("cat_train", "dog_train", "cat_test", "dog_test"),
        ("train", "cats-train", "cats-val"),
    ],
)
def test_domains_have_many_names(tmp_path, names):
    with pytest.raises(DataError, match="arrange them as train/A") as error:
        opened(fill(tmp_path, *names, each=3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ("train_aug", "test"),
        ("train_augmented", "val"),
        ("train", "public_test", "private_test"),
        ("train", "test_final"),
    ],
)
def test_sets_whose_names_do_not_fit_are_refused_instead_of_being_classes(tmp_path, names):
    with pytest.raises(DataError, match="call the sets train/ and test/") as error:
        opened(fill(tmp_path, *(f"{name}/{c}" for name in names for c in ("cat", "dog")), each=3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [("trainval", "test"), ("train", "held_out"), ("train", "hold-out"), ("train", "validate")],
)
def test_the_two_sets_of_classes_have_these_names_too(tmp_path, names):
    layout = [f"{name}/{c}" for name in names for c in ("cat", "dog")]
    train_set, test_set = opened(fill(tmp_path, *layout, each=5))
    assert (len(train_set), len(test_set), train_set.class_names) == (10, 10, ("cat", "dog"))
    within = [f"{c}/{name}" for name in names for c in ("cat", "dog")]
    train_set, test_set = opened(fill(tmp_path / "within", *within, each=5))
    assert (len(train_set), len(test_set), train_set.class_names) == (10, 10, ("cat", "dog"))


def test_a_flat_test_folder_beside_classes_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match="or make train/ the --data-root"):
        opened(fill(tmp_path, "train/cat", "train/dog", "test", each=3))


def test_other_classes_or_labels_are_refused_also_where_files_may_be_missing(tmp_path):
    """A class that is renamed or gone shifts the numbers of all others."""
    root = fill(tmp_path, "ant", "bee", "cat", each=12)
    loading = stored(*opened(root))
    trained = {bytes(row) for row in loading.digests.tolist()}
    paths = [p for p in sorted(root.rglob("*.png")) if digest(p) in trained]
    first = paths[0].read_bytes()
    paths[0].unlink()
    resumed(root, loading, skip_damaged=True)  # control: it is missing, the others are the same
    (root / "ant").rename(root / "zebra")
    with pytest.raises(DataError, match=r"the classes of .* are bee, cat, zebra, but this run"):
        resumed(root, loading, skip_damaged=True)
    (root / "zebra").rename(root / "ant")
    paths[-1].rename(root / "bee" / "moved.png")
    with pytest.raises(DataError, match="not those this run was trained on"):
        resumed(root, loading, skip_damaged=True)
    shutil.rmtree(root / "ant")
    with pytest.raises(DataError, match="are bee, cat, but this run was trained on ant, bee"):
        resumed(root, loading, skip_damaged=True)
    assert first


def test_a_copy_that_is_gone_is_a_missing_image(tmp_path):
    root = fill(tmp_path, "cat", "dog", each=12)
    trained = {bytes(row) for row in opened(root)[0].digests.tolist()}
    own = next(p for p in sorted(root.rglob("*.png")) if digest(p) in trained)
    copy = own.with_name("copy.png")
    shutil.copy(own, copy)
    loading = stored(*opened(root))
    copy.unlink()
    with pytest.raises(DataError, match=r"1 of the .* are gone"):
        resumed(root, loading)
    lines = report(*resumed(root, loading, skip_damaged=True))
    assert any("training images are gone since the start" in line for line in lines)


def digest(path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def test_an_empty_folder_of_mnist_does_not_hide_images(tmp_path):
    root = fill(tmp_path, "", each=3)
    (root / "MNIST" / "raw").mkdir(parents=True)
    assert holds_images(str(root))
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    assert not holds_images(str(root))  # control


@pytest.mark.parametrize(
    "names",
    [("cats_train", "cats_test"), ("images-train", "images-test"), ("train", "dev"),
     ("trainA", "testA"), ("Train", "tests"), ("train_1", "holdout")],
)  # fmt: skip
def test_the_two_sets_are_known_by_these_names_too(tmp_path, names):
    train_set, test_set = opened(fill(tmp_path, *names, each=3))
    assert (len(train_set), len(test_set), train_set.class_names) == (3, 3, ())


@pytest.mark.parametrize(
    "names", [("train_station", "bus_stop"), ("testa", "mano"), ("trains", "planes"), ("dev", "x")]
)
def test_classes_may_have_such_words_in_their_names(tmp_path, names):  # control
    train_set, test_set = opened(fill(tmp_path, *names, each=10))
    assert set(train_set.class_names) == set(names)
    assert len(test_set) == 2  # held out by chance


SPLIT_WITHIN = ("cat/train", "cat/test", "dog/train", "dog/val")


@pytest.mark.parametrize(
    ("stray", "reason"),
    [
        ("cat/stray.png", "1 beside train/ and test/"),
        ("dog/extra/a.png", "1 beside train/ and test/"),
        ("cat/deep/er/a.png", "1 beside train/ and test/"),
        ("beside.png", "1 beside the class folders"),
    ],
)
@pytest.mark.parametrize("inside", ["", "photos/"])
def test_a_stray_image_does_not_mix_the_sets_within_classes(tmp_path, stray, reason, inside):
    layout = (name.replace("/", f"/{inside}") for name in SPLIT_WITHIN)
    root = fill(tmp_path, *layout, each=5)
    expected = opened(root)
    put(root / stray, 999)
    train_set, test_set = opened(root)
    assert (len(train_set), len(test_set), train_set.class_names) == (10, 10, ("cat", "dog"))
    assert train_set.fingerprint == expected[0].fingerprint
    assert test_set.fingerprint == expected[1].fingerprint
    assert any(reason in line for line in report(train_set, test_set))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            (*SPLIT_WITHIN, "rat"),
            "cat/test/ looks like test images, .* rat/000.png lies in no train",
        ),
        ((*SPLIT_WITHIN, "rat/a", "rat/b"), "rat/a/000.png lies"),
        (("cat/test", "cat/a", "dog/test", "dog/a"), "cat/test/ looks .* cat/a/000.png lies"),
        (("cat/Validation_set", "cat", "dog"), "cat/Validation_set/ looks .* cat/000.png lies"),
        (("one/test", "one/more", ""), "one/test/ looks like test images, but 000.png"),
    ],
)
def test_what_may_be_of_either_set_is_refused(tmp_path, layout, words):
    root = fill(tmp_path, *layout, each=3)
    with pytest.raises(DataError, match=words) as error:
        opened(root)
    assert "\n" not in str(error.value)


def test_a_test_folder_beside_its_classes_is_refused(tmp_path):
    root = fill(tmp_path / "a", "cat", "dog", "val/cat", "val/dog", each=3)
    with pytest.raises(DataError, match="has cat, dog both beside val/ and in it: move"):
        opened(root)
    plain = fill(tmp_path / "b", "cat", "dog", "val/x", "val/y", each=3)  # control
    assert opened(plain)[0].class_names == ("cat", "dog", "val")


def test_a_class_without_a_test_folder_is_trained_on_alone(tmp_path):
    train_set, test_set = opened(fill(tmp_path, *SPLIT_WITHIN[:3], each=5))
    assert train_set.labels.bincount().tolist() == [5, 5]
    assert "held out: no image of dog" in report(train_set, test_set)
    nested = fill(tmp_path / "nested", "toys/train", "toys/car", "pets/cat", each=10)  # control
    assert len(opened(nested)[0]) == 27  # a folder called train does not make a test set


@pytest.mark.parametrize("classes", ["", "/cat"])
def test_an_image_beside_the_folder_of_both_sets_is_left_out(tmp_path, classes):
    others = ["data/train/dog", "data/test/dog"] if classes else []
    root = fill(tmp_path, f"data/train{classes}", f"data/test{classes}", *others, each=4)
    put(root / "logo.png", 999)
    train_set, test_set = opened(root)
    assert len(train_set) == len(test_set) == (8 if classes else 4)
    assert train_set.class_names == (("cat", "dog") if classes else ())
    assert "left out: 1 beside data/" in report(train_set, test_set)


def test_the_two_sets_of_unlabelled_images_may_lie_deeper(tmp_path):
    root = fill(tmp_path, "photos/2019/train", "photos/2019/test", each=4)
    put(root / "photos/logo.png", 999)
    put(root / "logo.png", 998)
    train_set, test_set = opened(root)
    assert (len(train_set), len(test_set)) == (4, 4)
    assert any("2 beside train/ and test/" in line for line in report(train_set, test_set))


def test_a_link_to_a_folder_around_the_root_is_not_followed(tmp_path):
    root = fill(tmp_path / "root", "", each=3)
    fill(tmp_path / "other", "", each=1)
    (root / "up").symlink_to("..")
    assert len(opened(root)[0]) == 3


def test_copies_in_a_test_folder_are_told(tmp_path):
    root = fill(tmp_path, "train", "test", each=4)
    (root / "test" / "000.png").write_bytes((root / "train" / "001.png").read_bytes())
    lines = report(*opened(root))
    assert any(line.startswith("1 held-out image is trained on, too") for line in lines)


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
    assert any("array that is not used (names)" in line for line in report(train_set, test_set))


@pytest.mark.parametrize(
    ("names", "test_names"),
    [
        (("x", "target"), ()),
        (("X_train", "target"), ()),
        (("X_train", "target"), ("X_test", "y_test")),
        (("images", "classes"), ()),
        (("images", "y_train"), ("images_test", "testLabels")),
        (("train-images", "train.targets"), ("valid_x", "val_y")),
        (("imgs", "Label"), ("testing_imgs", "label_test")),
        (("arr_0", "labels"), ()),
        (("training_images", "train_label"), ("validation_images", "valid_labels")),
    ],
)
def test_labels_have_many_names(tmp_path, names, test_names):
    images, labels = np.stack([picture(n) for n in range(30)]), np.arange(30) % 3
    arrays = dict(zip(names, (images, labels), strict=True))
    arrays |= dict(zip(test_names, (images[:6], labels[:6]), strict=False))
    np.savez(tmp_path / "a.npz", **arrays)
    train_set, test_set = opened(tmp_path / "a.npz")
    assert train_set.class_names == ("0", "1", "2")
    assert train_set.labels.bincount().tolist() == ([10] * 3 if test_names else [9] * 3)
    assert len(test_set) == (6 if test_names else 3)
    assert not any(line.startswith("left out") for line in report(train_set, test_set))


@pytest.mark.parametrize(
    ("name", "array", "line"),
    [
        ("species", np.arange(30), "1 array that is not used (species)"),
        ("label_names", np.array(["a", "b"]), "1 array that is not used (label_names)"),
        ("classes", np.array(["a", "b"]), "1 array that is not used (classes)"),
        ("targets", np.arange(30), "1 array that is not used (targets)"),
        ("y_test", np.arange(5), "1 array that is not used (y_test)"),
        ("x_val", np.zeros((7, 16, 16), np.uint8), "7 in the array x_val"),
        ("IMAGES", np.zeros((7, 16, 16), np.uint8), "7 in the array IMAGES"),
    ],
)
def test_arrays_that_are_not_used_are_named(tmp_path, name, array, line):
    images, more = np.stack([picture(n) for n in range(30)]), {"test_images": picture(0)[None]}
    more = {} if name == "y_test" else more | {"test_labels": np.zeros(1, int)}
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 3, **{name: array}, **more)
    train_set, test_set = opened(tmp_path / "a.npz")
    assert train_set.class_names == ("0", "1", "2")
    assert f"left out: {line}" in report(train_set, test_set)


@pytest.mark.usefixtures("few_digits")
def test_a_data_set_that_was_typed_is_not_doubted(tmp_path, capsys):
    np.savez("a.npz", images=np.zeros((4, 4, 4), np.uint8))
    network = NETWORK[NETWORK.index("--device") :]
    (tmp_path / "a.tar").write_bytes(b"of images, perhaps")
    for root in (str(fill(tmp_path / "pets", "", each=3)), "a.npz", "a.tar"):
        flags = [*network, "--max-steps", "1", "--data-root", root]
        assert train.main(flags) == 2
        error = capsys.readouterr().err
        assert "type --dataset folder" in error
        assert error.count("\n") == 1
        assert train.main([*flags, "--preset", "cifar10"]) == 2
        assert "does not hold cifar10: to train on the images in it" in capsys.readouterr().err
        assert train.main([*flags, "--dataset", "digits", "--dry-run"]) == 0
        capsys.readouterr()


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
