"""Checks of a server through libnbd: libnbd.py CHECK URI. Each check is a function below; it fails by an exception."""

import errno
import os
import sys

import nbd

MIB = 1 << 20


def connect(uri, strict=True):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if not strict:
        handle.set_strict_mode(0)
    handle.connect_uri(uri)
    return handle


def expect_errno(wanted, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == wanted, f"{error.errnum} instead of {wanted}: {error}"
    else:
        raise AssertionError(f"no error, wanted {errno.errorcode[wanted]}")


def extents(handle, length, offset, flags=0):
    """[(length, flags)] of base:allocation."""
    found = []

    def collect(_context, _offset, entries, _error):
        found.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, collect, flags)
    return found


def allocation_of(handle, length, offset):
    """The same, asked again until the whole range is told, equal neighbours joined."""
    told = []
    while length > 0:
        for size, state in extents(handle, length, offset):
            size = min(size, length)
            if told and told[-1][1] == state:
                told[-1] = (told[-1][0] + size, state)
            else:
                told.append((size, state))
            offset += size
            length -= size
    return told


def flags(uri):
    """FUA, NO_HOLE and FAST_ZERO do what they say."""
    h = connect(uri)
    for can in (h.can_fua, h.can_zero, h.can_fast_zero, h.can_trim, h.can_df, h.can_cache, h.can_multi_conn):
        assert can(), can
    data = os.urandom(64 * 1024)
    h.pwrite(data, 0, nbd.CMD_FLAG_FUA)
    assert h.pread(len(data), 0) == data
    h.zero(4096, 4096, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(len(data), 0) == data[:4096] + bytes(4096) + data[8192:]
    assert allocation_of(h, 4096, 4096)[0][1] & nbd.STATE_HOLE == 0, "NO_HOLE made a hole"
    try:
        h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(4096, 8192) == bytes(4096)
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
        assert h.pread(4096, 8192) == data[8192:12288], "an unsupported fast zero changed something"
    h.trim(4096, 12288, nbd.CMD_FLAG_FUA)
    assert h.pread(4096, 12288) == bytes(4096)
    h.cache(64 * 1024, 0)
    h.flush()


def two_connections(uri):
    """What one connection had acknowledged, the other sees, before and after a flush."""
    a, b = connect(uri), connect(uri)
    for turn in range(50):
        offset = turn * 128 * 1024
        data = os.urandom(16384)
        a.pwrite(data, offset)
        assert b.pread(len(data), offset) == data
        b.flush()
        assert a.pread(len(data), offset) == data
        b.pwrite(data[::-1], offset)
        assert a.pread(len(data), offset) == data[::-1]
        a.flush()


def parallel(uri):
    """256 writes of 64 KiB in flight, then read back with as many."""
    h = connect(uri)
    data = [bytes([n]) * 65536 for n in range(256)]

    def finish(cookies):
        assert len(cookies) == 256
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)

    writes = [nbd.Buffer.from_bytearray(bytearray(piece)) for piece in data]
    finish([h.aio_pwrite(buffer, n * 65536) for n, buffer in enumerate(writes)])
    buffers = [nbd.Buffer(65536) for _ in data]
    finish([h.aio_pread(buffer, n * 65536) for n, buffer in enumerate(buffers)])
    for n, (piece, buffer) in enumerate(zip(data, buffers)):
        assert bytes(buffer.to_bytearray()) == piece, n


def large(uri):
    """One request of 32 MiB each way."""
    h = connect(uri)
    data = os.urandom(MIB) * 32
    h.pwrite(data, MIB)
    assert h.pread(len(data), MIB) == data
    h.zero(len(data), MIB)
    assert h.pread(len(data), MIB) == bytes(len(data))


def structured(uri):
    """DF gives one piece; without it the pieces cover the range once."""
    h = connect(uri)
    assert h.get_structured_replies_negotiated()
    data = os.urandom(MIB)
    h.trim(4 * MIB, 0)
    h.pwrite(data, MIB)
    for read_flags in (0, nbd.CMD_FLAG_DF):
        pieces = []

        def collect(piece, offset, _status, _error):
            pieces.append((offset, len(piece)))

        got = h.pread_structured(4 * MIB, 0, collect, read_flags)
        assert got == bytes(MIB) + data + bytes(2 * MIB)
        assert sum(length for _, length in pieces) == 4 * MIB, pieces
        assert len({offset for offset, _ in pieces}) == len(pieces), pieces
        if read_flags == nbd.CMD_FLAG_DF:
            assert len(pieces) == 1, pieces


def status(uri):
    """Holes where trimmed or never written, data where written."""
    h = connect(uri)
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.trim(16 * MIB, 0)
    h.pwrite(os.urandom(MIB), 4 * MIB)
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert allocation_of(h, 16 * MIB, 0) == [(4 * MIB, hole), (MIB, 0), (11 * MIB, hole)]
    h.trim(256 * 1024, 4 * MIB + 128 * 1024)
    told = allocation_of(h, MIB, 4 * MIB)
    assert told == [(128 * 1024, 0), (256 * 1024, hole), (640 * 1024, 0)], told
    one = extents(h, 16 * MIB, 0, nbd.CMD_FLAG_REQ_ONE)
    assert one == [(4 * MIB, hole)], one


def outside(uri):
    """Outside the export: EINVAL for read and trim, ENOSPC for write and zero; the connection goes on."""
    h = connect(uri, strict=False)
    size = h.get_size()
    for offset in (size, size - 512, size + (1 << 40), (1 << 63) - 4096):
        expect_errno(errno.EINVAL, h.pread, 4096, offset)
        expect_errno(errno.EINVAL, h.trim, 4096, offset)
        expect_errno(errno.ENOSPC, h.pwrite, bytes(4096), offset)
        expect_errno(errno.ENOSPC, h.zero, 4096, offset)
        assert h.pread(512, 0) == h.pread(512, 0)
    h.pwrite(b"x" * 4096, size - 4096)
    assert h.pread(4096, size - 4096) == b"x" * 4096


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
