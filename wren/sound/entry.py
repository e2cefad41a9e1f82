"""A stretch of a tar shard as a file: the bytes of one clip, read by offset."""
import hashlib
import io
import os
from functools import lru_cache

from wren.sound.audio import BadAudio


def checksum(data):
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=128)  # shards stay open, so that a read costs no look-up; what falls out is closed
def _shard(tar):
    try:
        return open(tar, "rb", buffering=0)
    except OSError as error:
        raise BadAudio(f"shard can't be opened ({error.strerror})", tar) from None


class Entry(io.RawIOBase):
    """`size` bytes from `offset` of a shard, to be read from any place. Raises BadAudio if they are not all there."""

    def __init__(self, tar, offset, size):
        self.tar, self.offset, self.size, self.place = tar, offset, size, 0
        self.shard = _shard(tar)
        if os.fstat(self.shard.fileno()).st_size < offset + size:
            raise BadAudio("the shard ends before this entry: copied incompletely?", tar)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self):
        return self.place

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")[:max(0, self.size - self.place)]
        count = os.preadv(self.shard.fileno(), [view], self.offset + self.place)
        self.place += count
        return count
