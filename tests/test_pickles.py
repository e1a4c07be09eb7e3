"""Tricks against unpicklers that admit some names: none may run anything, take memory or time, or last.

After what has been published about restricted unpicklers and scanners of pickles: Huang et al. 2022, "Pain Pickle";
Liu et al. 2025, arXiv:2508.19774; the advisories of fickling, modelscan and picklescan; PyTorch's CVE-2025-32434 and
CVE-2026-24747.
"""

import copyreg
import hashlib
import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetnet.checkpoint import load_classifier, load_state
from budgetnet.errors import CheckpointError, DataError
from budgetnet.pickles import unpickle

SMALL = "wrn_10_1"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """A call by a protocol that has no stack of names."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def touch(marker) -> bytes:
    return text(f"touch {marker}")


def dtype(spec: bytes, *state: bytes) -> bytes:
    made = b"cnumpy\ndtype\n" + spec + b"\x89\x88\x87R"
    return made + b"(" + b"".join(state) + b"tb" if state else made


RECONSTRUCT = b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
BYTE = dtype(text("u1"))
POISON = b"\x80\x04"


def running(marker) -> dict[str, bytes]:
    """Programs that do run something where they are unpickled freely: each leaves a marker."""
    run = touch(marker)
    system = call("os", "system", run)
    return {
        "GLOBAL and REDUCE": b"\x80\x02" + system + b".",
        "STACK_GLOBAL": POISON + stack_global("os", "system") + run + b"\x85R.",
        "INST": f"(S'touch {marker}'\nios\nsystem\n.".encode(),
        "OBJ": b"(cos\nsystem\n" + run + b"o.",
        "a dotted name": POISON + stack_global("os", "path.os.system") + run + b"\x85R.",
        "a name in escapes": b"\x80\x04V\\u006fs\nV\\u0073ystem\n\x93" + run + b"\x85R.",
        "a name of Python 2": b"\x80\x02"
        + call("__builtin__", "eval", text(f"open({str(marker)!r}, 'w').close()"))
        + b".",
        "a chain of getattr": b"\x80\x02cbuiltins\ngetattr\n"
        + call("builtins", "__import__", text("os"))
        + text("system")
        + b"\x86R"
        + run
        + b"\x85R.",
        "a call as an argument of a call": b"\x80\x02"
        + call("builtins", "len", call("builtins", "str", system))
        + b".",
        "a call whose result is dropped": b"\x80\x02" + system + b"0}.",
        "a call and then a broken end": b"\x80\x02" + system + b"\xff\xff",
        "a call as a key": b"\x80\x02}" + system + b"K\x01s.",
        "a call before the array that is wanted": b"\x80\x02"
        + system
        + b"0"
        + pickle.dumps({b"data": np.zeros(3)}, 2)[2:],
        "names from the memo, filled in another order": b"\x80\x04"
        + (text("os") + b"p7\n0" + text("system") + b"p9\n0" + text("numpy") + b"\x940" + text("dtype") + b"\x940")
        + b"g7\ng9\n\x93"
        + run
        + b"\x85R.",
        "names as attributes of an admitted one": b"\x80\x02cnumpy\nprod\nN}"
        + (text("spare") + text("os") + b"s\x86b0" + b"cnumpy\nprod\nN}" + text("more") + text("system") + b"s\x86b0")
        + b"\x80\x04"
        + (stack_global("numpy", "prod.spare") + stack_global("numpy", "prod.more") + b"\x93")
        + run
        + b"\x85R.",
        "BUILD by a __setstate__ that was set": b"\x80\x02cbuiltins\nopen\n0cfunctools\npartial\ncos\nsystem\n\x85R"
        + b"cfunctools\npartial\n0"
        + run
        + b"\x85R.",
        "a pickle in a pickle": b"\x80\x02"
        + call(
            "pickle", "loads", b"B" + struct.pack("<I", len(b"\x80\x02" + system + b".")) + b"\x80\x02" + system + b"."
        )
        + b".",
        "a scalar of objects": pickle.dumps({b"data": _Scalar(marker)}, 4),
        "an array of objects": pickle.dumps({b"data": np.array([_Touch(marker)], object)}, 4),
    }


class _Touch:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class _Scalar:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        from numpy._core.multiarray import scalar

        return scalar, (np.dtype("O"), _Touch(self.marker))


@pytest.mark.parametrize("name", running("x"))
def test_a_program_that_would_run_something_is_refused_and_runs_nothing(name, tmp_path):
    marker = tmp_path / "marker"
    program = running(marker)[name]
    with pytest.raises(DataError) as caught:
        unpickle(Path("evil.pkl"), program)
    assert str(caught.value).startswith("evil.pkl: found ")
    assert not marker.exists()
    try:
        pickle.loads(program, encoding="bytes")
    except Exception as error:
        assert marker.exists() or name == "a scalar of objects", error  # noqa: PT017
    assert marker.exists()  # so that it is a trick


# What free unpicklers call, by the lists of scanners; none is among ours.
NAMES = re.findall(
    r"\S+",
    """
    os.system posix.system nt.system os.popen os.execv os.spawnl subprocess.Popen subprocess.check_output
    _posixsubprocess.fork_exec pty.spawn commands.getoutput builtins.eval builtins.exec builtins.compile
    builtins.getattr builtins.setattr builtins.open builtins.__import__ builtins.globals builtins.vars
    builtins.breakpoint builtins.help builtins.print builtins.bytearray builtins.type builtins.object builtins.apply
    __builtin__.apply __builtin__.file io.open io.FileIO _io.FileIO codecs.open importlib.import_module
    importlib.__import__ pkgutil.resolve_name runpy.run_path runpy._run_code imp.load_source pydoc.locate
    pydoc.pipepager zipimport.zipimporter code.InteractiveInterpreter codeop.compile_command types.CodeType
    types.FunctionType marshal.loads pickle.loads _pickle.loads shelve.open dill.loads cloudpickle.loads joblib.load
    yaml.unsafe_load jsonpickle.decode functools.partial functools.reduce operator.methodcaller operator.attrgetter
    operator.itemgetter copyreg._reconstructor copyreg.__newobj__ copy_reg._reconstructor copyreg.add_extension
    inspect.getattr_static cProfile.run cProfile.runctx profile.Profile.run timeit.timeit timeit.main trace.Trace.run
    bdb.Bdb.run pdb.run doctest.debug_script unittest.mock._importer ctypes.CDLL ctypes.util._findLib_gcc _ctypes.dlopen
    cffi.FFI webbrowser.open antigravity.geohash asyncio.unix_events._UnixSubprocessTransport._start
    concurrent.futures.ThreadPoolExecutor multiprocessing.Process idlelib.run.Executive.runcode
    idlelib.pyshell.ModifiedInterpreter.runcommand idlelib.autocomplete.AutoComplete.fetch_completions
    lib2to3.pgen2.pgen.ParserGenerator.make_label lib2to3.pgen2.grammar.Grammar.loads ensurepip._run_pip pip.main
    venv.create uuid._get_command_stdout platform.popen _aix_support._read_cmd_output _osx_support._read_output
    site.execsitecustomize distutils.file_util.write_file shutil.rmtree shutil.copy pathlib.Path.write_text
    tempfile.mktemp fileinput.FileInput logging.config.listen logging.FileHandler socket.create_connection
    urllib.request.urlopen http.client.HTTPSConnection requests.api.get ssl.get_server_certificate smtplib.SMTP
    linecache.getline sys.exit sys.settrace sys._getframe signal.raise_signal numpy.load numpy.fromfile numpy.memmap
    numpy.save numpy.ndarray.tofile numpy.DataSource numpy.core.memmap.memmap numpy.testing._private.utils.runstring
    numpy.testing._private.utils.rundocs numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran._eval_length
    numpy.f2py.capi_maps.getinit numpy.lib.npyio.load numpy.lib.format.read_array numpy.ma.core._mareconstruct
    numpy.core.records.fromfile numpy.random._pickle.__generator_ctor numpy.core.multiarray.frombuffer
    numpy._core.multiarray.fromfile numpy._core.multiarray._reconstruct.__globals__ numpy.ndarray.__class__
    numpy.dtype.__init__ scipy.io.loadmat scipy.sparse._csr.csr_matrix sklearn.externals.joblib.load pandas.read_pickle
    pandas.eval torch.load torch.hub.load torch.jit.load torch.storage._load_from_bytes torch._utils._rebuild_tensor_v2
    torch.nn.Module torch._dynamo.guards.GuardBuilder.get torch.utils.bottleneck.__main__.run_cprofile
    torch.fx.experimental.symbolic_shapes.eval torch.utils.collect_env.run torch.distributed.rpc.internal._run_function
    torch.serialization.add_safe_globals torch.utils._config_module.load_config
    torch.utils.data.datapipes.utils.decoder.basichandlers tensorflow.keras.models.load_model onnx.load _codecs.decode
    codecs.encode encodings.hex_codec.hex_decode \uff4fs.system os\u200b.system OS.SYSTEM
