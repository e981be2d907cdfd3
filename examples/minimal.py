# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Complete example in one file: load a backbone, add prompts, train, evaluate, save, and load the adapter again.

    python examples/minimal.py --photos photos --backbone facebook/dinov2-small

`photos` has one subfolder per class. Every fifth image is held out for evaluation. `gated-prompt train`
does the same with more care: it probes the backbone first, searches learning rates and writes a report.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.images import decode

SMALL = str(Path(gated_prompt.__file__).parent / "backbones" / "mae-cifar10-tiny")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """(pixels, class) pairs, decoded and preprocessed on access."""

    def __init__(self, files: list[Path], names: list[str], processor: object) -> None:
        self.files, self.names, self.processor = files, names, processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self.files[index]
        pixels = self.processor(decode(file, str(file)), return_tensors="pt").pixel_values[0]  # type: ignore[operator]
        return pixels, self.names.index(file.parent.name)


def load_backbone(backbone: str, names: list[str]) -> torch.nn.Module:
    """Load the model with a new head for these classes, in float32 whatever the stored precision."""
    return AutoModelForImageClassification.from_pretrained(
        backbone, num_labels=len(names), ignore_mismatched_sizes=True, dtype=torch.float32
    )


@torch.inference_mode()
def accuracy(model: torch.nn.Module, loader: DataLoader[tuple[torch.Tensor, int]], device: str) -> float:
    """Return the share of images whose class has the highest logit."""
    model.eval()
    hits = [model(pixels.to(device)).logits.argmax(-1).cpu() == classes for pixels, classes in loader]
    return float(torch.cat(hits).double().mean())


def main(argv: list[str] | None = None) -> float:
    """Run with these arguments (None: the command line's). Return the accuracy on the held-out images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with one subfolder per class")
    parser.add_argument("--backbone", default=SMALL, help="Hub id or folder (default: the small ViT of this clone)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/minimal"), help="where the adapter goes (%(default)s)"
    )
    parser.add_argument(
        "--pooling", help="prompts_and_patches for MAE, such as the small ViT (default: the model's own)"
    )
    parser.add_argument("--prompts", type=int, default=10, help="number of prompts (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the photos (%(default)s)")
    parser.add_argument("--learning_rate", type=float, default=0.003, help="peak rate of the prompts (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="photos per step (%(default)s)")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    # Data.
    files = sorted(path for path in args.photos.glob("[!.]*/[!.]*") if path.suffix.lower() in ENDINGS)
    names = sorted({file.parent.name for file in files})
    if len(names) < 2:
        parser.error(f"{args.photos} has {len(names)} subfolders with images. Expected at least two.")
    processor = AutoImageProcessor.from_pretrained(args.backbone)
    train = Photos([file for i, file in enumerate(files) if i % 5], names, processor)
    held = DataLoader(Photos(files[::5], names, processor), args.batch_size)

    # Model: prompts on the backbone. The head starts as a linear probe of its features, prompts included.
    torch.manual_seed(0)
    config = GatedPromptConfig(num_virtual_tokens=args.prompts, gate_init=-3.0, pooling=args.pooling)
    model = get_peft_model(load_backbone(args.backbone, names), config).to(device)
    gated_prompt.initialize_head(model, DataLoader(train, args.batch_size), l2=10.0)
    print(f"start: {accuracy(model, held, device):.3f}")

    # Training.
    loader = DataLoader(train, args.batch_size, shuffle=True)
    groups = gated_prompt.parameter_groups(model, lr=args.learning_rate, head={"lr": args.learning_rate / 10})
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    for epoch in range(args.epochs):
        model.train()
        for pixels, classes in tqdm(loader, desc=f"epoch {epoch + 1}"):
            F.cross_entropy(model(pixels.to(device)).logits, classes.to(device)).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    trained = accuracy(model, held, device)
    print(f"trained: {trained:.3f}, gates: {[round(gate, 3) for gate in gated_prompt.gates(model).tolist()]}")

    # Save the adapter, and load it on a fresh copy of the backbone.
    gated_prompt.save(model, args.output)
    again = gated_prompt.load(load_backbone(args.backbone, names), args.output).to(device)
    print(f"loaded back from {args.output}: {accuracy(again, held, device):.3f}")
    return trained


if __name__ == "__main__":
    try:
        main()
    except GatedPromptError as error:
        raise SystemExit(f"error: {error}") from None
