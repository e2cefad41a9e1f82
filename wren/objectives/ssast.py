"""SSAST (Gong et al. 2022), also GPM-BT's: tell hidden patches apart and reconstruct them."""
from typing import Literal

import torch
from torch import nn

from wren.objectives.common import CountOrShare, Masking, Positive, draw_mask, pixel_error, spread
from wren.recipes.arithmetic import block_bytes, forward_flops


class SSAST(nn.Module):
    """SSAST's joint masked-patch objective (Gong et al. 2022), in one forward pass: InfoNCE + 10 · MSE.

    Targets are the raw pixels of the hidden patches of the normalised spectrogram. With S[i, j] = target_i ·
    prediction_j over the hidden patches of one clip (no temperature, no norm, negatives from the same clip only):

        nce = -mean_i log softmax_j S[i, j] at j = i      (released code; "paper" is eq. 1: the softmax runs over i)
        mse = mean over hidden patches and pixels of (reconstruction - target)²

    Deviation: the released code draws two masks and makes two passes, one for each term; here both terms share one.
    Accuracy is the released one: the share of predictions j whose best target, after the softmax, is their own.

    Settings:
        masking: patch: clusters of 3 to 5 patches; frame: single tokens
        hidden: hidden tokens of a full clip, a count or a share (published: 400 of 512)
        loss: InfoNCE + mse_weight · MSE, or one alone
        nce_axis: softmax over predictions, as released, or over targets (eq. 1)
        mse_weight: of the reconstruction beside InfoNCE
    """

    def __init__(self, encoder, masking: Masking = "patch", hidden: CountOrShare = 400 / 512,
                 loss: Literal["joint", "nce", "mse"] = "joint", nce_axis: Literal["released", "paper"] = "released",
                 mse_weight: Positive = 10.0):
        super().__init__()
        if loss not in ("joint", "nce", "mse"):
            raise ValueError(f"loss {loss!r} is none of joint, nce, mse")
        self.encoder, self.loss, self.nce_axis, self.mse_weight = encoder, loss, nce_axis, mse_weight
        self.masking, self.hidden = masking, hidden
        c = encoder.config
        if not c.mask_token:
            raise ValueError("it has no mask token")
        pixels = c.patch[0] * c.patch[1]
        self.classify = nn.Sequential(nn.Linear(c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, pixels))
        self.reconstruct = nn.Sequential(nn.Linear(c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, pixels))
        # a head without a loss gets no gradient, which DDP does not allow
        self.classify.requires_grad_(loss != "mse")
        self.reconstruct.requires_grad_(loss != "nce")

    def forward(self, x, lengths=None, seeds=None, mask=None, rate=None, streams=None):
        """x: wave (B, S) or spec (B, F, T); seeds (B,) int64 draw the mask, unless one is given: bool (B, T', F')."""
        encoder, layout = self.encoder, self.encoder.config.at_rate(rate)
        spec = encoder.frontend(x, lengths, rate) if x.dim() == 2 else x
        grid, valid = encoder.grid(spec, lengths, rate, streams)
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, layout, seeds, lengths)
        mask = mask[:, :grid.shape[1]]
        mask = mask if valid is None else mask & valid
        tokens = encoder.contextual(grid, valid, mask, rate=rate)[:, layout.specials:]  # (B, N, D)
        target = encoder.patches(spec, rate, streams).flatten(1, 2)  # (B, N, P)
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(tokens.float(), target.float(), mask.flatten(1), encoder.valid_pixels(rate))

    def losses(self, tokens, target, hidden, valid_pixels=None):
        """tokens (B, N, D), target (B, N, P), hidden (B, N) bool, valid_pixels (F', P) bool or None -> (loss, metrics),
        all in float32.

        The heads run on all tokens and the hidden ones are picked by mask: no loop over clips, no gather, no sync.
        """
        count = hidden.sum()
        metrics = {"count": count, "chance": len(hidden) / count.float(), "spread": spread(tokens)}
        loss = 0.0
        if self.loss != "mse":
            similarity = self.similarity(tokens, target, hidden)
            nce, metrics["accuracy"] = self._nce(similarity, hidden, count)
            metrics["nce"] = nce.detach()
            loss = loss + nce
        if self.loss != "nce":
            error = pixel_error(self.reconstruct(tokens), target, valid_pixels)  # (B, N)
            mse = (error * hidden).sum() / count
            metrics["mse"] = mse.detach()
            loss = loss + (self.mse_weight if self.loss == "joint" else 1.0) * mse
        metrics["loss"] = loss.detach()
        return loss, metrics

    def similarity(self, tokens, target, hidden):
        """S (B, target, prediction); pairs with a visible patch are -inf, but for the diagonal, which stays finite."""
        s = target @ self.classify(tokens).transpose(1, 2)
        pair = hidden[:, :, None] & hidden[:, None, :]
        eye = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
        return s.masked_fill(~(pair | eye), float("-inf"))

    def _nce(self, similarity, hidden, count):
        axis = 2 if self.nce_axis == "released" else 1
        diagonal = similarity.log_softmax(axis).diagonal(dim1=1, dim2=2)  # (B, N)
        nce = -(diagonal * hidden).sum() / count
        best = similarity.detach().softmax(2).argmax(1)  # (B, N): each prediction's best target
        right = (best == torch.arange(best.shape[1], device=best.device)) & hidden
        return nce, right.sum() / count

    @property
    def exported(self):
        return self.encoder

    def flops(self):
        c = self.encoder.config
        heads = (2 if self.loss == "joint" else 1) * 2 * c.n_tokens * c.dim * (c.dim + c.patch[0] * c.patch[1])
        return 3 * (forward_flops(c) + heads)

    def kept(self):
        c = self.encoder.config
        return block_bytes(c, c.n_tokens + c.specials, self.encoder.checkpoint_activations)
