"""The processes of a training run: how they meet, add up, wait for each other, and notice that one is gone."""
import ctypes
import json
import os
import re
import secrets
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from wren.cli import UserError
from wren.training.checkpoints import checkpoints, step_of


@dataclass
class Processes:
    """This process among all: `python` gives one, `torchrun` (or srun with RANK, WORLD_SIZE, …) many."""
    rank: int
    world: int
    device: torch.device
    store: object = None  # where processes find each other

    @property
    def main(self):
        return self.rank == 0

    def sum(self, tensor):
        """All-reduce in place, when there is anybody to reduce with."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value):
        """A plain value of every process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def first(self, function, every=20.0):
        """function() of the first process and then of the others, which meet it every so many seconds until then: it
        may take longer than the longest wait for another process."""
        if self.world == 1:
            return function()
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(function) if self.main else None
            while any(self.gather(self.main and not work.done())):
                if self.main:
                    wait([work], every)
        return work.result() if self.main else function()

    def missing(self, wait_seconds=3.0):
        """After a lost connection: (ranks that are gone, the lowest that is left). Each one left signs in at the store,
        which is of process 0: without it, process 0 has gone."""
        try:
            self.store.set(f"wren/left/{self.rank}", "")
            deadline, gone = time.monotonic() + wait_seconds, range(self.world)
            while gone and time.monotonic() < deadline:
                gone = [r for r in range(self.world) if not self.store.check([f"wren/left/{r}"])]
                time.sleep(0.1)
        except RuntimeError:
            return [0], 1
        return gone, min(set(range(self.world)) - {*gone})

    def stop(self):
        """Leave together: a process that goes first would tear down connections that others still use."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


@contextmanager
def lost_process(procs, folder):
    """What the others say when one process is gone: one line instead of a traceback from each, and exit code 1."""
    try:
        yield
    except RuntimeError as error:
        if procs.world == 1 or not (isinstance(error, dist.DistError) or re.search(
                "gloo|NCCL|Connection (closed|reset)|Broken pipe|timed out", str(error), re.IGNORECASE)):
            raise
        gone, speaker = procs.missing()
        if procs.rank == speaker:
            who = f"process {gone[0]} has" if len(gone) == 1 else f"processes {', '.join(map(str, gone))} have"
            newest = next((f"the newest checkpoint is step {step_of(path)}" for path in checkpoints(folder)),
                          "there is no checkpoint yet")
            print(f"error: {who if gone else 'a process has'} gone; {newest}; the same command goes on",
                  file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # the connections that are left would be torn down one by one, each with its own complaint


def keep_memory():
    """Let glibc keep freed memory for the next step instead of giving it back: on CPUs the kernel would clear every
    large tensor's pages anew, in each step. Nothing happens with another libc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: nothing apart; M_TRIM_THRESHOLD: nothing is given back
        mallopt(option, value)


def start_processes(device="auto", timeout=300):
    """Join the process group, gloo on CPU and NCCL on GPU. `timeout` (s) bounds every wait for another process."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"--device cuda: process {local} of this machine has no GPU of its own "
                            f"({torch.cuda.device_count()} found); use --device cpu or fewer processes")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    else:
        keep_memory()
    store = None
    if world > 1:
        store = _meet(rank, world, timedelta(seconds=timeout))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=store, rank=rank,
                                world_size=world, timeout=timedelta(seconds=timeout))
    return Processes(rank, world, torch.device(device), store)


def _meet(rank, world, timeout):
    """A fresh store for this attempt, on a port of rank 0's own.

    The store of a torchrun agent outlives the workers, so after a restart it still holds the addresses of dead peers,
    and nodes that joined later count their attempts differently. Here each process leaves a random token; rank 0
    opens a new store and announces it together with the tokens it saw, until everyone has found its own token there.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    board = dist.TCPStore(address, port, None, rank == 0 and not hosted, timeout=timeout, wait_for_workers=False)
    if rank == 0:
        here = socket.gethostname() if address not in ("localhost", "127.0.0.1") else address
        store = dist.TCPStore(here, 0, None, True, timeout=timeout, wait_for_workers=False)
    token, deadline = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    board.set(f"wren/token/{rank}", token)
    while time.monotonic() < deadline:
        if rank == 0:
            seen = {r: board.get(f"wren/token/{r}").decode() for r in range(world) if board.check([f"wren/token/{r}"])}
            board.set("wren/call", json.dumps([here, store.port, seen]))
            if store.add("joined", 0) == world - 1:
                return store
        elif board.check(["wren/call"]):
            host, number, seen = json.loads(board.get("wren/call"))
            if seen.get(str(rank)) == token:
                store = dist.TCPStore(host, number, None, False, timeout=timeout, wait_for_workers=False)
                store.add("joined", 1)
                return store
        time.sleep(0.05)
    raise UserError(f"process {rank} of {world} met no others within {timeout.total_seconds():.0f} s (--timeout)")
