"""Pickles that are only data, and those that are not."""

import builtins
import collections
import contextlib
import io
import os
import pickle
import struct
import tracemalloc

import numpy
import pytest

from learned_optim import pickles, read_pickle
from tests.python2 import python2


def content_of(count):
    """As in the files of mini-ImageNet."""
    x = numpy.arange(count * 48, dtype=numpy.uint8).reshape(count, 4, 4, 3)
    return {"image_data": x, "class_dict": {"n01": list(range(count))}, "label2catname": {0: "n01"}}


def same(a, b):
    if isinstance(a, numpy.ndarray):
        return isinstance(b, numpy.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and (type(a) is type(b) or isinstance(a, numpy.generic))


def values():
    x = numpy.arange(120, dtype=numpy.uint8).reshape(5, 4, 3, 2)
    return {
        "arrays": [x, x.transpose(1, 0, 2, 3), numpy.asfortranarray(x), x.astype(">i4"), x > 3, numpy.zeros((0, 3))],
        "scalars": [numpy.int64(-7), numpy.float32(0.5)],
        "numbers": [1, -1, 255, 256, 65536, 2**31, -(2**40), 10**50, True, False, None, 1.5, -0.25],
        "text": ["", "x\u1234", "y\n'\"\\", "\xe9", b"", b"ab\xff", "long" * 100],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "dicts": [collections.OrderedDict([("b", 1), ("a", [2])]), collections.defaultdict(list, {3: [1]}), {}],
        "again": [x, "x\u1234", x],
        "many": list(range(3000)),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_is_read_as_by_python(tmp_path, protocol):
    content = pickle.dumps(values(), protocol)
    (tmp_path / "file").write_bytes(content)
    result = read_pickle(tmp_path / "file")
    assert same(pickle.loads(content), result)
    assert result["again"][0] is result["again"][2] is result["arrays"][0]


@pytest.mark.parametrize("protocol", range(3))
def test_data_of_python_2(tmp_path, protocol):
    content = python2(content_of(9) | {"raw": bytes(range(256))}, protocol)
    (tmp_path / "file").write_bytes(content)
    assert b"numpy.core.multiarray" in content
    result = read_pickle(tmp_path / "file")
    assert same(content_of(9) | {"raw": bytes(range(256)).decode("latin1")}, result)


def reduced(function, *arguments):
    class Reduced:
        def __reduce__(self):
            return function, arguments

    return Reduced()


class Plain:
    pass


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return "file:1" if value is Plain else None


def persistent():
    file = io.BytesIO()
    Persistent(file).dump([Plain])
    return file.getvalue()


SYSTEM = reduced(os.system, "touch executed")
EVAL = "__import__('os').system('touch executed')"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
UINT8 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
OBJECTS = b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR"
COPIED = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 1000) + b"a" * 1000 + b"q\x01"
EMPTY = RECONSTRUCT + b"(cnumpy\nndarray\n(K\x00tU\x01btR"
ATTACKS = {
    **{f"system, {i}": (lambda i=i: pickle.dumps([SYSTEM], i), "'posix.system'") for i in range(6)},
    "system by INST": (lambda: b"(S'touch executed'\nios\nsystem\n.", "'os.system'"),
    "system by OBJ": (lambda: b"(cos\nsystem\nS'touch executed'\no.", "'os.system'"),
    "eval": (lambda: pickle.dumps(reduced(eval, EVAL)), "'builtins.eval'"),
    "exec of Python 2": (lambda: b"c__builtin__\nexec\n(S'1'\ntR.", "'__builtin__.exec'"),
    "getattr": (lambda: pickle.dumps(reduced(getattr, [], "append")), "'builtins.getattr'"),
    "import": (lambda: pickle.dumps(reduced(builtins.__import__, "os")), "'builtins.__import__'"),
    "dotted": (lambda: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile_\x93.", "'numpy.ndarray.tofile_'"),
    "numpy.load": (lambda: pickle.dumps(numpy.load), "'numpy.load'"),
    "a long name": (lambda: b"c" + b"a" * 1000 + b"\nb\n.", "'a{60}.b'"),
    "a function in a list": (lambda: pickle.dumps([print]), "'builtins.print'"),
    "an object": (lambda: pickle.dumps(Plain()), "test_pickles.Plain"),
    "an object of a known name": (lambda: b"\x80\x02ccollections\nOrderedDict\n)\x81.", "an object of a class"),
    "persistent": (persistent, "a persistent id"),
    "extension": (lambda: b"\x80\x02\x82\x01.", "a registered extension"),
    "a buffer": (lambda: b"\x80\x05\x97.", "a buffer outside of the file"),
    "a set": (lambda: pickle.dumps({1}, 4), "a set"),
    "an array of objects": (lambda: pickle.dumps(numpy.array([SYSTEM], dtype=object), 2), "'posix.system'|'O8'"),
    "an array of lists": (lambda: pickle.dumps(numpy.array([None, "a"], dtype=object)), "an array of the type 'O8'"),
    "objects in an array": (lambda: EMPTY + b"(K\x01(K\x01t" + OBJECTS + b"I00\n]tb.", "an array of the type 'O8'"),
    "a list in an array": (lambda: EMPTY + b"(K\x01(K\x01t" + UINT8 + b"I00\n]tb.", "not made of numbers"),
    "an address in an array": (lambda: EMPTY + b"(K\x01(K\x01tU\x01BI00\nU\x01xtb.", "not made of numbers"),
    "fields": (lambda: pickle.dumps(numpy.zeros(2, [("a", "u1"), ("b", "O")])), "an array of the type 'V9'"),
    "text in an array": (lambda: pickle.dumps(numpy.array(["a"])), "an array of the type 'U1'"),
    "a type of fields": (lambda: UINT8 + b"(K\x03U\x01|NU\x01a}J\xff\xff\xff\xffK\x01K\x3ftb.", "a composed type"),
    "a subclass": (lambda: pickle.dumps(numpy.ma.zeros(3)), "numpy.ma"),
    "another class": (lambda: RECONSTRUCT + b"(c__builtin__\nlist\n(K\x00tU\x01btR.", "an array of a class of its own"),
    "a call of ndarray": (lambda: b"cnumpy\nndarray\n((K\x7fttR.", "a call of what is only an argument"),
    "a changed function": (lambda: RECONSTRUCT + b"(N}U\x04callNstb.", "changes in a _Function"),
    "a changed list": (lambda: b"](N}tb.", "changes in a list"),
    "an encoding": (lambda: b"c_codecs\nencode\n(U\x01aU\x04zlibtR.", "another encoding"),
    "deep tuples as a key": (lambda: b"})" + b"\x85" * 10**5 + b"Ns.", "a key that is no .*, but tuple"),
    "numbers of one hash": (lambda: pickle.dumps({2**61 - 1: 1, 2**62 - 2: 2}), "a key that is no .*, but int"),
    "endless copies": (lambda: COPIED + b"h\x00h\x01\x85R" * 50 + b".", "more memory than it holds data"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_data_is_refused_and_not_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, message = ATTACKS[name]
    (tmp_path / "file").write_bytes(make())
    with pytest.raises(ValueError, match=f"pickle .*file is refused: it asks for .*({message})") as caught:
        read_pickle(tmp_path / "file")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_the_attacks_would_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(ATTACKS["eval"][0]())
    assert (tmp_path / "executed").exists()


DAMAGES = {
    "empty": b"",
    "text": b"this is no pickle\n",
    "no end": b"N",
    "nothing": b".",
    "cut line": b"cos",
    "a length beyond the end": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a length below 0": b"T\xff\xff\xff\xffabc.",
    "unknown memory": b"h\x07.",
    "no mark": b"t.",
    "no quotes": b"Sabc\n.",
    "an entry of a list": b"]NNs.",
    "an element of a dict": b"}Na.",
    "half an entry": b"(Nd.",
    "a shape of too much": EMPTY + b"(K\x01(J\xff\xff\xff\x7ft" + UINT8 + b"I00\nU\x01xtb.",
    "a shape below 0": EMPTY + b"(K\x01(J\xff\xff\xff\xfft" + UINT8 + b"I00\nU\x01xtb.",
    "a call of text": b"U\x01a)R.",
    "too many arguments": b"c_codecs\nencode\n(NNNNtR.",
    "no pairs": b"ccollections\nOrderedDict\n((K\x01ttR.",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(tmp_path, name):
    (tmp_path / "file").write_bytes(DAMAGES[name])
    with pytest.raises(ValueError, match=r"pickle .*file is (damaged: .*; fetch it again|refused)"):
        read_pickle(tmp_path / "file")


@pytest.mark.parametrize("make", [pickle.dumps, python2])
def test_any_damage_is_either_seen_or_harmless(tmp_path, make):
    content = make(content_of(1))
    for i in range(len(content)):
        for value in (46, 82, content[i] ^ 1):
            (tmp_path / "file").write_bytes(content[:i] + bytes([value]) + content[i + 1 :])
            with contextlib.suppress(ValueError):
                read_pickle(tmp_path / "file")


def test_a_small_file_takes_little_memory(tmp_path):
    # Python's own reader makes room for as many values as the number under which the first one is remembered.
    (tmp_path / "file").write_bytes(b"Nr\xff\xff\xff\xff\x80\x04\x8e" + struct.pack("<Q", 2**34) + b".")
    tracemalloc.start()
    with pytest.raises(ValueError, match="is damaged"):
        read_pickle(tmp_path / "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_endless_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_INSTRUCTIONS", 100)
    (tmp_path / "file").write_bytes(b"N0" * 60 + b"N.")
    with pytest.raises(ValueError, match="it asks for more than 100 instructions"):
        read_pickle(tmp_path / "file")


def test_a_pickle_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "file")
