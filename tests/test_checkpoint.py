"""Checkpoints: whole or not there, refused when altered, kept by the policy."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from reppo import checkpoint
from reppo.checkpoint import CheckpointError, Damaged, Progress
from reppo.files import set_aside

RUN = {"env": "probe:TargetReach", "seeds": [0], "config": {"gamma": 0.99}}
ARRAYS = {
    "['learner'].weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "['learner'].count": np.array(7, np.int32),
    "['env'].done": np.array([True, False]),
    "['env'].contacts": np.zeros((2, 0, 3), np.float32),
}


def progress(steps: int = 100, score: float | None = None) -> Progress:
    returns = [] if score is None else [[score - 1.0, score + 1.0]]
    return Progress(steps // 10, steps, 1.5, score is not None, returns, {"metrics.csv": 12})


def digest(manifest: dict[str, Any]) -> str:
    unsigned = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()


def manifest_only(directory: Path, steps: int, score: float | None = None) -> Path:
    """A checkpoint as far as its retention is concerned."""
    now = progress(steps, score)
    path = directory / now.name
    path.mkdir(parents=True)
    manifest = {"format": checkpoint.FORMAT, "progress": now._asdict(), "run": RUN, "leaves": {}, "files": {}}
    (path / "manifest.json").write_text(json.dumps({**manifest, "digest": digest(manifest)}))
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that Orbax has written. Do not change it."""
    return checkpoint.write(tmp_path_factory.mktemp("sound"), ARRAYS, progress(score=3.0), RUN)


# ------------------------------------------------------------------------------------------- writing and reading


