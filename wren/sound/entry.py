"""The bytes of a clip in a tar shard, read by offset."""
import hashlib
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


def entry_bytes(tar, offset, size):
    """`size` bytes from `offset` of a shard. Raises BadAudio if they are not all there."""
    file = _shard(tar)  # held while it is read: another thread may make it fall out
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise BadAudio("the shard ends before this entry: copied incompletely?", tar)
    return data
