"""Batches that are on their way to the device while the one before them is computed."""
from collections import deque


def ahead(batches, place, device, depth=2):
    """place(batch), which holds tensors on the device, of each batch in order. On a GPU `depth` of them are under way
    or there, copied from pinned memory on a stream of their own; on CPUs there is nothing to wait for."""
    if device.type != "cuda":
        yield from map(place, batches)
        return
    import torch
    stream, waiting = torch.cuda.Stream(device), deque()

    def arrived():
        placed, event = waiting.popleft()
        here = torch.cuda.current_stream(device)
        here.wait_event(event)
        for x in _tensors(placed):
            x.record_stream(here)  # its memory is not reused before what runs here has read it
        return placed
    for batch in batches:
        with torch.cuda.stream(stream):
            waiting.append((place(batch), stream.record_event()))
        if len(waiting) == depth:
            yield arrived()
    while waiting:
        yield arrived()


def sent(x, device):
    """A CPU tensor on the device, copied without waiting; None stays None."""
    if x is None or device.type != "cuda":
        return x if x is None else x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def _tensors(x):
    """The tensors on a GPU in dicts, lists and tuples."""
    if isinstance(x, dict):
        x = x.values()
    if isinstance(x, (list, tuple, type({}.values()))):
        for part in x:
            yield from _tensors(part)
    elif getattr(x, "is_cuda", False):
        yield x
