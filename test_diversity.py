"""Diversity: 1 - mean cosine over all pairs of nine images of a prompt, with DINO and CLIP features.

    accelerate launch test_diversity.py
    accelerate launch test_diversity.py --model outputs/tiny/dpdmd --prompts_txt data/shapes_eval.txt

Edit the paths below, or give each as a flag of the same name in small letters (--help lists them).
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("test_diversity.py")

import sys

from dpdmd.evaluation.program import Program

MODEL = "outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5"  # run, checkpoint, pipeline folder, or a network's file
BASE_MODEL = "weights/stabilityai/stable-diffusion-3.5-medium"  # the pipeline that a network alone belongs to
IMAGES = None  # a folder of images to compare instead, or a CSV file with the columns file and prompt
PROMPTS_TXT = "data/prompts_eval.txt"  # the paper: data/pickapic_test.txt and data/coco2014_10k.txt
OUTPUT_DIR = "outputs/test_diversity"

DINO_PATH = "weights/dinov3-vitl16-pretrain-lvd1689m"  # the paper's; weights/dinov2-base is what training uses
CLIP_PATH = "weights/clip-vit-large-patch14"  # an empty path leaves a scorer out

PROGRAM = Program(
    name="test_diversity.py",
    description="DINO and CLIP diversity of a model over nine images of each prompt (paper, table 1).",
    scorers=("div_dino", "div_clip"),
    defaults={
        "model": MODEL,
        "base_model": BASE_MODEL,
        "images": IMAGES,
        "prompts_txt": PROMPTS_TXT,
        "output_dir": OUTPUT_DIR,
        "dino_path": DINO_PATH,
        "clip_path": CLIP_PATH,
        "num_samples": 9,
    },
)

if __name__ == "__main__":
    sys.exit(signals.final_status(PROGRAM.main()))
