"""Changes of waves, batched on their device: gain, rotation, polarity, mixing with another clip."""
import torch

from masking import uniform
from wren.cli import UserError


def augment(wave, lengths, seeds, partner=None, partner_lengths=None, gain=0.0, shift=False, mix_snr=None,
            polarity=False):
    """Batched changes of waves on their device, each a function of the clip's seed. Nothing is changed by default.

    wave [B, S] and lengths int64 [B] (valid samples, the rest stays zero); seeds int64 [B];
    mix_snr (low, high) dB: partner [B, S] (partner_lengths [B] valid) is added at a signal-to-noise ratio drawn
    from it; shift: the valid part turns around a circle by a drawn share of its length; polarity: half of the clips
    are negated; gain dB: a level drawn from -gain … +gain. -> wave [B, S], a new tensor if anything was changed.
    """
    draw = {name: uniform(seeds, 1, stream) for name, stream in
            (("snr", 31), ("shift", 32), ("polarity", 33), ("gain", 34))}  # [B, 1] each
    time = torch.arange(wave.shape[1], device=wave.device)
    lengths = lengths[:, None]
    if mix_snr is not None:
        if partner is None:
            raise UserError("mixing needs partners: load them with partner=True")
        low, high = mix_snr
        power = wave.square().sum(1, keepdim=True) / lengths
        noise = partner * (time < lengths)
        overlap = lengths if partner_lengths is None else torch.minimum(partner_lengths[:, None], lengths)
        noise_power = noise.square().sum(1, keepdim=True) / overlap
        snr = low + (high - low) * draw["snr"]
        scale = (power / noise_power.clamp(min=1e-12) * 10 ** (-snr / 10)).sqrt()
        wave = wave + scale * noise
    if shift:
        offset = (draw["shift"].double() * lengths).long()  # float32 holds too few digits for a sample number
        wave = torch.where(time < lengths, wave.gather(1, (time - offset) % lengths), wave)
    if polarity:
        wave = torch.where(draw["polarity"] < 0.5, -wave, wave)
    if gain:
        wave = wave * 10 ** (gain * (2 * draw["gain"] - 1) / 20)
    return wave
