"""Which images a folder, a zip or an array file holds, their classes, and what is left out."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePosixPath

from data.class_names import match_classes, natural_key, readable
from data.errors import DataError, DataNotFound
from data.sources import CONTAINERS, Folder, Source, Zip, is_hidden, why_left_out
from utils.errors import listed

ACCEPTED = (
    "--dataset folder takes a folder or .zip of images (flat, one folder per class, or train/ "
    "and test/ beside each other), or a .npz or .npy of uint8 images"
)
TRAIN = ("train", "training", "trainval")
SURELY_TEST = ("test", "tests", "testing", "val", "valid", "validation", "validate", "eval")
SURELY_TEST += ("evaluation",)
SURELY_TEST += ("holdout", "heldout")  # the likelier names first
TEST = (*SURELY_TEST, "dev")  # where there is a ``train``
FILLERS = "sets?|images?|imgs?|pictures?|pics?|photos?|data|dataset|samples?|split"
MOST_NAMED = 5  # folders without an image
PART = re.compile(
    rf"(?P<part>{'|'.join((*TRAIN, *TEST))})(?:{FILLERS})?|(?P<of>train|test|val)(?P<domain>[ab])"
)


@dataclass(frozen=True)
class ImageFile:
    """An image of a source. ``label`` is 0 where there are no classes."""

    name: str
    label: int = 0
    test: bool = False  # in a folder ``test`` beside ``train``


@dataclass(frozen=True)
class Listing:
    """The images of a source, sorted by name, and the counts of what is left out, by reason."""

    source: Source
    files: tuple[ImageFile, ...]
    class_names: tuple[str, ...]  # none: no labels
    left_out: Counter[str] = field(default_factory=Counter)

    def only(self, classes: Sequence[str]) -> "Listing":
        """Without the images of other classes; labels count anew. Raises DataError."""
        if not classes:
            return self
        if not self.class_names:
            raise DataError(f"--classes has no effect: {self.source.description} has no classes")
        kept = sorted(set(match_classes(classes, self.class_names)))
        files = [replace(f, label=kept.index(f.label)) for f in self.files if f.label in kept]
        names = tuple(self.class_names[label] for label in kept)
        left_out = self.left_out + Counter({"of other classes": len(self.files) - len(files)})
        return replace(self, files=tuple(files), class_names=names, left_out=left_out)


def list_images(source: Folder | Zip) -> Listing:
    """Find the images of a folder or zip, and what the folders in it mean. Raises DataError.

    Folders ``train`` and ``test`` (or ``val``) are the two sets; two or more folders are classes,
    and images beside them are left out; otherwise there are no labels. A folder that holds all the
    rest is looked into.
    """
    left_out: Counter[str] = Counter()
    names, entries = [], list(source.entries())
    for name, times in sorted(Counter(n for n, is_folder in entries if not is_folder).items()):
        reason = why_left_out(source, name)
        left_out[reason or "of the same name as another"] += times if reason else times - 1
        if not reason:
            names.append(name)
    if not names:
        found = f" ({summary(left_out)})" if left_out else ""
        for name, _ in sorted(entries):
            if PurePosixPath(name).suffix.lower() in CONTAINERS:
                found += f"; for those in {readable(name)} make it the --data-root"
                break
        raise DataNotFound(f"no images in {source.description}{found}: {ACCEPTED}")
    if bare := folders_without_images(entries, names):  # any of which might have been a class
        what = "folder without an image" if len(bare) == 1 else "folders without an image"
        left_out[f"{what} ({listed(bare, MOST_NAMED)})"] += len(bare)
    names, depth = unwrapped(names, left_out)
    train, tests = split_parts(names, depth)
    if train and tests:
        return two_sets(source, names, depth, (train, tests), left_out)
    if tests:
        raise DataError(f"{source.description} has {readable(tests[0])}/ but no train/: {ACCEPTED}")
    refuse_domains(source, heads(names, depth))
    folders = class_folders(names, depth)
    refuse_test_class(source, names, depth, folders)
    files = labelled(names, depth, folders, left_out)
    files = split_within(source, files, depth + bool(folders), left_out)
    return Listing(source, tuple(files), named_apart(folders), left_out)


def folders_without_images(entries: Sequence[tuple[str, bool]], names: Sequence[str]) -> list[str]:
    """The uppermost folders that hold none of these images at any depth; not hidden ones."""
    filled = {parent for name in names for parent in PurePosixPath(name).parents}
    folders = {PurePosixPath(name) for name, is_folder in entries if is_folder}
    folders |= {parent for name, _ in entries for parent in PurePosixPath(name).parents}
    bare = {path for path in folders - filled if path.parent in filled and ".." not in path.parts}
    return [readable(str(path)) for path in sorted(bare) if not is_hidden(path)]


def two_sets(
    source: Folder | Zip,
    names: list[str],
    depth: int,
    parts: tuple[str, list[str]],
    left_out: Counter[str],
) -> Listing:
    """The images in the folder ``train`` and in the first ``test`` whose classes are those of it.

    Raises DataError.
    """
    train, tests = parts
    inside = {part: under(names, depth, part) for part in (train, *tests)}
    folders = class_folders(inside[train], depth + 1)
    fits = [test for test in tests if not folders or heads(inside[test], depth + 1)]
    shown, test = readable(train), (fits or tests)[0]
    if not fits:
        raise DataError(
            f"{source.description}: {shown}/ has class folders, {readable(test)}/ has not: sort "
            f"its images into the same folders, or make {shown}/ the --data-root"
        )
    outside = len(names) - len(inside[train]) - len(inside[test])
    left_out[f"outside {shown}/ and {readable(test)}/"] += outside
    unknown = heads(inside[test], depth + 1) - set(folders)
    if folders and unknown:
        raise DataError(
            f"{source.description}: {readable(test)}/ has classes that {shown}/ lacks: "
            f"{listed(sorted(map(readable, unknown)))}"
        )
    level = depth + 1 + bool(folders)
    files = [
        replace(file, test=part_within(file.name, level) in TEST)
        for file in labelled(inside[train], depth + 1, folders, left_out)
    ]
    tested = labelled(inside[test], depth + 1, folders, left_out)
    files += [replace(file, test=True) for file in tested]
    return Listing(source, tuple(files), named_apart(folders), left_out)


def heads(names: Sequence[str], depth: int) -> set[str]:
    """The folders at this depth that hold images."""
    return {parts[depth] for name in names if len(parts := name.split("/")) > depth + 1}


def at_top(names: Sequence[str], depth: int) -> list[str]:
    """The images that lie in no folder below this depth."""
    return [name for name in names if name.count("/") == depth]


def unwrapped(names: list[str], left_out: Counter[str]) -> tuple[list[str], int]:
    """The images, and the depth at which folders mean something.

    A folder that holds all the rest means nothing; nor does one that holds ``train`` and ``test``,
    beside which images are left out.
    """
    depth = 0
    while len(heads(names, depth)) == 1:
        (head,) = heads(names, depth)
        inside, beside = under(names, depth, head), at_top(names, depth)
        if beside and not all(split_parts(inside, depth + 1)):
            break
        left_out[f"beside {readable(head)}/"] += len(beside)
        names, depth = inside, depth + 1
    return names, depth


def split_parts(names: list[str], depth: int) -> tuple[str | None, list[str]]:
    """The folder of training images, and those of test images, the likelier names first.

    ``train``, ``Training``, ``train_images``, ``training_set``, ``train2017`` and the like; or
    ``pets_train`` beside ``pets_test``.
    """
    parts = {head: part_of(head) for head in sorted(heads(names, depth))}
    rests = {rest for part, rest in parts.values() if part}
    rest = "".join(rests) if len(rests) == 1 and paired(parts) else ""
    found: dict[str, str] = {}
    for head, (part, own) in parts.items():
        if part and own == rest:
            found.setdefault(part, head)
    train = next((found[word] for word in TRAIN if word in found), None)
    tests = [found[word] for word in (TEST if train else SURELY_TEST) if word in found]
    if train is None and heads(names, depth) != set(tests):
        return None, []  # classes, one of which has such a name
    return train, tests


def refuse_domains(source: Folder | Zip, folders: set[str]) -> None:
    """DataError for trainA, trainB, testA, testB, or cat_train, cat_test, dog_train, dog_test.

    And for train_aug beside test, or train beside public_test: test images would be trained on.
    """
    parts = {folder: part_of(folder) for folder in sorted(folders)}
    domains = [folder for folder, (part, rest) in parts.items() if part and rest in ("a", "b")]
    pairs = paired(parts)
    found = domains if len(domains) > 1 else [f for f, (_, rest) in parts.items() if rest in pairs]
    if found:
        raise DataError(
            f"{source.description} has {listed([*map(readable, found)])}: arrange them as train/A, "
            "train/B, test/A, test/B, or name one of them as --data-root"
        )
    trained, tested = (
        [folder for folder, (part, _) in parts.items() if part in own]
        for own in (TRAIN, SURELY_TEST)
    )
    if trained and tested:
        raise DataError(
            f"{source.description} has {listed([*map(readable, trained + tested)])}: call the sets "
            "train/ and test/, or name one of them as --data-root"
        )


def refuse_test_class(
    source: Folder | Zip, names: Sequence[str], depth: int, folders: Sequence[str]
) -> None:
    """DataError for a ``test`` beside class folders that holds folders of their names."""
    for folder in folders:
        part, rest = part_of(folder)
        if part in TEST and not rest:
            both = heads(under(names, depth, folder), depth + 1) & set(folders)
            if both:
                shown = readable(folder)
                raise DataError(
                    f"{source.description} has {listed(sorted(map(readable, both)))} both beside "
                    f"{shown}/ and in it: move those beside it into a folder train/"
                )


def paired(parts: Mapping[str, tuple[str, str]]) -> list[str]:
    """What is called ``..._train`` as well as ``..._test``."""
    trained, tested = ({r for p, r in parts.values() if r and p in own} for own in (TRAIN, TEST))
    return sorted(trained & tested)


@cache
def part_of(folder: str) -> tuple[str, str]:
    """Which part of a set its name says, as ``train`` or ``val``, or empty; and what else it says.

    train_images, Training, train2017: nothing else; trainA: a; cats-train: cats.
    """
    joined = re.sub(r"\b(held|hold)[ _-]out|_(held|hold)[ _-]out", r" \1\2out", folder.lower())
    words = re.findall(r"[^\W\d_]+", joined)
    found = [match for word in words if (match := PART.fullmatch(word))]
    if len(found) != 1:
        return "", ""
    rest = [w for w in words if not PART.fullmatch(w) and not re.fullmatch(FILLERS, w)]
    domain = found[0]["domain"]
    return found[0]["part"] or found[0]["of"], " ".join([*rest, domain] if domain else rest)


def part_within(name: str, level: int) -> str:
    """The part that folders from this level on say that an image is of; test before train."""
    said = [p for p, rest in map(part_of, name.split("/")[level:-1]) if p and len(rest) < 2]
    return next((part for part in said if part in TEST), "".join(said[:1]))


def split_within(
    source: Folder | Zip, files: list[ImageFile], level: int, left_out: Counter[str]
) -> list[ImageFile]:
    """The images, with ``test`` for those in a folder of that name within their class folder.

    Where there are such, what lies outside ``train`` and ``test`` is left out. DataError for a
    class that has other images and no ``train``: they may be either. level: of the folders within.
    """
    parts = {file.name: part_within(file.name, level) for file in files}
    trained = {file.label for file in files if parts[file.name] in TRAIN}
    tested = [name for name, part in parts.items() if part in (TEST if trained else SURELY_TEST)]
    if not tested:
        return files
    for file in files:
        if not parts[file.name] and file.label not in trained:
            test = readable(str(PurePosixPath(tested[0]).parent))
            raise DataError(
                f"{source.description}: {test}/ looks like test images, but "
                f"{readable(file.name)} lies in no train/, and its class has none: arrange them "
                "as train/CLASS and test/CLASS, or rename the folder"
            )
    kept = [replace(f, test=parts[f.name] in TEST) for f in files if parts[f.name]]
    left_out["beside train/ and test/"] += len(files) - len(kept)
    return kept


def under(names: Sequence[str], depth: int, folder: str) -> list[str]:
    """The names in this folder."""
    return [n for n in names if n.count("/") > depth and n.split("/")[depth] == folder]


def class_folders(names: Sequence[str], depth: int) -> list[str]:
    """The folders that are classes; none where there are fewer than two."""
    folders = sorted(heads(names, depth), key=natural_key)
    return folders if len(folders) > 1 else []


def named_apart(folders: Sequence[str]) -> tuple[str, ...]:
    """As they are printed. DataError where two are printed alike, as NFC and NFD are."""
    names = tuple(map(readable, folders))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several class folders are called {listed(twice)}: rename all but one")
    return names


def labelled(
    names: Sequence[str], depth: int, folders: Sequence[str], left_out: Counter[str]
) -> list[ImageFile]:
    """The images with the number of their class folder; with 0 where there are none."""
    if not folders:
        return [ImageFile(name) for name in names]
    left_out["beside the class folders"] += len(at_top(names, depth))
    index = {folder: i for i, folder in enumerate(folders)}
    inside = [name for name in names if name.count("/") > depth]
    return [ImageFile(name, index[name.split("/")[depth]]) for name in inside]


def summary(counts: Counter[str]) -> str:
    """``3 hidden, 2 not images``."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