""",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_other_name_than_those_of_arrays_is_looked_up(name):
    module, _, rest = name.rpartition(".")
    first, _, dotted = name.partition(".")
    programs = [
        b"\x80\x04" + stack_global(module, rest),
        b"\x80\x04" + stack_global(first, dotted),
        b"\x80\x02" + f"c{module}\n{rest}\n".encode(),
    ]
    for program in programs:
        for end in (b".", b")R.", b")\x81.", b"}\x81.", b"N}\x92."):
            with pytest.raises(DataError, match=r"a call of |the opcode "):
                unpickle(Path("evil.pkl"), program + end)


def quiet() -> dict[str, bytes]:
    """Programs that run nothing, and would take memory or time, leave something behind, or make what is no data."""
    proto = b"\x80\x05"
    laughs = b"K\x01\x85q\x00" + b"".join(b"0" + bytes([104, i, 104, i, 134, 113, i + 1]) for i in range(200))
    doubled = b"K\x01\x85" + b"2\x86" * 200
    lists = b"]q\x00K\x01a" + b"".join(
        b"]" + bytes([113, i + 1]) + b"(" + bytes([104, i]) * 2 + b"e" for i in range(200)
    )
    number = b"\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20)
    return {
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x01.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"Pabc\n.",
        "BINPERSID": b"\x80\x02(X\x07\x00\x00\x00storageK\x01tQ.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n)}\x92.",
        "OBJ of an admitted name": b"(cnumpy\ndtype\nX\x02\x00\x00\x00u1o.",
        "INST of an admitted name": b"(S'u1'\ninumpy\ndtype\n.",
        "DUP": b"\x80\x02K\x012.",
        "STRING": b"S'a'\n.",
        "NEXT_BUFFER": proto + b"\x97.",
        "READONLY_BUFFER": proto + b"C\x01a\x98.",
        "no opcode": b"\x80\x02\xff.",
        "PROTO of the future": b"\x80\xff}.",
        "PROTO without end": b"\x80\x02" * 100_000,
        "only a PROTO": b"\x80\x04",
        "STOP at once": b".",
        "POP of nothing": b"00.",
        "a mark that is missing": b"\x80\x02}u.",
        "REDUCE by a list": b"\x80\x02cnumpy\ndtype\n]" + text("u1") + b"aR.",
        "REDUCE of a text": b"\x80\x02" + text("os") + b")R.",
        "REDUCE with thousands of arguments": b"\x80\x02cnumpy\ndtype\n(" + b"K\x01" * 5000 + b"tR.",
        "BUILD of the class of arrays": b"\x80\x02cnumpy\nndarray\nN}X\x0c\x00\x00\x00__setstate__Ns\x86b.",
        "BUILD of a function": b"\x80\x02cnumpy._core.multiarray\nscalar\nN}X\x08\x00\x00\x00__code__Ns\x86b.",
        "BUILD of a function's __dict__": b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
        "BUILD of a dict": b"\x80\x02}}b.",
        "BUILD of a list": b"\x80\x02]}b.",
        "BUILD of a type with attributes": b"\x80\x02" + BYTE + b"N}X\x05\x00\x00\x00dtypeNs\x86b.",
        "a function as the content": b"\x80\x02c_codecs\nencode\n.",
        "items in a text": b"\x80\x02" + text("a") + b"K\x01a.",
        "items in an array": b"\x80\x02" + ARRAY + b"K\x01K\x01s.",
        "items in a class": b"\x80\x02cnumpy\nndarray\nX\x01\x00\x00\x00aK\x01s.",
        "an odd number of items": b"\x80\x02}(K\x01K\x02K\x03u.",
        "a key that cannot be one": b"\x80\x02}]K\x01s.",
        "a memo of gigabytes": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a memo of terabytes by text": b"]p1099511627776\n.",
        "a negative memo": b"]p-1\n.",
        "a memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
        "laughs by a key": b"\x80\x02}" + laughs + b"K\x01s.",
        "laughs by keys": b"\x80\x02}(" + laughs + b"K\x01u.",
        "laughs by DICT": b"\x80\x02(" + laughs + b"K\x01d.",
        "laughs in a set": b"\x80\x04\x8f(" + laughs + b"\x90.",
        "laughs in a frozenset": b"\x80\x04(" + laughs + b"\x91.",
        "laughs by DUP": b"\x80\x02}" + doubled + b"K\x01s.",
        "laughs of lists as an array": b"\x80\x02" + ARRAY + lists + b"b.",
        "a deep tuple as a key": b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s.",
        "a number of a million bytes as a key, often": b"\x80\x02}"
        + number
        + b"q\x00K\x01s"
        + b"h\x00K\x01s" * 50_000
        + b".",
        "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "a long number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a number that no text can be made of": b"\x80\x02" + number + b".",
        "a number in hexadecimal digits": b"I0x" + b"f" * 5000 + b"\n.",
        "LONG1 beyond the end": b"\x80\x02\x8a\xff\x01.",
        "LONG4 of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "LONG4 of less than nothing": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "BINSTRING of less than nothing": b"T\xff\xff\xff\xff.",
        "BINBYTES of gigabytes": b"\x80\x03B\xff\xff\xff\xff.",
        "BINBYTES8 of exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        "BINUNICODE8 of exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        "BINUNICODE8 of more than a size": b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b".",
        "BYTEARRAY8 of a terabyte": proto + b"\x96" + struct.pack("<Q", 2**40) + b".",
        "FRAME of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        "FRAME that ends within an opcode": b"\x80\x04\x95" + struct.pack("<Q", 3) + text("abcdef") + b".",
        "FRAME within a frame": b"\x80\x04\x95" + struct.pack("<Q", 12) + b"\x95" + struct.pack("<Q", 1) + b"}}}}.",
        "text that is no UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
        "a name of lines": b"\x80\x04" + stack_global("a\nb\x1b[2J", "c") + b".",
        "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
        "encode to another codec": b"\x80\x02" + call("_codecs", "encode", text("a"), text("hex")) + b".",
        "encode a text again and again": b"\x80\x02"
        + (
            text("a" * 4096)
            + b"q\x000"
            + text("latin1")
            + b"q\x010]("
            + b"c_codecs\nencode\nh\x00h\x01\x86R" * 100
            + b"e."
        ),
        "bytes of a number": b"\x80\x02" + call("builtins", "bytes", b"J\xff\xff\xff\x7f") + b".",
        "a type of objects": b"\x80\x02}K\x01" + dtype(text("O8")) + b"s.",
        "a type of records": b"\x80\x02}K\x01" + dtype(b"](" + text("a") + text("u1") + b"\x86e") + b"s.",
        "a type of void": b"\x80\x02}K\x01" + dtype(text("V1000000000")) + b"s.",
        "a type of dates": b"\x80\x02}K\x01" + dtype(text("M8[s]")) + b"s.",
        "a type with fields in its state": b"\x80\x02}K\x01"
        + dtype(text("u1"), b"K\x03", text("|"), b"N", b"(K\x01t", b"}", b"K\x01", b"K\x01", b"K\x00")
        + b"s.",
        "a type with a state that is short": b"\x80\x02}K\x01" + dtype(text("u1"), b"K\x03") + b"s.",
        "a type in another byte order": b"\x80\x02}K\x01"
        + dtype(text("i4"), b"K\x03", text("?"), b"N", b"N", b"N")
        + b"s.",
        "an array of a type's kind": RECONSTRUCT + b"cnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
        "an array of a kind by text": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n"
        + text("O")
        + b"K\x00\x85C\x01b\x87R.",
        "an array of a subclass": RECONSTRUCT + b"cnumpy\nmemmap\nK\x00\x85C\x01b\x87R.",
        "an array by its own constructor": b"\x80\x02" + call("numpy", "ndarray", b"J\xff\xff\xff\x7f\x85") + b".",
        "an array without a state": b"\x80\x02}" + text("data") + ARRAY + b"s.",
        "an array with a short state": b"\x80\x02" + ARRAY + b"(K\x01tb.",
        "an array smaller than its shape": b"\x80\x02" + ARRAY + b"(K\x01M\xff\xff\x85" + BYTE + b"\x89C\x01atb.",
        "an array of negative shape": b"\x80\x02"
        + ARRAY
        + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"
        + BYTE
        + b"\x89C\x01atb.",
        "an empty array of an endless shape": b"\x80\x02"
        + (ARRAY + b"(K\x01K\x00\x8a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x86" + BYTE + b"\x89C\x00tb."),
        "an array of many dimensions": b"\x80\x02"
        + ARRAY
        + b"(K\x01("
        + b"K\x01" * 40
        + b"t"
        + BYTE
        + b"\x89C\x01atb.",
        "an array of a list": b"\x80\x02" + ARRAY + b"(K\x01K\x01\x85" + BYTE + b"\x89]K\x01atb.",
        "a scalar larger than its bytes": b"\x80\x02"
        + call("numpy._core.multiarray", "scalar", dtype(text("f8")), b"C\x01a")
        + b".",
        "a scalar of text": b"\x80\x02"
        + call("numpy._core.multiarray", "scalar", dtype(text("S9")), b"C\x09" + b"a" * 9)
        + b".",
        "a view in another order": b"\x80\x02"
        + call("numpy._core.numeric", "_frombuffer", b"C\x01a", BYTE, b"K\x01\x85", text("K"), b"K\x00\x85")
        + b".",
        "a view of a bytearray of nothing": proto
        + call("numpy._core.numeric", "_frombuffer", b"\x96" + bytes(8), BYTE, b"M\xff\xff\x85", text("C"))
        + b".",
    }


@pytest.mark.parametrize("name", quiet())
def test_a_program_that_would_take_memory_or_time_or_last_is_refused_in_little_of_them(name):
    program = quiet()[name]
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(DataError) as caught:
            unpickle(Path("evil.pkl"), program)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("evil.pkl: found ")
    assert peak < 2_000_000 + 64 * len(program)
    assert time.process_time() - started < 60  # not a measurement: laughs would go on for longer than there are stars


@pytest.mark.parametrize("opcode", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_an_extension_that_somebody_registered_is_not_called(opcode, tmp_path):
    copyreg.add_extension("os", "system", 240)
    try:
        program = b"\x80\x02" + opcode + touch(tmp_path / "marker") + b"\x85R."
        with pytest.raises(DataError, match="the opcode EXT"):
            unpickle(Path("evil.pkl"), program)
        assert not (tmp_path / "marker").exists()
        pickle.loads(program)
        assert (tmp_path / "marker").exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_what_follows_the_end_is_never_looked_at(tmp_path):
    second = running(tmp_path / "marker")["STACK_GLOBAL"]
    assert unpickle(Path("two.pkl"), pickle.dumps({"a": 1}) + second) == {"a": 1}
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_data_is_read_as_pickle_reads_it(protocol):
    shared = (3, 4)
    content = {
        "text": ["", "é" * 300, "\ud800"],
        b"bytes": [b"", b"\xff" * 300, bytearray(b"ab") if protocol > 4 else b"ab"],
        "numbers": [0, 255, 65_535, -1, 2**31, -(2**40), 2**2000, 0.5, float("inf"), True, None],
        "shared": [shared] * 50,
        7: {(1, "a"): {1, 2}, None: frozenset([b"a"])} if protocol > 3 else {},
        0.5: [[[]], ((), ((),)), {}],
    }
    assert unpickle(Path("data.pkl"), pickle.dumps(content, protocol)) == content


# Checkpoints: what torch's reader of weights alone would see


def packed(program: bytes, **more: bytes) -> bytes:
    """A checkpoint of torch's with a pickle of ours in it."""
    file = io.BytesIO()
    members = {"data.pkl": program, "byteorder": b"little", "version": b"3\n", "data/0": bytes(16)} | more
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def legacy(program: bytes, keys: bytes = b"\x80\x02].") -> bytes:
    """A checkpoint as torch wrote them before 1.6, with a pickle of ours in it."""
    magic, version, machine = (
        pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    return magic + version + machine + program + keys


def refused(raw: bytes, folder) -> str:
    """Check that both readers of checkpoints refuse what is in `raw`, and return what one says."""
    (folder / "c.pth").write_bytes(raw)
    (folder / "last.ckpt").write_bytes(raw + hashlib.sha256(raw).digest())
    with pytest.raises(CheckpointError):
        load_state(folder / "last.ckpt")
    with pytest.raises(CheckpointError) as caught:
        load_classifier(folder / "c.pth", SMALL)
    return str(caught.value)


@pytest.mark.parametrize("form", [packed, legacy, bytes])
@pytest.mark.parametrize("name", running("x"))
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(name, form, tmp_path):
    refused(form(running(tmp_path / "marker")[name]), tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", [packed, legacy])
@pytest.mark.parametrize("name", quiet())
def test_a_checkpoint_that_would_take_memory_or_time_is_refused(name, form, tmp_path):
    refused(form(quiet()[name]), tmp_path)


def storage(kind: str = "FloatStorage", key: str = "0", elements: bytes = b"K\x04", more: bytes = b"") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + elements + more + b"tQ"


def tensor(
    shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00", stored: bytes = b""
) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", stored or storage(), offset, shape, stride, b"\x89", b"N")


def held(value: bytes) -> bytes:
    return b"\x80\x02}" + text("net") + b"}" + text("w") + value + b"ss."


HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"
TORCH = {
    "a set item of a tensor": held(tensor() + b"K\x00K\x01s"),
    "set items of a storage": held(storage() + b"(K\x00K\x01u"),
    "a state of a tensor": held(tensor() + b"(" + storage() + b"K\x00K\x04\x85K\x01\x85tb"),
    "a state of a storage": held(storage() + b"N}" + text("elements") + HUGE + b"s\x86b"),
    "a storage of a terabyte": held(tensor(stored=storage(elements=HUGE))),
    "a storage of less than nothing": held(tensor(stored=storage(elements=b"J\xff\xff\xff\xff"))),
    "a storage by a fraction": held(tensor(stored=storage(elements=b"G" + bytes(8)))),
    "storages that are one too many": held(
        b"(" + b"".join(tensor(stored=storage(key=str(i), elements=b"M\xff\x00")) for i in range(30)) + b"l"
    ),
    "a storage by another name": held(tensor(stored=storage().replace(b"FloatStorage", b"HalfTensorX"))),
    "a tensor larger than its storage": held(tensor(shape=HUGE + b"\x85")),
    "a tensor of one number, everywhere": held(tensor(shape=HUGE + b"\x85", stride=b"K\x00\x85")),
    "a tensor of no storage": held(tensor(stored=b"N")),
    "a tensor of negative shape": held(tensor(shape=b"J\xff\xff\xff\xff\x85")),
    "a tensor outside its storage": held(tensor(offset=b"M\xff\xff")),
    "a tensor of another stride": held(tensor(stride=b"M\xff\xff\x85")),
    "a module and its source": held(
        b"(" + text("module") + b"ccollections\nOrderedDict\n" + text("a") + text("b") + b"tQ"
    ),
    "a reference by text": held(text("storage") + b"Q"),
    "a reference by number": held(b"K\x01Q"),
    "bytes that torch would load": held(call("torch.storage", "_load_from_bytes", b"U\x01a")),
    "a tensor of a kind by name": held(
        call("torch._utils", "_rebuild_from_type_v2", b"ctorch._utils\n_rebuild_tensor_v2\n")
    ),
    "a parameter of no tensor": held(
        call("torch._utils", "_rebuild_parameter", b"K\x01", b"\x88", b"ccollections\nOrderedDict\n)R")
    ),
    "a sparse tensor": held(call("torch._utils", "_rebuild_sparse_tensor", b"ctorch\nsparse_coo\n", tensor())),
    "a quantised tensor": held(call("torch._utils", "_rebuild_qtensor", storage())),
    "a tensor on a device by name": held(call("torch", "device", text("meta"))),
    "a dictionary of a dictionary": held(call("collections", "OrderedDict", b"]")),
    "a counter": held(call("collections", "Counter", text("a" * 100))),
    "a bytearray of a terabyte": held(call("builtins", "bytearray", HUGE)),
    "a set": held(call("builtins", "set", b"]")),
    "a scalar of NumPy": held(call("numpy.core.multiarray", "scalar", dtype(text("f8")), b"U\x08" + bytes(8))),
}


@pytest.mark.parametrize("form", [packed, legacy])
@pytest.mark.parametrize("name", TORCH)
def test_a_checkpoint_of_what_is_no_weights_is_refused(name, form, tmp_path):
    program = TORCH[name]
    if form is legacy:  # where a reference has one part more
        program = program.replace(b"tQ", b"NtQ")
    refused(form(program), tmp_path)


def test_a_checkpoint_whose_tensors_fit_is_read(tmp_path):
    raw = packed(b"\x80\x02}" + text("format") + b"K\x01s" + text("w") + tensor() + b"s.")
    (tmp_path / "last.ckpt").write_bytes(raw + hashlib.sha256(raw).digest())
    assert torch.equal(load_state(tmp_path / "last.ckpt")["w"], torch.zeros(4))


GOOD = held(tensor())
ARCHIVES = {
    "two pickles of one name": lambda evil: packed(GOOD)[:0] + _twice(evil),
    "a second pickle for another reader": lambda evil: packed(GOOD, **{"constants.pkl": evil}),
    "a program of TorchScript": lambda evil: packed(GOOD, **{"constants.pkl": b"\x80\x02).", "code/x.py": b"x = 1"}),
    "an archive before the archive": lambda evil: packed(evil) + packed(GOOD),
    "an archive after a checkpoint": lambda evil: legacy(evil) + packed(GOOD),
    "a pickle before the archive": lambda evil: evil + packed(GOOD),
    "a directory that names another part": lambda evil: _renamed(evil),
    "a tar": lambda evil: _tar(evil),
}


def _twice(evil: bytes) -> bytes:
    file = io.BytesIO(packed(GOOD))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data.pkl", evil)
    return file.getvalue()


def _renamed(evil: bytes) -> bytes:
    """The members' own headers swap two names, and the directory does not."""
    raw = packed(GOOD, **{"dato.pkl": evil})
    end = raw.index(b"PK\x01\x02")
    return raw[:end].replace(b"data.pkl", b"datx.pkl").replace(b"dato.pkl", b"data.pkl") + raw[end:]


def _tar(evil: bytes) -> bytes:
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            archive.addfile(info, io.BytesIO(evil))
    return file.getvalue()


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_readers_may_see_differently_runs_nothing(name, tmp_path):
    raw = ARCHIVES[name](running(tmp_path / "marker")["GLOBAL and REDUCE"])
    refused(raw, tmp_path)
    assert not (tmp_path / "marker").exists()
