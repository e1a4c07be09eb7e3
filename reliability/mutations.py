"""How sound files become damaged and hostile ones: changes of bytes, values, programs and archives, still well formed.

Each function takes what it changes and a `random.Random`, whose state alone decides, and returns something new.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 8, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
TEXTS = (
    *("", "a", "é", "\x1b[2J", "a\nb", "\x00", "\ud800", "x" * 300, "9" * 5000, "NaN", "1e999", "../../escaped"),
    *("/tmp/budgetnet-escaped", "a/../../escaped", "~", "-", "--help", "%s", "{0.__class__}", "__class__", "__dict__"),
    *("__setstate__", "__reduce__", "__code__", "os.system", "builtins.eval", "this.x", "|O", "O", "<u1", "|u1", "<i8"),
    *("<M8[s]", "V8", "|S3", "U5", "latin1", "hex", "rot13", "idna", "data", "labels", "fine_labels", "ids", "C", "F"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 10, 32, 1e-30, 1e300, 10**30, 2**31, 2**63, 2**64),
    *(float("nan"), float("inf"), [], {}, [[]], [1], ["a"], {"a": 1}, [0, 0, 0], "auto", "residual", "resnet18"),
    *TEXTS,
)


def damage(raw: bytes, rng: Random) -> bytes:
    """A few bytes changed, removed, repeated, swapped or cut off; integers of the usual widths become unusual ones."""
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Structure lies at the ends more often than not.
        near = rng.choice((16, 128, len(content)))
        at = min(len(content), rng.randrange(near + 1))
        at = at if rng.random() < 0.6 else len(content) - at
        length = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 40)))
        match rng.randrange(8):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                content[at : at + 1] = bytes([content[at] ^ 1 << rng.randrange(8)]) if at < len(content) else b""
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * rng.choice((1, 1, 3, 100))
            case 4:
                content[at:at] = rng.randbytes(length)
            case 5:
                number = rng.choice(NUMBERS) & 2**64 - 1
                size = rng.choice((2, 4, 8))
                content[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
            case 6:
                del content[at:]
            case 7:
                other = rng.randrange(len(content) + 1)
                part = bytes(content[other : other + length])
                content[at : at + len(part)] = part
    return bytes(content)


def vary(value: Any, rng: Random) -> Any:
    """A value of JSON with one of its parts replaced, removed, repeated, renamed or put deeper."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = dict(value)
        match rng.randrange(12):
            case 0:
                del rest[key]
            case 1:
                rest[rng.choice(TEXTS)] = rest.pop(key)
            case 2:
                rest[rng.choice(TEXTS)] = rng.choice(VALUES)
            case _:
                rest[key] = vary(value[key], rng)
        return rest
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + value[at:] * rng.choice((2, 50))
            case _:
                return [*value[:at], vary(value[at], rng), *value[at + 1 :]]
    match rng.randrange(8):
        case 0 if isinstance(value, int | float):
            return rng.choice((-value, value + 1, value * 2, value * 10**12, float(value) + 0.5))
        case 1 if isinstance(value, str) and value:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice(TEXTS) + value[at + rng.randrange(2) :]
        case 2:
            deep = value
            for _ in range(rng.choice((1, 3, 30))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            return deep
        case 3:
            return str(value)
        case _:
            return rng.choice(VALUES)


def varied(value: Any, rng: Random) -> Any:
    """`vary`, one to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = vary(value, rng)
    return value


def as_json(value: Any, rng: Random) -> bytes:
    """JSON, now and then of what is none: numbers that are none, a key twice, depth without end, damaged text."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    match rng.randrange(12):
        case 0:
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 1:
            text = text.replace(
                rng.choice(("1", "0", "2", "[", "{")), rng.choice(("[" * 2000, "1" * 5000, "-Infinity")), 1
            )
        case 2:
            return damage(text.encode(errors="surrogatepass"), rng)
    return text.encode(errors="surrogatepass")


# Programs: pickles


def tokens(pickle: bytes) -> list[bytes]:
    """The opcodes of a pickle with their arguments, but for frames, which nothing needs."""
    places = [(opcode.name, place) for opcode, _, place in pickletools.genops(pickle)]
    ends = [place for _, place in places[1:]] + [len(pickle)]
    return [pickle[place:end] for (name, place), end in zip(places, ends, strict=True) if name != "FRAME"]


CALLS = (
    *("numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
    *("numpy._core.numeric _frombuffer", "_codecs encode", "builtins bytes", "__builtin__ bytes", "builtins getattr"),
    *("builtins eval", "os system", "posix system", "numpy load", "numpy ndarray.max", "collections OrderedDict"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage", "torch LongStorage"),
    *("torch UntypedStorage", "torch.storage TypedStorage", "torch Size", "torch.serialization _get_layout"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch device", "torch float32"),
    *("copyreg _reconstructor", "functools partial", "builtins bytearray", "builtins set", "builtins complex"),
)


def opcode(rng: Random) -> bytes:
    """Any opcode, with an argument that is mostly of the right form."""
    kind = rng.choice(pickletools.opcodes)
    code = kind.code.encode("latin1")
    if kind.arg is None:
        return code
    if kind.name in ("GLOBAL", "INST"):
        return code + rng.choice(CALLS).replace(" ", "\n").encode() + b"\n"
    if "PUT" in kind.name or "GET" in kind.name:
        number = rng.choice((0, 1, 2, 3, 5, 8, 13, 255, 10**9, -1) if rng.random() < 0.3 else range(12))
        if kind.arg.n == pickletools.UP_TO_NEWLINE:
            return code + b"%d\n" % number
        return code + (number % 256**kind.arg.n).to_bytes(kind.arg.n, "little")
    text = rng.choice(TEXTS).encode(errors="surrogatepass")
    if kind.arg.n >= 0:
        number = rng.choice(NUMBERS)
        return code + (number % 256 ** max(1, kind.arg.n)).to_bytes(max(1, kind.arg.n), "little")[: kind.arg.n]
    if kind.arg.n == pickletools.UP_TO_NEWLINE:
        return (
            code + rng.choice((text.split(b"\n")[0], b"%d" % rng.choice(NUMBERS), b"'a'", b"1e5", b"00", b"5L")) + b"\n"
        )
    width = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(kind.arg.n, 4)
    length = len(text) if rng.random() < 0.8 else rng.choice(NUMBERS)
    return code + (length % 256**width).to_bytes(width, "little") + text


def program(seed: Sequence[bytes], rng: Random) -> bytes:
    """A pickle whose opcodes are replaced, removed, repeated, put in and swapped."""
    found = list(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(found))
        match rng.randrange(8):
            case 0:
                del found[at : at + rng.choice((1, 1, 2, 5))]
            case 1:
                found[at:at] = [found[at]] * rng.choice((1, 2, 40))
            case 2:
                other = rng.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 3 | 4:
                found[at] = opcode(rng)
            case 5:
                found[at:at] = [opcode(rng) for _ in range(rng.choice((1, 2, 4)))]
            case 6:
                other = rng.randrange(len(found))
                found[at:at] = found[other : other + rng.randrange(1, 6)]
            case 7:
                found[at] = damage(found[at][:200], rng)
        if not found:
            break
    if rng.random() < 0.9:
        found.append(b".")
    return b"".join(found)


# Archives


def unzipped(raw: bytes) -> list[tuple[str, bytes]]:
    """The members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(members: Sequence[tuple[str, bytes]], rng: Random) -> bytes:
    """A zip archive, sometimes compressed, sometimes with fields that say something else than what is there."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.15 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.encode(errors="replace").decode() or "a")
            info.compress_type = method
            archive.NameToInfo.pop(info.filename, None)  # so that a name may be there twice without a warning
            archive.writestr(info, content)
    raw = bytearray(file.getvalue())
    if rng.random() < 0.35:
        # Of the headers of a member, of the directory, and of the end of it: offset and width of the fields.
        fields = {
            b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
            b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
            b"PK\x05\x06": ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
        }
        for _ in range(rng.choice((1, 1, 2))):
            magic = rng.choice(list(fields))
            places = (
                [at for at in range(len(raw)) if raw.startswith(magic, at)] if len(raw) < 4096 else _places(raw, magic)
            )
            if places:
                offset, width = rng.choice(fields[magic])
                at = rng.choice(places) + offset
                raw[at : at + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, "little")
    return bytes(raw)


def _places(raw: bytearray, magic: bytes) -> list[int]:
    found, at = [], raw.find(magic)
    while at >= 0:
        found.append(at)
        at = raw.find(magic, at + 1)
    return found


def tar_member(name: str, content: bytes, rng: Random | None = None) -> bytes:
    """A member of a tar archive; with `rng`, its header has a field changed, and a checksum that is right."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"%011o\0" % len(content)
    if rng:
        for _ in range(rng.choice((1, 1, 2))):
            match rng.randrange(7):
                case 0:
                    header[0:100] = rng.choice(TEXTS).encode(errors="surrogatepass")[:100].ljust(100, b"\0")
                case 1:
                    header[124:136] = b"%011o\0" % (rng.choice(NUMBERS) % 8**11)
                case 2:  # sizes that eleven digits are too few for
                    header[124:136] = struct.pack(">BxxxQ", rng.choice((0x80, 0xFF)), rng.choice(NUMBERS) % 2**64)
                case 3:
                    header[156] = rng.choice(b"0123456789xgLKSDMNVAX\0")
                case 4:
                    header[157:257] = rng.choice(TEXTS).encode(errors="surrogatepass")[:100].ljust(100, b"\0")
                case 5:
                    header[345:500] = rng.choice(TEXTS).encode(errors="surrogatepass")[:155].ljust(155, b"\0")
                case 6:
                    at = rng.randrange(500)
                    header[at] = rng.randrange(256)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def tar_records(rng: Random) -> bytes:
    """A member that holds records about the next one, in the form of POSIX.1-2001."""
    records = b""
    for _ in range(rng.choice((1, 1, 3))):
        keys = (
            "size",
            "path",
            "linkpath",
            "mtime",
            "GNU.sparse.map",
            "GNU.sparse.size",
            "GNU.sparse.major",
            "hdrcharset",
        )
        key, value = rng.choice(keys), str(rng.choice((*TEXTS, *NUMBERS, "1,2,3", "1"))).encode(errors="surrogatepass")
        record = b" %s=%s\n" % (key.encode(), value)
        length = len(record) + len(str(len(record) + 3))
        length = length if rng.random() < 0.9 else rng.choice(NUMBERS)
        records += b"%d" % length + record
    raw = bytearray(tar_member("pax", records))
    raw[156] = rng.choice(b"xxxg")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


# Images


def png_chunks(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: names and contents."""
    found, at = [], 8
    while at + 8 <= len(raw):
        length = struct.unpack_from(">I", raw, at)[0]
        found.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks: Sequence[tuple[bytes, bytes]], rng: Random) -> bytes:
    """A PNG with chunks changed, its checksums right, and its pixels compressed anew."""
    found = list(chunks)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(found))
        name, content = found[at]
        match rng.randrange(7):
            case 0 if name == b"IDAT":
                with contextlib.suppress(zlib.error):  # a change before this one may have left nothing to unpack
                    content = zlib.decompressobj().decompress(content, 1 << 16)
                found[at] = name, zlib.compress(damage(content, rng), 1)
            case 1:
                del found[at]
            case 2:
                kinds = (
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"PLTE",
                    b"tRNS",
                    b"iCCP",
                    b"zTXt",
                    b"iTXt",
                    b"eXIf",
                    b"gAMA",
                    b"IHDR",
                )
                body = (
                    zlib.compress(bytes(rng.choice((10, 1000, 100_000)))) if rng.random() < 0.5 else rng.randbytes(30)
                )
                found.insert(at, (rng.choice(kinds), rng.choice((b"", b"a\0\0", b"a\0\0\0\0\0")) + body))
            case 3 if name == b"IHDR" and len(content) == 13:
                size = rng.choice((0, 1, 31, 33, 2**16, 2**31 - 1, 2**32 - 1)), rng.choice((0, 1, 32, 2**20, 2**31 - 1))
                found[at] = (
                    name,
                    struct.pack(">II", *size) + content[8:]
                    if rng.random() < 0.5
                    else content[:8] + bytes(rng.choice(range(17)) for _ in range(5)),
                )
            case 4:
                found.insert(at, found[rng.randrange(len(found))])
            case _:
                found[at] = name, damage(content, rng)
        if not found:
            break
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in found:
        length = len(content) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**32
        parts.append(struct.pack(">I", length) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(parts)
