"""Frozen-encoder probes: one pass of an encoder over a task's audio, then classifiers on the vectors."""
import numpy as np
import torch
from torch.utils.data import DataLoader

from data import pad_batch
from frontends import KaldiFbank
from recipes import EncoderConfig


class _Whole(torch.utils.data.Dataset):
    """Whole clips of a manifest at one sample rate."""

    def __init__(self, manifest, sample_rate):
        self.manifest, self.sample_rate = manifest, sample_rate

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, i):
        return self.manifest.read(i, rate=self.sample_rate)


@torch.inference_mode()
def vectors(functions, manifest, sample_rate, device="cpu", batch_size=32, workers=0, amp=torch.no_grad):
    """One pass over a manifest's clips for several functions (wave (B, S), lengths (B,)) -> (B, D).

    Returns a list of float32 arrays (n, D), one a function; the audio is read and resampled once for all.
    """
    loader = DataLoader(_Whole(manifest, sample_rate), batch_size, num_workers=workers, collate_fn=pad_batch)
    out = [[] for _ in functions]
    for wave, lengths in loader:
        wave, lengths = wave.to(device), None if bool((lengths == wave.shape[1]).all()) else lengths.to(device)
        for rows, function in zip(out, functions):
            with amp():
                rows.append(function(wave, lengths).float().cpu().numpy())
    return [np.concatenate(rows) for rows in out]


class MelStatistics(torch.nn.Module):
    """The baseline of every table: mean and standard deviation over time of each of 128 log-mel bands (25 / 10 ms)."""

    def __init__(self, sample_rate):
        super().__init__()
        self.config = EncoderConfig(name="mel statistics", sample_rate=sample_rate)
        self.fbank = KaldiFbank(self.config)

    def forward(self, wave, lengths=None):
        """wave (B, S), lengths (B,) -> (B, 256)."""
        if lengths is None:
            lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
        valid = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]
        wave = (wave - (wave * valid).sum(1, keepdim=True) / lengths[:, None]) * valid
        wave = torch.nn.functional.pad(wave, (0, max(0, self.config.window_samples - wave.shape[1])))
        spec = self.fbank(wave)  # (B, F, T)
        keep = torch.arange(spec.shape[2], device=wave.device) < self.config.n_frames(lengths)[:, None]
        count = keep.sum(1)[:, None]
        mean = (spec * keep[:, None]).sum(2) / count
        square = ((spec - mean[..., None]).square() * keep[:, None]).sum(2) / count
        return torch.cat([mean, square.sqrt()], dim=1)


def knn(train, labels, test, k=10, temperature=0.07, standardise=True, chunk=4096):
    """Weighted k-nearest-neighbour vote: cosine similarity s, weight exp(s / temperature) (DINO's; XARES's k = 10).

    train (n, D), labels (n,) int, test (m, D) -> predicted labels (m,). `standardise`: features get mean 0 and
    deviation 1 over the training split before the L2 norm, else every vector lies near the mean and cosines say little.
    """
    train, test = torch.as_tensor(train), torch.as_tensor(test)
    if standardise:
        mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
        train, test = (train - mean) / deviation, (test - mean) / deviation
    train, test = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    labels = torch.as_tensor(labels)
    votes = torch.zeros(len(test), int(labels.max()) + 1)
    for start in range(0, len(test), chunk):
        similarity, index = (test[start:start + chunk] @ train.T).topk(min(k, len(train)), dim=1)
        votes[start:start + chunk].scatter_add_(1, labels[index], (similarity / temperature).exp())
    return votes.argmax(1).numpy()
