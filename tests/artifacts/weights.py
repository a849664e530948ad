"""Weight files as training writes them, built from bytes."""

import io
import json
import random
import zipfile

KIB, MIB = 1 << 10, 1 << 20


def safetensors(tensors, metadata=None):
    """Return a safetensors file of these tensors, in the order of the dict."""
    header, position = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, data in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def torch_zip(records):
    """Return a zip as `torch.save` writes it: stored records, content at multiples of 64."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            begin = file.tell() + 30 + len(info.filename) + 4
            info.extra = b"FB" + (-begin % 64).to_bytes(2, "little") + b"Z" * (-begin % 64)
            archive.writestr(info, data)
    return file.getvalue()


class Training:
    """A model whose tensors change as training goes on.

    Args:
        layers: How many.
        shapes: Size in bytes of each tensor of a layer, by name.
        trained: Tells of (layer, name) whether training changes it.
    """

    def __init__(self, layers, shapes, trained):
        self._random = random.Random(7)
        self._trained = trained
        self.tensors = {
            (layer, name): self._random.randbytes(size)
            for layer in range(layers)
            for name, size in shapes.items()
        }

    @property
    def share(self):
        """Return the share of the parameters that is trained."""
        trained = sum(len(data) for at, data in self.tensors.items() if self._trained(*at))
        return trained / sum(map(len, self.tensors.values()))

    def step(self):
        """Train, and return the file."""
        for at, data in self.tensors.items():
            if self._trained(*at):
                self.tensors[at] = self._random.randbytes(len(data))
        return safetensors({f"layers.{n}.{name}": data for (n, name), data in self.tensors.items()})


class Counting:
    """A store that counts calls."""

    def __init__(self, store):
        self._store = store
        self.calls = []

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*args, **kwargs):
            self.calls.append((name, args[0]))
            return method(*args, **kwargs)

        return call

    def of(self, *names, prefix=""):
        """Return the keys of calls of these methods."""
        return [key for name, key in self.calls if name in names and str(key).startswith(prefix)]
