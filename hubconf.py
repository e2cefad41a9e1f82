"""torch.hub's door: torch.hub.load(FOLDER, "load_encoder", NAME_OR_FILE, source="local"), with a preset's name (random
weights), a run folder, or a checkpoint, ours or a published one."""
from model import load_encoder  # noqa: F401  (torch.hub looks names up here)

dependencies = ["torch", "torchaudio", "numpy", "safetensors"]
