"""libnbd of Debian 13 against this daemon: extended headers. Argument: the URI of an empty vDisk of at least 8 GiB."""

import sys

import nbd

GIB = 1 << 30
uri = sys.argv[1]


def connected(contexts=("base:allocation", "qemu:allocation-depth")):
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    return handle


def status(handle, length, offset, flags=0):
    seen = {}

    def extents(context, at, entries, _error):
        assert at == offset, at
        seen.setdefault(context, []).extend(tuple(entry) for entry in entries)
        return 0

    handle.block_status_64(length, offset, extents, flags)
    return seen


h = connected()
assert h.get_extended_headers_negotiated(), "no extended headers"
assert h.get_structured_replies_negotiated(), "no structured replies"
assert h.can_block_status_payload(), "no payload of block status"
size = h.get_size()
assert size >= 8 * GIB, size

# One request over 6 GiB: a hole of that length, in both contexts.
empty = status(h, 6 * GIB, 0)
for context, flags in (("base:allocation", 3), ("qemu:allocation-depth", 0)):
    extents = empty[context]
    assert sum(length for length, _ in extents) >= 6 * GIB, extents
    assert all(flag == flags for _, flag in extents), extents

h.pwrite(b"x" * 65536, 1 * GIB)
h.pwrite(b"y" * 65536, 5 * GIB)
extents = status(h, 6 * GIB, 0)["base:allocation"]
assert extents[:4] == [(GIB, 3), (65536, 0), (4 * GIB - 65536, 3), (65536, 0)], extents[:4]
one = status(h, 6 * GIB, GIB, nbd.CMD_FLAG_REQ_ONE)["base:allocation"]
assert one == [(65536, 0)], one

# A part of the negotiated contexts.
filtered = {}


def only(context, _at, entries, _error):
    filtered[context] = len(entries)
    return 0


h.block_status_filter(GIB, 0, ["base:allocation"], only)
assert list(filtered) == ["base:allocation"], filtered

# 5 GiB at once, then what was there reads as zeroes.
h.zero(5 * GIB, GIB // 2)
assert h.pread(65536, GIB) == bytes(65536)
assert h.pread(65536, 5 * GIB) == bytes(65536)
h.pwrite(b"z" * 65536, 2 * GIB)
h.trim(5 * GIB, GIB)
h.flush()
length, flags = status(h, 6 * GIB, 0)["base:allocation"][0]
assert length >= 6 * GIB and flags == 3, (length, flags)

# Errors carry the offset, and the connection goes on.
h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_BOUNDS)
for call, code in (
    (lambda: h.pread(4096, size), "EINVAL"),
    (lambda: h.trim(4096, size), "EINVAL"),
    (lambda: h.zero(4096, size), "ENOSPC"),
    (lambda: h.pwrite(bytes(4096), size), "ENOSPC"),
):
    try:
        call()
        raise AssertionError(f"no {code}")
    except nbd.Error as error:
        assert error.errno == code, (error, code)
assert h.pread(4096, 0) == bytes(4096)
h.shutdown()
print("extended headers: all right")
