# Awkward things that a client may do, run by nbdsh. `uri` and `tcp` are set by tests/clients.rs.
import errno

MIB = 1 << 20


def connect(uri, structured=True):
    c = nbd.NBD()
    c.set_request_structured_replies(structured)
    if structured:
        c.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    # The library's own checks of what a client may send: off.
    c.set_strict_mode(0)
    c.connect_uri(uri)
    return c


def fails(number, call, *args, **more):
    try:
        call(*args, **more)
    except nbd.Error as error:
        assert error.errnum == number, f"{error}: not {number}"
    else:
        raise AssertionError(f"{call.__name__}{args} did not fail")


h = connect(uri)
size = h.get_size()
assert size == 64 * MIB

# Any offset, any length, over borders of blocks and objects.
for offset, length in [(0, 1), (1, 511), (4095, 2), (4096, 4096), (5000, 10000),
                       (4 * MIB - 1, 2), (4 * MIB - 5000, 20000), (size - 1, 1), (MIB, 5 * MIB + 3)]:
    before = h.pread(1, offset - 1) if offset else b""
    after = h.pread(1, offset + length) if offset + length < size else b""
    data = bytes((offset + i * 7) % 251 for i in range(length % 9973 + 1))
    data = (data * (length // len(data) + 1))[:length]
    h.pwrite(data, offset, nbd.CMD_FLAG_FUA if offset % 2 else 0)
    assert h.pread(length, offset) == data
    if before:
        assert h.pread(1, offset - 1) == before
    if after:
        assert h.pread(1, offset + length) == after

# The largest payload that goes without asking.
big = bytes(range(256)) * (32 * MIB // 256)
h.pwrite(big, 7)
assert h.pread(32 * MIB, 7) == big
assert h.pread(32 * MIB, 7, nbd.CMD_FLAG_DF) == big

# Holes: fragments, and one chunk with DF.
h.zero(16 * MIB, 4 * MIB)
h.pwrite(b"x" * 4096, 8 * MIB)
seen = []
h.pread_structured(MIB, 8 * MIB - 4096, lambda buf, off, s, e: seen.append((len(buf), off, s)))
assert [s for _, _, s in seen] == [nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE], seen
seen = []
h.pread_structured(MIB, 8 * MIB - 4096, lambda buf, off, s, e: seen.append((len(buf), s)),
                   nbd.CMD_FLAG_DF)
assert seen == [(MIB, nbd.READ_DATA)], seen


def extents(client, count, offset, flags=0):
    got = []
    client.block_status(count, offset, lambda context, off, entries, e: got.extend(entries), flags)
    return got


# Block status: extents, one extent, holes that NO_HOLE does not make.
got = extents(h, MIB, 8 * MIB - 4096)
assert got == [4096, 3, 4096, 0, MIB - 8192, 3], got
assert extents(h, MIB, 8 * MIB - 100, nbd.CMD_FLAG_REQ_ONE) == [100, 3]
h.zero(MIB, 8 * MIB, nbd.CMD_FLAG_NO_HOLE)
assert extents(h, MIB, 8 * MIB) == [MIB, 0]
assert h.pread(MIB, 8 * MIB) == bytes(MIB)
h.trim(MIB, 8 * MIB + 100)
assert extents(h, MIB, 8 * MIB)[:4] == [4096, 0, MIB - 4096, 3]

# Zeros at odd places; fast zero with and without a hole.
h.pwrite(b"y" * 20000, 0)
h.zero(9000, 3000, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(20000, 0) == b"y" * 3000 + bytes(9000) + b"y" * 8000
fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.cache(MIB, 0)
h.flush()

# Mistakes, each with its number; the connection stays.
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.ENOSPC, h.pwrite, b"xx", size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
fails(errno.EINVAL, h.cache, 2, size - 1)
fails(errno.EINVAL, h.block_status, 2, size - 1, lambda *a: 0)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EOVERFLOW, h.pread, 33 * MIB, 0)
fails(errno.EINVAL, h.pwrite, bytes(33 * MIB), 0)
h.trim(0, 0)
h.pwrite(b"", 5)
assert h.pread(3, 0) == b"yyy"

# Several connections see each other's writes at once.
others = [connect(tcp) for _ in range(4)]
assert all(c.can_multi_conn() for c in others)
for n, c in enumerate(others):
    c.pwrite(bytes([n + 1]) * 1000, 10000 + n * 500)
    c.flush()
for c in others + [h]:
    assert c.pread(2500, 10000) == b"".join(bytes([n]) * 500 for n in (1, 2, 3)) + bytes([4]) * 1000

# Without structured replies.
plain = connect(tcp, structured=False)
assert not plain.get_structured_replies_negotiated() and not plain.can_df()
assert plain.pread(2500, 10000) == h.pread(2500, 10000)
assert plain.pread(MIB, 20 * MIB) == h.pread(MIB, 20 * MIB)
fails(errno.EINVAL, plain.pread, 2, size - 1)
fails(errno.EINVAL, plain.pread, 33 * MIB, 0)
plain.shutdown()

# Haggling: options out of order, unknown exports, then on.
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(uri)
names = []
o.opt_list(lambda name, description: names.append(name))
assert names == ["disk0"], names
o.set_export_name("nope")
fails(errno.ENOENT, o.opt_info)
o.set_export_name("disk0")
o.opt_info()
assert o.get_size() == size
contexts = []
o.add_meta_context("base:")
o.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
o.opt_go()
assert o.pread(3, 0) == b"yyy"

# Many requests under way, small ones to the same blocks among them.
cookies = []
for i in range(2000):
    cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 256]) * 512), 30 * MIB + i * 512))
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert h.pread(2000 * 512, 30 * MIB) == b"".join(bytes([i % 256]) * 512 for i in range(2000))

# Goodbye with requests under way: they are carried out. Going away without a word: nothing breaks.
for i in range(50):
    others[0].aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"z") * 4096), 40 * MIB + i * 4096)
others[0].aio_disconnect()
while not (others[0].aio_is_closed() or others[0].aio_is_dead()):
    others[0].poll(-1)
assert h.pread(50 * 4096, 40 * MIB) == b"z" * 50 * 4096
others[1].aio_pread(nbd.Buffer(MIB), 0)
del others, c
h.shutdown()
print("all done")
