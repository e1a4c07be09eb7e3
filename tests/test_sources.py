"""The specification of what a folder has to train on: an image tree or shards, wherever in it, and what is in them."""

import io
import tarfile

import numpy as np
import pytest
import torch
from samples import picture, refused, save, write_tree

from budgetnet import shards, sources


def write_shards(root):
    """Training images 0 to 4 and test images 5 to 7, of classes 0, 1, 2, 0, ... that are called ant, cat and dog."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ant\ncat\ndog\n")
    for name, numbers in (("train-0.tar", range(3)), ("train-1.tar", range(3, 5)), ("test.tar", range(5, 8))):
        with tarfile.open(root / name, "w") as tar:
            for i in numbers:
                image = io.BytesIO()
                picture(i).save(image, "PNG")
                for member, content in ((f"{i}.png", image.getvalue()), (f"{i}.cls", f"{i % 3}".encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def pixels_of(images):
    return torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))


# Where it is


def test_a_folder_that_is_not_there_or_has_nothing_holds_nothing(tmp_path):
    assert sources.held(tmp_path / "nowhere") == {}
    assert sources.held(tmp_path) == {}


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_tree_has_both_parts(missing, tmp_path):
    write_tree(tmp_path)
    (tmp_path / missing).rename(tmp_path / "other")
    assert sources.held(tmp_path) == {}


def test_a_folder_is_a_tree_or_shards_or_holds_some(tmp_path):
    pets, cars, root = write_tree(tmp_path / "a" / "pets"), write_shards(tmp_path / "a" / "cars"), tmp_path / "a"
    (root / "train.txt").write_text("")
    (root / "empty").mkdir()
    assert sources.held(pets) == {pets: pets}
    found = sources.held(cars)
    assert found == {cars: shards.Layout(cars, ("train-0.tar", "train-1.tar"), ("test.tar",))}
    assert sources.held(root) == {pets: pets, **found}
    assert sources.locate(pets) == pets
    assert sources.locate(cars) == found[cars]
    refused(lambda: sources.locate(root), root, "found 2 trees (cars, pets), expected one tree")
    assert sources.locate(write_tree(tmp_path / "b" / "inner").parent) == tmp_path / "b" / "inner"


def test_a_folder_with_nothing_to_train_on_is_told_by_what_is_in_it(tmp_path):
    refused(lambda: sources.locate(tmp_path), tmp_path, "found an empty folder, expected one tree")
    refused(lambda: sources.locate(tmp_path / "nowhere"), "found no such folder, expected one tree")
    (tmp_path / "notes.txt").write_text("")
    refused(lambda: sources.locate(tmp_path), "found notes.txt, expected one tree")


def test_the_number_of_classes_is_known_before_any_image_is_read(tmp_path):
    tree = write_tree(tmp_path / "pets")
    (tree / "train" / "notes.txt").write_text("")
    for image in tree.glob("*/*/*.png"):
        image.write_bytes(b"")
    assert sources.num_classes(sources.locate(tree)) == 3
    assert sources.num_classes(sources.locate(write_shards(tmp_path / "cars"))) == 3


# What is in it


def test_a_tree_is_looked_through(tmp_path):
    save(picture(12), write_tree(tmp_path) / "test" / "cat" / "2.png")
    source = sources.look_through(sources.locate(tmp_path))
    assert (source.root, source.kind, source.shards, source.train_size) == (tmp_path, "image folder tree", 0, 5)
    assert source.classes == ("ant", "cat", "dog")
    assert source.names is not None
    assert source.names[:5] == ("ant/a.png", "cat/1.png", "cat/2.png", "cat/10.png", "dog/x.bmp")
    assert source.names[5:] == ("cat/2.png", "cat/z.png", "dog/y.png")
    assert source.labels.tolist() == [0, 1, 1, 1, 2, 1, 1, 2]
    assert [source.name(i) for i in (0, 7)] == ["ant/a.png", "dog/y.png"]
    expected = pixels_of(picture(seed) for seed in (3, 0, 2, 1, 4, 12, 11, 10))
    check_pixels(source, expected)


def test_shards_are_looked_through(tmp_path):
    source = sources.look_through(sources.locate(write_shards(tmp_path)))
    assert (source.root, source.kind, source.shards, source.train_size) == (tmp_path, "tar shards", 3, 5)
    assert (source.classes, source.names) == (("ant", "cat", "dog"), None)
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [source.name(i) for i in (0, 4, 5)] == ["train-0.tar: 0.png", "train-1.tar: 4.png", "test.tar: 5.png"]
    check_pixels(source, pixels_of(picture(i) for i in range(8)))


def check_pixels(source, expected):
    pixels, facts = source.load(32, describe=lambda found: {"shape": list(found.shape)}, progress=None)
    assert torch.equal(pixels, expected)
    assert facts == {"shape": list(expected.shape)}
    assert torch.equal(torch.from_numpy(np.concatenate(list(source.decode(32)))), expected)
    train, test = source.parts(pixels)
    assert torch.equal(torch.cat([train.images, test.images]), expected)
    assert torch.equal(torch.cat([train.targets, test.targets]), source.labels)
    assert (len(train), len(test)) == (5, 3)
    if source.names is None:
        assert train.names is test.names is None
    else:
        assert (train.names, test.names) == (source.names[:5], source.names[5:])


def test_a_test_class_that_training_does_not_know_is_refused(tmp_path):
    write_tree(tmp_path)
    save(picture(0), tmp_path / "test" / "emu" / "1.png")
    refused(
        lambda: sources.look_through(tmp_path), tmp_path / "test", "found class emu, expected only", "ant, cat, dog"
    )


def test_a_tree_of_one_class_is_refused_and_of_two_is_not(tmp_path):
    for part in ("train", "test"):
        save(picture(0), tmp_path / part / "cat" / "1.png")
    refused(lambda: sources.look_through(tmp_path), tmp_path / "train", "found one class (cat), expected two or more")
    save(picture(0), tmp_path / "train" / "dog" / "1.png")
    assert sources.look_through(tmp_path).classes == ("cat", "dog")


def test_channels_of_one_value_are_refused(tmp_path):
    source = sources.look_through(write_tree(tmp_path))
    source.require_contrast([0.1, 0.2, 0.3])
    refused(lambda: source.require_contrast(iter([0.1, 0.0, 0.3])), tmp_path / "train", "one value in all pixels")