def test_what_is_read_is_what_was_written(sound: Path) -> None:
    assert sound.name == "000000000100-evaluated"
    arrays, read_progress, run = checkpoint.read(sound)
    assert read_progress == progress(score=3.0)
    assert run == RUN
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].shape, arrays[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(arrays[name], array)
    assert [path.name for path in sound.parent.iterdir()] == [sound.name]


def test_a_tree_survives_the_host_with_its_keys() -> None:
    tree = {
        "key": jax.random.split(jax.random.key(3), 2),
        "rbg": jax.random.key(3, impl="rbg"),
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "half": jnp.ones(3, jnp.bfloat16),
        "flag": jnp.array(True),
        "nested": (jnp.arange(3), {"none": None}),
    }
    back = checkpoint.from_host(checkpoint.to_host(tree), jax.eval_shape(lambda: tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    for (name, old), new in zip(helpers.leaves(tree).items(), helpers.leaves(back).values(), strict=True):
        assert old.tobytes() == new.tobytes(), name


def test_the_host_has_a_copy() -> None:
    leaf = np.zeros(3)
    arrays = checkpoint.to_host({"leaf": leaf})
    leaf[:] = 1
    np.testing.assert_array_equal(arrays["['leaf']"], np.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"['b']": None}, r"it has no \['b'\]"),
        ({"['c']": np.zeros(1)}, r"it has a \['c'\], which this run does not"),
        ({"['a']": np.zeros((3, 2), np.float32)}, r"\['a'\] is float32\[3, 2\], not float32\[2, 3\]"),
        ({"['a']": np.zeros((2, 3), np.int32)}, r"\['a'\] is int32\[2, 3\], not float32\[2, 3\]"),
    ],
)
def test_another_structure_is_refused_with_the_leaf_that_differs(change: dict[str, Any], message: str) -> None:
    tree = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    arrays = {name: array for name, array in {**checkpoint.to_host(tree), **change}.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.from_host(arrays, tree)


# ------------------------------------------------------------------------------------------- altered checkpoints


def swap_digest(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "digest": digest(manifest)}


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def altered(path: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """Alter one thing of a checkpoint; says what."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    kind = draw(
        st.sampled_from(["flip", "cut", "lengthen", "empty", "remove", "add", "swap", "directory", "field", "signed field"])
    )
    file = draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if kind == "flip":
        for _ in range(draw(st.integers(1, 4))):
            if content:
                content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[: draw(st.integers(0, max(len(content) - 1, 0)))])
    elif kind == "lengthen":
        file.write_bytes(content + draw(st.binary(min_size=1, max_size=20)))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "remove":
        file.unlink()
    elif kind == "add":
        file.with_name(draw(st.sampled_from(["extra", ".hidden", "manifest.json.partial"]))).write_bytes(b"x")
    elif kind == "swap":
        other = draw(st.sampled_from(files))
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "directory":
        file.unlink()
        file.mkdir()
    else:
        manifest = json.loads((path / "manifest.json").read_text())
        where = draw(st.sampled_from([(name,) for name in manifest] + [("progress", f) for f in Progress._fields]))
        holder = manifest
        for name in where[:-1]:
            holder = holder[name]
        if draw(st.booleans()):
            del holder[where[-1]]
        else:
            holder[where[-1]] = draw(ODD)
        signed = swap_digest(manifest) if kind == "signed field" else manifest
        (path / "manifest.json").write_text(json.dumps(signed))
    return kind


def same(read: checkpoint.Checkpoint) -> bool:
    """Whether the arrays are those that were written."""
    return read.arrays.keys() == ARRAYS.keys() and all(
        np.array_equal(read.arrays[name], array) for name, array in ARRAYS.items()
    )


@given(data=st.data())
@settings(max_examples=80)
def test_an_altered_checkpoint_is_refused_or_is_what_was_written(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy = tmp_path_factory.mktemp("altered") / sound.name
    shutil.copytree(sound, copy)
    kind = altered(copy, data.draw)
    read = refusal = None
    try:
        read = checkpoint.read(copy)
    except CheckpointError as error:
        refusal = str(error)
    if read is None:
        assert refusal is not None
        assert str(copy) in refusal
        assert "\n" not in refusal
    else:
        # What carries a digest of its own making is another program's; `Run.restore` compares it with the run.
        assert same(read) or kind == "signed field", kind
        assert read.progress == progress(score=3.0) or kind == "signed field"
    shutil.rmtree(copy.parent)


def test_a_flipped_bit_in_any_file_is_found_before_anything_is_read(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_checkpointer", lambda: pytest.fail("read"))
    names = [path.relative_to(sound) for path in sound.rglob("*") if path.is_file()]
    assert len(names) > 5
    for name in names:
        copy = shutil.copytree(sound, tmp_path / sound.name)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(Damaged, match=f"is damaged: {name} is not"):
            checkpoint.read(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("where", ["extra", "state/extra", "manifest.json.partial"])
def test_a_file_more_is_refused(sound: Path, tmp_path: Path, where: str) -> None:
    copy = shutil.copytree(sound, tmp_path / sound.name)
    (copy / where).touch()
    with pytest.raises(Damaged, match=f"holds a file that is not its own: {where}"):
        checkpoint.read(copy)


@pytest.mark.parametrize("where", ["manifest.json", "state/_METADATA"])
def test_a_pipe_in_the_place_of_a_file_is_no_reason_to_wait(sound: Path, tmp_path: Path, where: str) -> None:
    copy = shutil.copytree(sound, tmp_path / sound.name)
    (copy / where).unlink()
    os.mkfifo(copy / where)
    with pytest.raises(Damaged, match=f"{where} is missing"):
        checkpoint.read(copy)


@pytest.mark.parametrize(
    "change", [{"iteration": -1}, {"positions": {"metrics.csv": -5}}, {"positions": {"metrics.csv": 1.0}}]
)
def test_counts_that_cannot_be_are_refused_although_they_are_signed(
    sound: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    copy = shutil.copytree(sound, tmp_path / sound.name)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["progress"] |= change
    (copy / "manifest.json").write_text(json.dumps(swap_digest(manifest)))
    with pytest.raises(CheckpointError, match=r"its manifest\.json is incomplete"):
        checkpoint.read(copy)


def test_a_checkpoint_under_another_name_is_refused(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "000000000200-evaluated")
    with pytest.raises(Damaged, match="it was written as 000000000100-evaluated"):
        checkpoint.read(copy)


def test_another_format_is_refused_by_name(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / sound.name)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(swap_digest({**manifest, "format": "reppo-checkpoint-9"})))
    with pytest.raises(CheckpointError, match="has format 'reppo-checkpoint-9'; this version reads"):
        checkpoint.read(copy)
    # It is not damaged: an older one must not be taken in its place.
    checkpoint.write(tmp_path, ARRAYS, progress(50), RUN)
    with pytest.raises(CheckpointError, match="reppo-checkpoint-9"):
        checkpoint.newest(tmp_path)


def test_the_newest_sound_checkpoint_is_found_and_the_damaged_ones_are_named(sound: Path, tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, {})
    shutil.copytree(sound, tmp_path / sound.name)
    damaged = [manifest_only(tmp_path, 200), manifest_only(tmp_path, 300)]
    for path in damaged:
        (path / "manifest.json").write_bytes(b"")
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.env_steps == 100
    assert list(problems) == damaged[::-1]
    aside = [set_aside(path) for path in damaged]
    assert [path.name for path in aside] == ["000000000200.damaged", "000000000300.damaged"]
    assert checkpoint.newest(tmp_path)[1] == {}
    again = set_aside(manifest_only(tmp_path, 200))
    assert again.name == "000000000200.damaged1"
    shutil.rmtree(tmp_path / sound.name)
    (manifest_only(tmp_path, 100) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing; there is no sound one to go on from"):
        checkpoint.newest(tmp_path)


# ------------------------------------------------------------------------------------------- retention


def kept(directory: Path, keep: int, keep_best: bool) -> list[str]:
    superfluous = checkpoint.superfluous(directory, keep, keep_best)
    return [path.name for path in checkpoint.listing(directory) if path not in superfluous]


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    for steps, score in [
        (0, 9.0),
        (100, None),
        (200, 20.0),
        (300, 20.0),
        (400, 5.0),
        (500, None),
        (500, 6.0),
        (10**12, None),
    ]:
        manifest_only(tmp_path, steps, score)
    names = ["000000000200-evaluated", "000000000500-evaluated", "1000000000000"]
    assert kept(tmp_path, 2, True) == names  # the older of the two best
    assert kept(tmp_path, 2, False) == names[1:]
    assert kept(tmp_path, 1, True) == [names[0], names[2]]
    assert checkpoint.best(tmp_path) == tmp_path / names[0]


def test_two_checkpoints_of_one_step_count_once(tmp_path: Path) -> None:
    moments: list[tuple[int, float | None]] = [(300, 4.0), (400, 5.0), (500, None), (500, 6.0)]
    for steps, score in moments:
        manifest_only(tmp_path, steps, score)
    for keep_best in (False, True):
        assert kept(tmp_path, 2, keep_best) == ["000000000400-evaluated", "000000000500-evaluated"]
        assert kept(tmp_path, 1, keep_best) == ["000000000500-evaluated"]


def test_scores_that_are_no_numbers_are_not_the_best(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    manifest_only(tmp_path, 100, float("nan"))
    manifest_only(tmp_path, 200, -5.0)
    manifest_only(tmp_path, 300)
    (manifest_only(tmp_path, 400, 7.0) / "manifest.json").write_text("{}")
    assert checkpoint.best(tmp_path) == tmp_path / "000000000200-evaluated"


def test_the_saver_applies_the_policy(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path, keep=1, keep_best=True)
    for steps, score in [(0, 1.0), (100, 3.0), (200, None), (300, 2.0)]:
        saver.save({"x": jnp.arange(3.0)}, progress(steps, score), RUN)
    saver.wait()
    assert [path.name for path in checkpoint.listing(tmp_path)] == ["000000000100-evaluated", "000000000300-evaluated"]
    assert len(list(tmp_path.iterdir())) == 2


# ------------------------------------------------------------------------------------------- disks


class PlainFiles:
    """What stands in for Orbax where its own files do not matter."""

    def save(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        os.mkdir(path)
        with open(path / "arrays", "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    def restore(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path / "arrays") as arrays:
            return dict(arrays)


@pytest.fixture
def plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_checkpointer", PlainFiles)


class Killed(BaseException):
    """The process is no more."""


FSYNC = os.fsync  #: counts, but is not waited for


class Kill:
    """Ends the process, as it were, at its n-th change of the file system, and lets it change nothing thereafter."""

    CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")

    def __init__(self, patch: pytest.MonkeyPatch, at: int):
        self.count, self.at = 0, at
        for name in self.CALLS:
            patch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count > self.at:
                raise Killed
            return None if function is FSYNC else function(*args, **kwargs)

        return call


def arrays_of(steps: int) -> dict[str, np.ndarray]:
    return {name: array + np.array(steps, array.dtype) if array.dtype != bool else array for name, array in ARRAYS.items()}


def save_all(directory: Path, moments: list[tuple[int, float | None]]) -> None:
    for steps, score in moments:
        checkpoint.write(directory, arrays_of(steps), progress(steps, score), RUN)
        for path in checkpoint.superfluous(directory, 1, True):
            checkpoint.remove(path)


@pytest.mark.usefixtures("plain_files")
def test_a_kill_at_any_change_of_the_file_system_leaves_the_newest_or_the_one_before(tmp_path: Path) -> None:
    moments: list[tuple[int, float | None]] = [(100, 5.0), (200, None), (200, 4.0), (300, 6.0)]
    order = [0, 100, 200, 200, 300]
    for at in itertools.count():
        directory = tmp_path / str(at)
        directory.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            kill = Kill(patch, at)
            try:
                save_all(directory, moments)
            except Killed:
                finished = False
            else:
                finished = True
        del kill
        found, problems = checkpoint.newest(directory)
        assert problems == {}
        steps = found.progress.env_steps if found is not None else 0
        if found is not None:
            np.testing.assert_array_equal(found.arrays["['learner'].weight"], arrays_of(steps)["['learner'].weight"])
        assert steps in order
        # Never further back than the save before the one that was under way.
        assert steps >= (order[-1] if finished else newest_so_far(directory))
        checkpoint.sweep(directory)
        left = {path.name for path in directory.iterdir()}
        assert left == {path.name for path in checkpoint.listing(directory)}
        for path in checkpoint.listing(directory):  # a half of an old one would be taken for a damaged one
            checkpoint.read(path)
        save_all(directory, [moment for moment in moments if moment[0] >= steps])
        assert [path.name for path in checkpoint.listing(directory)] == ["000000000300-evaluated"]
        if finished:
            assert at > 40
            return


def newest_so_far(directory: Path) -> int:
    """Steps of the newest checkpoint that was whole at any time, by what is left of its writing and its removal."""
    names = [path.name.removesuffix(checkpoint.REMOVED) for path in directory.iterdir()]
    return max((int(name[:12]) for name in names if checkpoint.NAME.fullmatch(name)), default=0)


@pytest.mark.usefixtures("plain_files")
def test_a_write_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = checkpoint.Saver(tmp_path, keep=2, keep_best=True)
    saver.save({"x": jnp.zeros(3)}, progress(100), RUN)
    saver.wait()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        saver.save({"x": jnp.ones(3)}, progress(200), RUN)
        with pytest.raises(OSError, match="No space left on device"):
            saver.wait()
    saver.wait()  # said once
    assert [path.name for path in tmp_path.iterdir()] == ["000000000100"]
    assert checkpoint.newest(tmp_path)[0] is not None
    saver.save({"x": jnp.ones(3)}, progress(200), RUN)
    saver.wait()
    assert len(checkpoint.listing(tmp_path)) == 2


@pytest.mark.usefixtures("plain_files")
def test_a_save_after_one_that_failed_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = checkpoint.Saver(tmp_path, keep=2, keep_best=True)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        saver.save({"x": jnp.ones(3)}, progress(100), RUN)
        with pytest.raises(OSError, match="No space left on device"):
            saver.save({"x": jnp.ones(3)}, progress(200), RUN)  # there is no room for this one, either
        saver.save({"x": jnp.ones(3)}, progress(300), RUN)
        while saver._thread is not None and saver._thread.is_alive():
            saver._thread.join()
    saver.save({"x": jnp.ones(3)}, progress(400), RUN)  # and now there is
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["000000000400"]


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4 KiB, which is how a full disk looks to Orbax. That holds for pytest's own output, too: no
    test may end inside of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_under_orbax_is_one_line(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path, keep=2, keep_best=True)
    with small_disk():
        saver.save({"x": np.random.default_rng(0).random(100_000)}, progress(), RUN)
        with pytest.raises(OSError, match="File too large") as raised:
            saver.wait()
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
