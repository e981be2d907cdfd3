"""One process of a run of `gated-prompt train` on label maps."""

from gated_prompt.finetune.segmentation.command import main

if __name__ == "__main__":
    main()
