"""pretrain.py with a fault built in, for tests under torchrun. WREN_FAULT says which:

    kill         process 1 kills itself at step 3 of the first attempt
    slow         each step waits, so that a test can interfere
    nan          process 1 gets a NaN sample at step 2
    always-nan   every process gets NaN samples from step 1 on
"""
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def install(setattr=setattr):
    from wren.training import engine
    original, fault = engine.Trainer.launch, os.environ["WREN_FAULT"]

    def launch(self, batch, flags=()):
        rank = self.procs.rank
        if fault == "kill" and rank == 1 and self.step == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            time.sleep(0.7)
        if fault == "nan" and rank == 1 and self.step == 2 or fault == "always-nan" and self.step >= 1:
            batch["wave"][0, 1000] = float("nan")
        return original(self, batch, flags)
    setattr(engine.Trainer, "launch", launch)


if __name__ == "__main__":
    from wren import cli
    import pretrain
    install()
    cli.run(pretrain.main)
