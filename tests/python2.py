"""Pickles as Python 2 writes them."""

import io
import pickle
import struct


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 writes: text and bytes are one type, and the modules have their old names."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file, protocol):
        super().__init__(file, protocol, fix_imports=True)

    def save_text(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        if self.bin:
            short = len(content) < 256
            self.write((b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))) + content)
        else:
            self.write(b"S" + repr(content)[1:].encode() + b"\n")
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_text


def python2(value, protocol=2):
    file = io.BytesIO()
    Python2Pickler(file, protocol).dump(value)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")
